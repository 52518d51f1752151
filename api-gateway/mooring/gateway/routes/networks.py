"""The predefined networks; and volumes and plugins, of which there are none."""

from __future__ import annotations

from mooring.gateway.gateway import Gateway
from mooring.gateway.http.connection import Kind
from mooring.gateway.http.reply import Reply, json_reply
from mooring.gateway.http.request import Request
from mooring.gateway.router import Route
from mooring.gateway.schema import query
from mooring.gateway.schema.networks import DRIVERS, network, network_id
from mooring.gateway.schema.query import Filters, boolean_filter
from mooring.gateway.views.patterns import compile_pattern
from mooring.kit.errors import InvalidParameter, NotFound

_FILTERS = frozenset({"dangling", "driver", "id", "label", "name", "scope", "type"})
_VOLUME_FILTERS = frozenset({"dangling", "driver", "label", "name"})
_PLUGIN_FILTERS = frozenset({"capability", "enabled"})


class NetworkRoutes:
    """What can be said of networks, volumes and plugins without making any."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        """See Router."""
        return [
            Route("GET", "/networks", Kind.INSTANT, self.list),
            Route("GET", "/networks/", Kind.INSTANT, self.list),
            Route("GET", "/networks/{id}", Kind.INSTANT, self.inspect),
            Route("GET", "/volumes", Kind.INSTANT, self.volumes),
            Route("GET", "/volumes/{name}", Kind.INSTANT, self.volume),
            Route("GET", "/plugins", Kind.INSTANT, self.plugins),
        ]

    def list(self, request: Request) -> Reply:
        """bridge, host and none, without their containers."""
        given = query.filters(request, _FILTERS)
        rows = []
        for name in DRIVERS:
            if _passes(name, given):
                rows.append(network(name, [], self._gateway.settings.bridge_subnet))
        return json_reply(rows)

    def inspect(self, request: Request) -> Reply:
        """One network and the containers on it."""
        name = _find(request.name)
        records = self._gateway.engine.containers.newest_first()
        return json_reply(network(name, records, self._gateway.settings.bridge_subnet))

    def volumes(self, request: Request) -> Reply:
        """None yet."""
        query.filters(request, _VOLUME_FILTERS)
        return json_reply({"Volumes": [], "Warnings": []})

    def volume(self, request: Request) -> Reply:
        """None yet."""
        raise NotFound(f"get {request.name}: no such volume")

    def plugins(self, request: Request) -> Reply:
        """None."""
        query.filters(request, _PLUGIN_FILTERS)
        return json_reply([])


def _find(text: str) -> str:
    if text in DRIVERS:
        return text
    matching = [name for name in DRIVERS if text and network_id(name).startswith(text)]
    if len(matching) > 1:
        raise InvalidParameter(f"network {text} is ambiguous ({len(matching)} matches found on ID)")
    if not matching:
        raise NotFound(f"network {text} not found")
    return matching[0]


def _passes(name: str, given: Filters) -> bool:
    for key, values in given.items():
        match key:
            case "name":
                passes = any(compile_pattern(value, "name").search(name) for value in values)
            case "id":
                passes = any(network_id(name).startswith(value) for value in values)
            case "driver":
                passes = DRIVERS[name] in values
            case "scope":
                passes = "local" in values
            case "type":
                passes = "builtin" in values
            case "dangling":
                passes = boolean_filter(given, "dangling") is False
            case _:
                passes = False
        if not passes:
            return False
    return True

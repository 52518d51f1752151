"""Networks; and plugins, of which there are none."""

from __future__ import annotations

from mooring.gateway.gateway import Gateway
from mooring.gateway.http.connection import Kind
from mooring.gateway.http.reply import Reply, empty, json_reply
from mooring.gateway.http.request import Request
from mooring.gateway.router import Route
from mooring.gateway.schema import query
from mooring.gateway.schema.decode import json_body
from mooring.gateway.schema.networks import (
    connect_network,
    create_network,
    disconnect_network,
    network,
)
from mooring.gateway.views.networks import FILTERS, select
from mooring.kit import subjects
from mooring.kit.errors import NotFound
from mooring.kit.models.base import Done
from mooring.kit.models.network import (
    NetworkCreated,
    NetworkRequest,
    NetworksPruned,
    PruneNetworks,
)

_PRUNE_FILTERS = frozenset({"until", "label", "label!"})
_PLUGIN_FILTERS = frozenset({"capability", "enabled"})
_SLOW = 600.0
"""Seconds for a prune of many."""


class NetworkRoutes:
    """The section of networks, and what can be said of plugins without any."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        """See Router."""
        return [
            Route("GET", "/networks", Kind.INSTANT, self.list),
            Route("GET", "/networks/", Kind.INSTANT, self.list),
            Route("GET", "/networks/{id}", Kind.INSTANT, self.inspect),
            Route("POST", "/networks/create", Kind.PLAIN, self.create),
            Route("POST", "/networks/prune", Kind.PLAIN, self.prune),
            Route("POST", "/networks/{id}/connect", Kind.PLAIN, self.connect),
            Route("POST", "/networks/{id}/disconnect", Kind.PLAIN, self.disconnect),
            Route("DELETE", "/networks/{id}", Kind.PLAIN, self.remove),
            Route("GET", "/plugins", Kind.INSTANT, self.plugins),
        ]

    def list(self, request: Request) -> Reply:
        """All networks that pass the filters, without their containers."""
        given = query.filters(request, FILTERS)
        engine = self._gateway.engine
        used: set[str] = set()
        if "dangling" in given:
            for record in engine.containers.newest_first():
                used |= {point.network_id for point in record.network.endpoints.values()}
        rows = select(engine.networks.all(), given, used)
        return json_reply([network(record, []) for record in rows])

    def inspect(self, request: Request) -> Reply:
        """One network and the containers on it."""
        engine = self._gateway.engine
        record = engine.networks.find(request.name)
        if request.get("scope") not in ("", record.scope):
            raise NotFound(f"network {request.name} not found")
        shown = network(record, engine.containers.newest_first())
        if query.flag(request, "verbose"):
            # Of services, of which there are none outside a swarm.
            shown["Services"] = {}
        return json_reply(shown)

    async def create(self, request: Request) -> Reply:
        """Create a network."""
        body = await json_body(request, self._gateway.settings.max_json_body, required=True)
        engine = self._gateway.engine
        created = await engine.ask(subjects.NETWORK_CREATE, create_network(body), NetworkCreated)
        await engine.networks.mirror.reached(created.revision)
        return json_reply({"Id": created.network_id, "Warning": created.warning}, 201)

    async def remove(self, request: Request) -> Reply:
        """Remove one that nobody is on."""
        engine = self._gateway.engine
        message = NetworkRequest(network=request.name)
        done = await engine.ask(subjects.NETWORK_REMOVE, message, Done)
        await engine.networks.mirror.reached(done.revision)
        return empty()

    async def connect(self, request: Request) -> Reply:
        """Connect a container."""
        body = await json_body(request, self._gateway.settings.max_json_body, required=True)
        engine = self._gateway.engine
        message = connect_network(request.name, body)
        done = await engine.ask(subjects.NETWORK_CONNECT, message, Done)
        await engine.containers.mirror.reached(done.revision)
        return empty(200)

    async def disconnect(self, request: Request) -> Reply:
        """Disconnect a container."""
        body = await json_body(request, self._gateway.settings.max_json_body, required=True)
        engine = self._gateway.engine
        message = disconnect_network(request.name, body)
        done = await engine.ask(subjects.NETWORK_DISCONNECT, message, Done)
        await engine.containers.mirror.reached(done.revision)
        return empty(200)

    async def prune(self, request: Request) -> Reply:
        """Remove those that no container uses."""
        given = query.filters(request, _PRUNE_FILTERS)
        message = PruneNetworks(
            until_ns=query.until_filter(given),
            labels=given.get("label", []),
            labels_not=given.get("label!", []),
        )
        engine = self._gateway.engine
        pruned = await engine.bus.request(
            subjects.NETWORK_PRUNE, message, NetworksPruned, timeout=_SLOW
        )
        await engine.networks.mirror.reached(pruned.revision)
        return json_reply({"NetworksDeleted": pruned.deleted or None})

    def plugins(self, request: Request) -> Reply:
        """None."""
        query.filters(request, _PLUGIN_FILTERS)
        return json_reply([])

"""The section Volume of the API."""

from __future__ import annotations

from typing import Any

from mooring.gateway.gateway import Gateway
from mooring.gateway.http.connection import Kind
from mooring.gateway.http.reply import Reply, empty, json_reply
from mooring.gateway.http.request import Request
from mooring.gateway.router import Route
from mooring.gateway.schema import query
from mooring.gateway.schema.decode import fit, json_body
from mooring.gateway.schema.volumes import CreateBody, volume
from mooring.gateway.views.volumes import NAMES
from mooring.kit import subjects
from mooring.kit.errors import InvalidParameter, NotSupported
from mooring.kit.models.base import Done
from mooring.kit.models.container import Pruned
from mooring.kit.models.volume import CreateVolume, PruneVolumes, RemoveVolume, VolumeCreated

_PRUNE_FILTERS = frozenset({"all", "label", "label!"})
_SLOW = 3600.0


class VolumeRoutes:
    """Lists from memory; the rest is the lifecycle manager's."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        """See Router."""
        return [
            Route("GET", "/volumes", Kind.INSTANT, self.list),
            Route("POST", "/volumes/create", Kind.PLAIN, self.create),
            Route("POST", "/volumes/prune", Kind.PLAIN, self.prune),
            Route("GET", "/volumes/{name}", Kind.INSTANT, self.inspect),
            Route("DELETE", "/volumes/{name}", Kind.PLAIN, self.remove),
        ]

    def list(self, request: Request) -> Reply:
        """All volumes that pass the filters."""
        records = self._gateway.engine.volumes.select(query.filters(request, NAMES))
        return json_reply({"Volumes": [volume(record) for record in records], "Warnings": None})

    def inspect(self, request: Request) -> Reply:
        """One volume."""
        return json_reply(volume(self._gateway.engine.volumes.find(request.name)))

    async def create(self, request: Request) -> Reply:
        """Create a volume, or find the one that has the name."""
        engine = self._gateway.engine
        body: dict[str, Any] = await json_body(
            request, self._gateway.settings.max_json_body, required=True
        )
        if body.get("ClusterVolumeSpec"):
            raise NotSupported("option ClusterVolumeSpec is not supported")
        given = fit(CreateBody, body)
        message = CreateVolume(
            name=given.Name, driver=given.Driver, options=given.DriverOpts, labels=given.Labels
        )
        created = await engine.ask(subjects.VOLUME_CREATE, message, VolumeCreated)
        await engine.volumes.mirror.reached(created.revision)
        return json_reply(volume(created.volume), 201)

    async def remove(self, request: Request) -> Reply:
        """Delete a volume that no container has."""
        engine = self._gateway.engine
        message = RemoveVolume(name=request.name, force=query.flag(request, "force"))
        done = await engine.ask(subjects.VOLUME_REMOVE, message, Done)
        await engine.volumes.mirror.reached(done.revision)
        return empty()

    async def prune(self, request: Request) -> Reply:
        """Delete the anonymous ones that no container has; before 1.42, and with `all`, any."""
        engine = self._gateway.engine
        given = query.filters(request, _PRUNE_FILTERS)
        if "all" in given and request.version < (1, 42):
            raise InvalidParameter("Invalid filter 'all'")
        everything = request.version < (1, 42) or bool(query.boolean_filter(given, "all"))
        message = PruneVolumes(
            all=everything, labels=given.get("label", []), labels_not=given.get("label!", [])
        )
        pruned = await engine.bus.request(subjects.VOLUME_PRUNE, message, Pruned, timeout=_SLOW)
        await engine.volumes.mirror.reached(pruned.revision)
        return json_reply(
            {"VolumesDeleted": pruned.deleted or None, "SpaceReclaimed": pruned.space_reclaimed}
        )

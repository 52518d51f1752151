"""Creating and renaming containers, and the events of what changes no state."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator

from mooring.kit import faults, options
from mooring.kit.endpoints import PREDEFINED, mode_network, parse_link
from mooring.kit.errors import Conflict, EngineError, InvalidParameter, NotFound, Unavailable
from mooring.kit.models.base import Done
from mooring.kit.models.container import (
    ContainerConfig,
    ContainerCreated,
    ContainerRecord,
    CreateContainer,
    HostConfig,
    NoteContainer,
    RenameContainer,
)
from mooring.kit.models.host import HostStart
from mooring.kit.models.image import ImageRecord
from mooring.kit.models.network import EndpointSettings, Progress

from . import states
from .engine import Engine
from .events import container_event
from .find_image import find_image
from .merge import command_line, merge
from .mounting import Mounting
from .mounting import resolve as resolve_mounts
from .naming import candidates, check_name
from .placement import choose
from .resolve import resolve
from .states import SECOND
from .volumes import VolumeHandlers
from .wiring import WiringHandlers

logger = logging.getLogger(__name__)

_CREATE_LIMIT = 60 * SECOND
"""A claim of a name may be taken away after twice this time, so a create ends before."""
_SHORT_ID = 12


class ContainerHandlers:
    """create, rename, note."""

    def __init__(self, engine: Engine, volumes: VolumeHandlers, wiring: WiringHandlers) -> None:
        self._engine = engine
        self._volumes = volumes
        self._wiring = wiring

    async def create(self, request: CreateContainer) -> ContainerCreated:
        """Create a container; NotFound for the image, Conflict for the name."""
        engine = self._engine
        # The same request makes the same container, however often it arrives.
        container_id = hashlib.sha256(f"container {request.request_id}".encode()).hexdigest()
        known = engine.containers.get(container_id)
        if known is not None:
            return ContainerCreated(container_id=container_id, revision=known.revision)
        if request.name:
            check_name(request.name.removeprefix("/"))
        warnings = options.check(request.config, request.host_config, networking=request.networking)
        image = find_image(engine, request.config.image)
        _check_platform(request, image)
        config = merge(request.config, image.config)
        host_config = self._join_others(request.host_config)
        path, arguments = command_line(config)
        begun = time.time_ns()
        node = self._node(image, host_config)
        mounting = resolve_mounts(engine, self._volumes, container_id, node, config, host_config)
        record = ContainerRecord(
            id=container_id,
            name="",
            node=node,
            created_ns=begun,
            image=request.config.image,
            image_id=image.id,
            platform=image.os,
            config=_with_hostname(config, host_config, container_id),
            host_config=host_config,
            networking=self._networking(host_config, request.networking),
            path=path,
            args=arguments,
            mounts=mounting.mounts,
            command_id=request.request_id,
        )
        with engine.holding(container_id):
            name, revision = await self._claim_name(request.name, container_id)
            faults.point("lifecycle.create.named")
            own = await self._mount(record, mounting, image, name, revision)
            record = states.advance(record, begun, name=name, name_revision=revision)
            record = states.advance(record, begun, ("create", {}))
            if time.time_ns() - begun > _CREATE_LIMIT:
                raise Unavailable("creating the container took too long, try again")
            try:
                row = await engine.containers.create(container_id, record)
            except Conflict:
                # A repetition of this very request was faster.
                row = await engine.containers.fetch(container_id)
            faults.point("lifecycle.create.recorded")
        if own:
            engine.tasks.spawn(self._volumes.settle(own), f"volumes of {container_id[:12]}")
        elif not record.mounts:
            # It is likely to be started next: most of that can be done by then.
            first = HostStart(record=row.record, image=image, run=row.record.run + 1)
            engine.tasks.spawn(engine.hosts.prepare(node, first), f"prepare {container_id[:12]}")
        return ContainerCreated(container_id=container_id, warnings=warnings, revision=row.revision)

    def _node(self, image: ImageRecord, host: HostConfig) -> str:
        """Where its named volumes are, or else wherever there is room."""
        named = [spec.partition(":")[0] for spec in host.binds or []]
        named += [mount.source for mount in host.mounts or [] if mount.type == "volume"]
        return self._volumes.node_of(filter(None, named)) or choose(
            self._engine.nodes.records(), image, self._engine.load
        )

    async def _mount(
        self, record: ContainerRecord, mounting: Mounting, image: ImageRecord, name: str,
        revision: int,
    ) -> list[str]:  # fmt: skip
        """Have what it mounts on its host, before there is a container; its own volumes."""
        needed = [m for m in mounting.mounts if m.type == "bind" and not m.create_source]
        if not mounting.volumes and not needed:
            return []
        try:
            return await self._volumes.attach(
                record.id, mounting.mounts, mounting.volumes, image, record.node
            )
        except Unavailable:
            raise
        except EngineError:
            await self._engine.names.release(name, record.id, revision)
            raise

    async def _claim_name(self, wanted: str, container_id: str) -> tuple[str, int]:
        names: Iterator[str] = iter([wanted.removeprefix("/")])
        if not wanted:
            names = (n for n in candidates(container_id) if n not in self._engine.by_name)
        for name in names:
            try:
                return name, await self._engine.names.claim(name, container_id)
            except Conflict:
                if wanted:
                    raise
        raise EngineError("there is no free name left")

    def _join_others(self, host: HostConfig) -> HostConfig:
        """`container:<name>` as `container:<id>`: names may change, and hosts know ids."""
        changes: dict[str, object] = {}
        for field in ("network_mode", "ipc_mode", "pid_mode"):
            mode: str = getattr(host, field)
            kind, _, other = mode.partition(":")
            if kind == "container" and other:
                name = other.removeprefix("/")
                found = self._engine.by_name.get(name) or self._only_match(name)
                if found is None:
                    # Not NotFound: clients take that for a missing image, and pull.
                    raise InvalidParameter(f"No such container: {other}")
                changes[field] = f"container:{found}"
        return host.model_copy(update=changes) if changes else host

    def _networking(
        self, host: HostConfig, given: dict[str, EndpointSettings]
    ) -> dict[str, EndpointSettings]:
        """What is asked for of each network, by its name; the one of the mode comes first.

        One that does not exist (yet) is found, or not, when the container is started.
        """
        found: dict[str, EndpointSettings] = {}
        if mode := mode_network(host.network_mode):
            found[self._network_name(mode)] = EndpointSettings()
        for name, settings in given.items():
            found[self._network_name(mode_network(name) or name)] = settings
        for link in host.links or []:
            target, _ = parse_link(link)
            if self._engine.by_name.get(target) is None and self._only_match(target) is None:
                # Not NotFound: clients take that for a missing image, and pull.
                raise InvalidParameter(
                    f"could not get container for {target}: No such container: {target}"
                )
        first = next(iter(found), "bridge")
        if host.links and first not in PREDEFINED and not found[first].links:
            # On a network of the user's a link is a name that only this container knows.
            found[first] = found[first].model_copy(update={"links": host.links})
        return found

    def _network_name(self, text: str) -> str:
        rows = [r for r in self._engine.networks.records() if r.progress is Progress.ACTIVE]
        if any(record.name == text for record in rows):
            return text
        matching = [record.name for record in rows if record.id.startswith(text)]
        return matching[0] if len(matching) == 1 else text

    def _only_match(self, prefix: str) -> str | None:
        found = [key for key in self._engine.by_name.values() if key.startswith(prefix)]
        return found[0] if len(found) == 1 else None

    async def rename(self, request: RenameContainer) -> Done:
        """Give a container another name; Conflict if it is taken."""
        engine = self._engine
        row = await resolve(engine, request.container, request.request_id)
        old, new = row.record.name, request.name.removeprefix("/")
        if row.record.command_id == request.request_id:
            # Renamed by this very request, and the replica died before it gave the name back.
            await engine.names.release(request.container.removeprefix("/"), row.key)
            await self._wiring.tell_name(row)
            return Done(revision=row.revision)
        if not new:
            raise InvalidParameter("Neither old nor new names may be empty")
        if new == old:
            raise InvalidParameter("Renaming a container with the same name as its current name")
        check_name(new)
        with engine.holding(row.key):
            # Claim, record, give back: at no moment does a name lead to a stranger.
            try:
                revision = await engine.names.claim(new, row.key)
            except Conflict as exc:
                raise Conflict(f"Error when allocating new name: {exc.message}") from exc
            faults.point("lifecycle.rename.claimed")
            claim = engine.claim(request.request_id)
            row = await engine.containers.change(
                row.key, lambda r: states.renamed(r, claim, new, revision)
            )
            faults.point("lifecycle.rename.recorded")
            await engine.names.release(old, row.key)
            await self._wiring.tell_name(row)
        return Done(revision=row.revision)

    async def note(self, request: NoteContainer) -> Done:
        """Publish an event that changes no state; answers when it is stored."""
        engine = self._engine
        row = await resolve(engine, request.container, request.request_id)
        event = container_event(
            row.record,
            (request.action, request.attributes),
            f"{row.key}.note.{request.request_id}",
            time.time_ns(),
        )
        engine.events.push(row.key, row.record.outbox)
        await engine.events.publish(row.key, event)
        return Done(revision=row.revision)


def _with_hostname(config: ContainerConfig, host: HostConfig, container_id: str) -> ContainerConfig:
    shared = host.network_mode == "host" or host.network_mode.startswith("container:")
    if config.hostname or shared or host.uts_mode == "host":
        return config
    return config.model_copy(update={"hostname": container_id[:_SHORT_ID]})


def _check_platform(request: CreateContainer, image: ImageRecord) -> None:
    if not request.platform:
        return
    wanted = request.platform.lower().split("/")
    actual = [image.os, image.architecture, image.variant]
    if len(wanted) == 1 and wanted[0] != image.os:
        actual = actual[1:]
    if any(w != a for w, a in zip(wanted, actual, strict=False)):
        has = "/".join(part for part in (image.os, image.architecture, image.variant) if part)
        raise NotFound(
            f"image with reference {request.config.image} was found but does not match the "
            f"specified platform: wanted {request.platform}, actual: {has}"
        )

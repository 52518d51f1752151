"""Volumes: create, remove, prune; each can be repeated, and finished by anybody.

    (nothing) ─→ creating ─→ ready ─→ removing ─→ (nothing)

A container that is being created claims its volumes in their records first: a removal that was
decided before fails its compare-and-set, and one decided later sees the claim. A claim counts as
long as a create may take; by then there is a container, or its tombstone, or there never will be.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Iterable, Sequence

from mooring.kit import faults
from mooring.kit.errors import Conflict, EngineError, NotFound, StaleRevision
from mooring.kit.models.base import Done
from mooring.kit.models.container import Event, MountPoint, Pruned
from mooring.kit.models.image import ImageRecord
from mooring.kit.models.volume import (
    CreateVolume,
    HostVolume,
    PrepareVolumes,
    PruneVolumes,
    RemoveVolume,
    VolumeCreated,
    VolumeRecord,
    VolumeState,
)
from mooring.kit.store import key_for
from mooring.kit.volumespecs import ANONYMOUS, LOCAL, check_driver, check_name, check_options

from .engine import Engine
from .labels import passes
from .placement import any_node
from .states import SECOND
from .table import Row
from .volume_users import VolumeUsers

logger = logging.getLogger(__name__)

CLAIM_AGE = 60 * SECOND
"""As long as a create may take (containers._CREATE_LIMIT) and a tombstone stays."""
_ABANDONED = 2 * CLAIM_AGE
"""After so long an anonymous volume without its container has none coming."""


class VolumeHandlers:
    """create, remove, prune; what containers need of volumes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._users = VolumeUsers(engine.containers)

    # --- create ---

    async def create(self, request: CreateVolume) -> VolumeCreated:
        """Create a volume, or find it: options of one that exists change nothing."""
        name = request.name
        anonymous = not name
        if anonymous:
            name = hashlib.sha256(f"volume {request.request_id}".encode()).hexdigest()
        check_driver(name, request.driver)
        check_name(name)
        check_options(name, request.options or {})
        labels = request.labels
        if anonymous:
            labels = {**(labels or {}), ANONYMOUS: ""}
        wanted = self.record(name, any_node(self._engine.nodes.records()), labels, request.options)
        with self._engine.holding(_held(name)):
            row = await self._begin(wanted)
            if row.record.state is VolumeState.CREATING:
                row = await self.finish_create(row)
        return VolumeCreated(volume=row.record, revision=row.revision)

    def record(
        self,
        name: str,
        node: str,
        labels: dict[str, str] | None = None,
        options: dict[str, str] | None = None,
    ) -> VolumeRecord:
        """A volume that is to be."""
        found = self._engine.nodes.get(node)
        state_dir = found.record.state_dir if found is not None else ""
        return VolumeRecord(
            name=name,
            node=node,
            mountpoint=f"{state_dir}/volumes/{name}/_data",
            driver=LOCAL,
            created_ns=time.time_ns(),
            labels=labels,
            options=options or None,
            owner=self._engine.owner,
        )

    async def _begin(self, wanted: VolumeRecord) -> Row[VolumeRecord]:
        """Its record, new or known; Conflict while it is being removed."""
        table, key = self._engine.volumes, key_for(wanted.name)
        known = table.get(key)
        if known is not None and known.record.state is VolumeState.READY:
            return known
        for _ in range(2):
            try:
                row = await table.create(key, wanted)
                faults.point("lifecycle.volume.recorded")
                return row
            except Conflict:
                pass
            with contextlib.suppress(NotFound):
                row = await table.fetch(key)
                if row.record.state is not VolumeState.REMOVING:
                    return row
                if await self._engine.abandoned(row.record.owner, _held(wanted.name)):
                    await self.finish_remove(row)
        raise Conflict(f"volume {wanted.name} is being removed, try again")

    async def finish_create(self, row: Row[VolumeRecord]) -> Row[VolumeRecord]:
        """Make it on its host and say so; a refusal takes the record back."""
        engine, record = self._engine, row.record
        request = PrepareVolumes(volumes=[HostVolume(name=record.name, options=record.options)])
        try:
            await engine.hosts.prepare_volumes(record.node, request)
        except EngineError as exc:
            if exc.kind != "unavailable":
                await self._take_back(row)
            raise
        faults.point("lifecycle.volume.made")
        return await self._finish_ready(row)

    async def _finish_ready(self, row: Row[VolumeRecord]) -> Row[VolumeRecord]:
        await self._publish(row.record, "create")
        return await self._engine.volumes.change(row.key, _ready)

    # --- with a container ---

    async def attach(
        self, container: str, mounts: Sequence[MountPoint], wanted: Sequence[VolumeRecord],
        image: ImageRecord, node: str,
    ) -> list[str]:  # fmt: skip
        """Have the volumes of a container that is being created, filled from its image.

        Returns the names of those that are its own; `settle` or `take_back` them.
        """
        engine, now = self._engine, time.time_ns()
        own: list[Row[VolumeRecord]] = []
        try:
            for record in wanted:
                await self._claim(record, container, now, own)
            request = PrepareVolumes(
                volumes=[HostVolume(name=r.name, options=r.options) for r in wanted],
                mounts=[mount for mount in mounts if mount.type in ("volume", "bind")],
                image=image,
            )
            await engine.hosts.prepare_volumes(node, request)
            faults.point("lifecycle.volume.prepared")
            for row in own:
                await self._publish(row.record, "create")
        except EngineError as exc:
            if exc.kind != "unavailable":
                await self.take_back([row.record.name for row in own])
                await self._unclaim(container, wanted)
            raise
        return [row.record.name for row in own]

    async def _claim(
        self, record: VolumeRecord, container: str, now: int, own: list[Row[VolumeRecord]]
    ) -> None:
        table, key = self._engine.volumes, key_for(record.name)
        record = record.model_copy(update={"claims": {container: now}})
        with self._engine.holding(_held(record.name)):
            row = await self._begin(record)
            if record.container:
                own.append(row)
                return
            if row.record.state is VolumeState.CREATING:
                row = await self.finish_create(row)
            if container not in row.record.claims:
                await table.change(key, lambda r: _claimed(r, container, now))

    async def _unclaim(self, container: str, volumes: Iterable[VolumeRecord]) -> None:
        for record in volumes:
            with contextlib.suppress(NotFound):
                await self._engine.volumes.change(
                    key_for(record.name), lambda r: _unclaimed(r, container)
                )

    def node_of(self, names: Iterable[str]) -> str:
        """The host that has one of these volumes; empty if none is known."""
        for name in names:
            row = self._engine.volumes.get(key_for(name))
            if row is not None:
                return row.record.node
        return ""

    def find(self, name: str) -> VolumeRecord | None:
        """A volume that is ready, as far as this replica knows."""
        row = self._engine.volumes.get(key_for(name))
        return row.record if row is not None else None

    async def settle(self, names: Iterable[str]) -> None:
        """The container of these anonymous volumes exists."""
        for name in names:
            with contextlib.suppress(NotFound):
                await self._engine.volumes.change(key_for(name), _ready)

    async def take_back(self, names: Iterable[str]) -> None:
        """The container of these anonymous volumes was not created after all."""
        for name in names:
            row = self._engine.volumes.get(key_for(name))
            if row is not None and row.record.state is VolumeState.CREATING:
                await self._take_back(row)

    async def _take_back(self, row: Row[VolumeRecord]) -> None:
        with contextlib.suppress(EngineError):
            await self._engine.hosts.remove_volume(row.record.node, row.record.name)
            await self._engine.volumes.delete(row.key)

    async def drop(self, names: Iterable[str]) -> None:
        """Remove the anonymous volumes of a removed container, unless another one uses them."""
        for name in names:
            with contextlib.suppress(NotFound, Conflict):
                await self._remove(name)

    # --- remove ---

    async def remove(self, request: RemoveVolume) -> Done:
        """Remove a volume; NotFound (unless forced), Conflict while a container has it."""
        try:
            return Done(revision=await self._remove(request.name))
        except NotFound:
            if request.force:
                return Done()
            raise

    async def _remove(self, name: str) -> int:
        engine, key = self._engine, key_for(name)
        with engine.holding(_held(name)):
            try:
                row = await engine.volumes.change(key, self._claim_removal)
            except NotFound:
                raise NotFound(f"get {name}: no such volume") from None
            faults.point("lifecycle.volume.claimed")
            return await self.finish_remove(row)

    def _claim_removal(self, record: VolumeRecord) -> VolumeRecord:
        if record.state is VolumeState.REMOVING:
            return record
        users = self._users.of(record.name, record.claims, time.time_ns() - CLAIM_AGE)
        if users:
            raise Conflict(f"remove {record.name}: volume is in use - [{', '.join(users)}]")
        return record.model_copy(
            update={"state": VolumeState.REMOVING, "owner": self._engine.owner}
        )

    async def finish_remove(self, row: Row[VolumeRecord]) -> int:
        """Delete it on its host, and then its record."""
        engine, record = self._engine, row.record
        await engine.hosts.remove_volume(record.node, record.name)
        faults.point("lifecycle.volume.unmade")
        await self._publish(record, "destroy")
        with contextlib.suppress(NotFound, StaleRevision):
            return await engine.volumes.delete(row.key, row.revision)
        return row.revision

    async def prune(self, request: PruneVolumes) -> Pruned:
        """Remove what no container uses and passes the filters."""
        engine, result = self._engine, Pruned()
        horizon = time.time_ns() - CLAIM_AGE
        chosen = [
            record
            for record in engine.volumes.records()
            if record.state is VolumeState.READY
            and (request.all or ANONYMOUS in (record.labels or {}))
            and passes(record.labels or {}, request.labels, request.labels_not)
            and not self._users.of(record.name, record.claims, horizon)
        ]
        for record in chosen:
            size = 0
            with contextlib.suppress(EngineError):
                sizes = await engine.hosts.measure_volumes(record.node, [record.name])
                size = max(0, sizes.get(record.name, 0))
            try:
                revision = await self._remove(record.name)
            except (NotFound, Conflict) as exc:
                logger.info("prune leaves volume %s: %s", record.name, exc)
                continue
            result.deleted.append(record.name)
            result.space_reclaimed += size
            result.revision = max(result.revision, revision)
        event = Event(
            id=f"prune.{request.request_id}",
            type="volume",
            action="prune",
            attributes={"reclaimed": str(result.space_reclaimed)},
            time_ns=time.time_ns(),
        )
        await engine.events.publish("volumes", event)
        return result

    async def _publish(self, record: VolumeRecord, action: str) -> None:
        event = Event(
            id=f"volume.{key_for(record.name)}.{record.created_ns}.{action}",
            type="volume",
            action=action,
            actor=record.name,
            attributes={"driver": record.driver},
            time_ns=time.time_ns(),
        )
        await self._engine.events.publish(f"volume {record.name}", event)

    # --- what was left ---

    async def look(self, now: int) -> None:
        """Finish what nobody carries out any more."""
        for row in self._engine.volumes.rows():
            record = row.record
            if record.state is VolumeState.READY or self._engine.is_held(_held(record.name)):
                continue
            with contextlib.suppress(EngineError):
                if record.container:
                    await self._look_at_anonymous(row, now)
                elif await self._engine.abandoned(record.owner, _held(record.name)):
                    with self._engine.holding(_held(record.name)):
                        await self._finish(row)

    async def _look_at_anonymous(self, row: Row[VolumeRecord], now: int) -> None:
        record = row.record
        if record.state is VolumeState.REMOVING:
            if await self._engine.abandoned(record.owner, _held(record.name)):
                await self._finish(row)
        elif self._engine.containers.get(record.container) is not None:
            await self.settle([record.name])
        elif now - record.created_ns > _ABANDONED:
            await self._take_back(row)

    async def _finish(self, row: Row[VolumeRecord]) -> None:
        logger.info("volume %s was left %s, finishing", row.record.name, row.record.state)
        if row.record.state is VolumeState.REMOVING:
            await self.finish_remove(row)
        else:
            await self.finish_create(row)


def _held(name: str) -> str:
    return f"volume {name}"


def _ready(record: VolumeRecord) -> VolumeRecord:
    if record.state is not VolumeState.CREATING:
        return record
    return record.model_copy(update={"state": VolumeState.READY, "owner": ""})


def _claimed(record: VolumeRecord, container: str, now: int) -> VolumeRecord:
    if record.state is VolumeState.REMOVING:
        raise Conflict(f"volume {record.name} is being removed, try again")
    claims = {key: at for key, at in record.claims.items() if at > now - CLAIM_AGE}
    return record.model_copy(update={"claims": {**claims, container: now}})


def _unclaimed(record: VolumeRecord, container: str) -> VolumeRecord:
    if container not in record.claims:
        return record
    claims = {key: at for key, at in record.claims.items() if key != container}
    return record.model_copy(update={"claims": claims})

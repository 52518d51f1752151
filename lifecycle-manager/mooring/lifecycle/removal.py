"""Removing containers: one, or all that have stopped."""

from __future__ import annotations

import contextlib
import logging

from mooring.kit import faults
from mooring.kit.errors import EngineError, NotFound, Unavailable
from mooring.kit.models.base import Done
from mooring.kit.models.container import (
    ContainerRecord,
    Event,
    PruneContainers,
    Pruned,
    RemoveContainer,
    State,
)

from . import states
from .endings import Endings
from .engine import Engine
from .labels import passes
from .pruning import Prunes
from .resolve import resolve
from .table import Row

logger = logging.getLogger(__name__)

_PRUNABLE = (State.CREATED, State.EXITED, State.DEAD)


class RemovalHandlers:
    """remove, prune."""

    def __init__(self, engine: Engine, endings: Endings) -> None:
        self._engine = engine
        self._endings = endings
        self._prunes = Prunes()

    async def remove(self, request: RemoveContainer) -> Done:
        """Remove a container; Conflict if it runs, unless forced: then it is killed."""
        row = await resolve(self._engine, request.container, request.request_id)
        row = await self._remove(
            row.key, request.request_id, force=request.force, volumes=request.volumes
        )
        return Done(revision=row.revision)

    async def _remove(
        self, key: str, command: str, *, force: bool, volumes: bool
    ) -> Row[ContainerRecord]:
        engine = self._engine
        with engine.holding(key):
            claim = engine.claim(command)
            row = await engine.containers.change(
                key, lambda r: states.claim_remove(r, claim, force=force, volumes=volumes)
            )
            faults.point("lifecycle.remove.claimed")
            return await self._endings.finish_remove(row)

    async def prune(self, request: PruneContainers) -> Pruned:
        """Remove what is stopped and passes the filters; Conflict while another prune runs."""
        with self._prunes.alone():
            return await self._prune(request)

    async def _prune(self, request: PruneContainers) -> Pruned:
        engine = self._engine
        result = Pruned()
        for row in engine.containers.rows():
            if not _is_prunable(row.record, request):
                continue
            size = await self._size(row.record)
            try:
                command = f"{request.request_id}.{row.key[:12]}"
                removed = await self._remove(row.key, command, force=False, volumes=False)
            except Unavailable:
                raise
            except EngineError as exc:
                logger.warning("prune leaves container %s: %s", row.key[:12], exc)
                continue
            result.deleted.append(row.key)
            result.space_reclaimed += size
            result.revision = max(result.revision, removed.revision)
        event = Event(
            id=f"prune.{request.request_id}",
            action="prune",
            attributes={"reclaimed": str(result.space_reclaimed)},
            time_ns=engine.claim("").now,
        )
        await engine.events.publish("prune", event)
        return result

    async def _size(self, record: ContainerRecord) -> int:
        with contextlib.suppress(EngineError, NotFound):
            return (await self._engine.hosts.size(record.node, record.id)).size_rw
        return 0


def _is_prunable(record: ContainerRecord, request: PruneContainers) -> bool:
    if record.state not in _PRUNABLE or record.restart_wanted:
        return False
    if request.until_ns is not None and record.created_ns >= request.until_ns:
        return False
    return passes(record.config.labels or {}, request.labels, request.labels_not)

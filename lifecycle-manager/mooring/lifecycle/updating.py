"""`docker update`: the host first, then the record, so that what is recorded is in force."""

from __future__ import annotations

from mooring.kit import faults
from mooring.kit.errors import EngineError, InvalidParameter, NotFound, Unavailable
from mooring.kit.models.container import ContainerRecord, HostConfig, State
from mooring.kit.models.host import HostPolicy, HostStart
from mooring.kit.models.update import ContainerUpdated, HostUpdate, UpdateContainer

from .engine import Engine
from .find_image import image_key
from .resolve import resolve
from .table import Row
from .updates import check_updatable, merged, updated

_START_SECONDS = 60.0
_RUNNING = frozenset({State.RUNNING, State.PAUSED, State.STOPPING})


class UpdateHandlers:
    """update."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def update(self, request: UpdateContainer) -> ContainerUpdated:
        """Change limits and the restart policy, of what runs at once."""
        engine = self._engine
        row = await resolve(engine, request.container, request.request_id)
        with engine.holding(row.key):
            asked, warnings, applied = request.host_config, [], 0
            while True:
                # Started with the limits as they are, it would run without the new ones.
                row = await self._settled(row)
                run = row.record.run if row.record.state in _RUNNING else 0
                if run and run != applied:
                    warnings = await self._apply(row.record, asked)
                    applied = run
                    faults.point("lifecycle.update.hosted")
                row, more = await self._record(row.key, request.request_id, asked)
                faults.point("lifecycle.update.recorded")
                if row.record.state is not State.STARTING and (
                    row.record.state not in _RUNNING or row.record.run == applied
                ):
                    break
            await self._tell_policy(row.record, asked)
            return ContainerUpdated(revision=row.revision, warnings=[*warnings, *more])

    async def _settled(self, row: Row[ContainerRecord]) -> Row[ContainerRecord]:
        try:
            found = await self._engine.containers.until(
                row.key, lambda r: r is None or r.state is not State.STARTING, _START_SECONDS
            )
        except TimeoutError:
            raise Unavailable(f"container {row.record.name} is being started") from None
        if found is None:
            raise NotFound(f"No such container: {row.record.name}")
        return found

    async def _apply(self, record: ContainerRecord, asked: HostConfig) -> list[str]:
        check_updatable(record)
        config = merged(record.host_config, asked)
        update = HostUpdate(id=record.id, run=record.run, host_config=config)
        try:
            return (await self._engine.hosts.update(record.node, update)).warnings
        except NotFound:
            return []  # It has just ended: the next run begins with the new limits.
        except InvalidParameter as exc:
            message = f"Cannot update container {record.id}: {exc.message}"
            raise InvalidParameter(message) from exc
        except Unavailable:
            raise
        except EngineError as exc:
            raise EngineError(f"Cannot update container {record.id}: {exc.message}") from exc

    async def _record(
        self, key: str, command: str, asked: HostConfig
    ) -> tuple[Row[ContainerRecord], list[str]]:
        claim, warnings = self._engine.claim(command), list[str]()

        def decide(record: ContainerRecord) -> ContainerRecord:
            node = self._engine.nodes.get(record.node)
            changed, warnings[:] = updated(record, claim, asked, node.record.cpus if node else 0)
            return changed

        return await self._engine.containers.change(key, decide), warnings

    async def _tell_policy(self, record: ContainerRecord, asked: HostConfig) -> None:
        """The host restarts by itself: it has to know by which policy, and with what limits.

        And whoever has a memory limit now is watched.
        """
        policy = record.host_config.restart_policy
        restarts = policy.name not in ("", "no")
        if not record.run or not (restarts or asked.restart_policy.name or asked.memory):
            return
        start = None
        if restarts:
            try:
                image = (await self._engine.images.find(image_key(record.image_id))).record
            except NotFound:
                # It could not be started again either.
                return
            bare = record.model_copy(update={"outbox": []})
            start = HostStart(record=bare, image=image, run=record.run)
        await self._engine.hosts.policy(
            record.node, HostPolicy(id=record.id, policy=policy, start=start)
        )

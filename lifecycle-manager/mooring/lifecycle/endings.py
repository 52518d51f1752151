"""What follows the end of a run: recording it, giving back what it held, removing containers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from mooring.kit import faults
from mooring.kit.errors import Conflict, EngineError, NotFound, Unavailable
from mooring.kit.models.container import ContainerRecord, State
from mooring.kit.models.host import HostStop, RunTruth

from . import exits, states
from .engine import Engine
from .exits import Exit
from .states import SIGKILL
from .table import Row
from .volumes import VolumeHandlers

logger = logging.getLogger(__name__)

_READERS_GRACE = 3.0
"""Seconds that the log of a container that removes itself is kept for those who read it: an agent
holds it open for them, and one that is killed is to be back by then."""
_REMOVAL_GRACE = 0.1
"""Seconds that what a run held is kept for a removal: an address, a cgroup, a directory."""
_AT_ONCE = 8
"""How many removed containers are cleared away at the same time in the background."""
_KILL_ROUNDS = 3
_EXIT_WAIT = 20.0
_SECOND_OPINION = 2.0
"""Seconds to wait for the fact before the host is asked."""


class Endings:
    """Exits are applied here, whether a fact, a report or a stop brought them."""

    def __init__(self, engine: Engine, volumes: VolumeHandlers) -> None:
        self._engine = engine
        self._volumes = volumes
        self._released: dict[str, int] = {}
        self._cleared: set[str] = set()
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def apply(self, key: str, exit: Exit) -> None:
        """Record that a run has ended; does nothing if that is recorded. NotFound."""
        engine = self._engine
        claim = engine.claim("")
        row = await engine.containers.change(key, lambda r: exits.exited(r, exit, claim))
        faults.point("lifecycle.exit.applied")
        record = row.record
        if record.run != exit.run:
            return
        # Also for an exit that was known: who recorded it may have died right after.
        engine.tasks.spawn(self._release(record), f"release {key[:12]}")

    async def _release(self, record: ContainerRecord) -> None:
        """Give back what a run held, and later the files of what is removed with it."""
        removed = record.state is State.REMOVED
        if not removed:
            # Whoever waited for the end often removes it at once, and that gives back everything.
            await asyncio.sleep(_REMOVAL_GRACE)
            row = self._engine.containers.get(record.id)
            if row is None or row.record.state is State.REMOVED:
                return
        await self.release(record)
        if removed:
            # Nobody reads those any more, unlike its log.
            await self._volumes.drop(record.drop_volumes)
        if removed and record.owner == self._engine.owner:
            await asyncio.sleep(_READERS_GRACE)
            await self.clear(record)

    async def release(self, record: ContainerRecord) -> None:
        """The run of this record is over: its network and run directory may go."""
        await self._engine.hosts.release(record.node, record.id, record.run)
        self._released[record.id] = record.run

    def is_released(self, key: str, run: int) -> bool:
        """Whether this replica has released the run."""
        return self._released.get(key, 0) >= run

    async def wait(
        self,
        row: Row[ContainerRecord],
        done: Callable[[ContainerRecord], bool],
        timeout: float,
    ) -> Row[ContainerRecord]:
        """Wait for an exit that the host has announced; the newest row, done or not."""
        table = self._engine.containers
        predicate = _gone_or(done)
        for patience in (_SECOND_OPINION, timeout - _SECOND_OPINION):
            try:
                return await table.until(row.key, predicate, patience) or row
            except TimeoutError:
                with contextlib.suppress(EngineError):
                    await self.ask(row.record)
        return table.get(row.key) or row

    async def ask(self, record: ContainerRecord) -> None:
        """Ask the host about one container, and record an exit that was missed.

        That the host knows nothing proves nothing: the fact may be on its way. So are those about
        the runs before the last one, which the host tells nothing of: they come first.
        """
        report = await self._engine.hosts.report(record.node)
        truth = next((t for t in report.containers if t.id == record.id), None)
        row = self._engine.containers.get(record.id)
        seen = row.record if row else record
        skips = truth is not None and truth.run > seen.run + (not seen.pid)
        if truth is not None and not truth.running and not skips:
            await self.apply(record.id, exit_of(truth))

    # --- removing ---

    async def finish_remove(self, row: Row[ContainerRecord]) -> Row[ContainerRecord]:
        """Carry out a claimed removal, or the rest of it; can be repeated."""
        engine = self._engine
        if row.record.state is State.REMOVING:
            row = await self._kill_first(row)
            claim = engine.claim("")
            row = await engine.containers.change(row.key, lambda r: states.removed(r, claim))
        faults.point("lifecycle.remove.recorded")
        # The tombstone says that this is to be done; it is done later if the host is away.
        with contextlib.suppress(Unavailable):
            await self.clear(row.record)
        return row

    def clear_in_background(self, record: ContainerRecord) -> None:
        """Delete what a removed container left, without anybody waiting for it."""
        self._engine.tasks.spawn(self._clear_held(record), f"clear {record.id[:12]}")

    async def _clear_held(self, record: ContainerRecord) -> None:
        async with self._slots:
            if not self.is_cleared(record.id):
                await self.clear(record)

    async def clear(self, record: ContainerRecord) -> None:
        """Delete what a removed container left on its host; its name and execs follow."""
        engine = self._engine
        with engine.holding(record.id):
            try:
                await engine.hosts.remove(record.node, record.id)
            except Conflict:
                # It runs after all: a start that nobody knew the end of.
                await self._kill(record)
                await engine.hosts.remove(record.node, record.id)
        faults.point("lifecycle.remove.hosted")
        await self._volumes.drop(record.drop_volumes)
        engine.tasks.spawn(self._forget(record), f"forget {record.id[:12]}")

    async def _forget(self, record: ContainerRecord) -> None:
        engine = self._engine
        with engine.holding(record.id):
            await engine.names.release(record.name, record.id, record.name_revision)
            for exec_id in list(engine.execs_of.get(record.id, {})):
                await engine.execs.delete(exec_id)
                engine.events.forget(exec_id)
            self._cleared.add(record.id)
            self._released.pop(record.id, None)
        faults.point("lifecycle.remove.cleared")

    def is_cleared(self, key: str) -> bool:
        """Whether this replica knows that nothing is left of a removed container."""
        return key in self._cleared

    def forget(self, key: str) -> None:
        """Its tombstone is gone."""
        self._cleared.discard(key)
        self._released.pop(key, None)

    async def _kill_first(self, row: Row[ContainerRecord]) -> Row[ContainerRecord]:
        for _ in range(_KILL_ROUNDS):
            record = row.record
            may_run = record.resume_state in (State.STARTING, State.RESTARTING)
            if not record.pid and not may_run:
                return row
            await self._kill(record)
            if not record.pid:
                return self._engine.containers.get(row.key) or row
            # The host may have restarted it in between: then there is another run to kill.
            row = await self.wait(row, lambda r: r.pid == 0, _EXIT_WAIT)
        if row.record.pid:
            raise EngineError(
                f'cannot remove container "/{row.record.name}": could not kill container: '
                "tried to kill container, but did not receive an exit event"
            )
        return row

    async def _kill(self, record: ContainerRecord) -> None:
        request = HostStop(id=record.id, signal=SIGKILL, timeout=1)
        with contextlib.suppress(NotFound, Conflict):
            await self._engine.hosts.stop(record.node, request)


def exit_of(truth: RunTruth) -> Exit:
    """What a host's report says of a run that has ended."""
    return Exit(
        truth.run,
        truth.exit_code,
        truth.started_ns,
        truth.finished_ns,
        truth.oom_killed,
        truth.error,
        truth.restarting,
    )


def _gone_or(
    done: Callable[[ContainerRecord], bool],
) -> Callable[[ContainerRecord | None], bool]:
    return lambda record: record is None or done(record)

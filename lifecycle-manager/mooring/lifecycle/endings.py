"""What follows the end of a run: recording it, giving back what it held, removing containers."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from mooring.kit import faults
from mooring.kit.errors import Conflict, EngineError, NotFound
from mooring.kit.models.container import ContainerRecord, State
from mooring.kit.models.host import HostContainer, HostStop, RunTruth

from . import states
from .engine import Engine
from .states import SIGKILL, Exit
from .table import Row

logger = logging.getLogger(__name__)

_KILL_ROUNDS = 3
_EXIT_WAIT = 20.0
_SECOND_OPINION = 2.0
"""Seconds to wait for the fact before the host is asked."""


class Endings:
    """Exits are applied here, whether a fact, a report or a stop brought them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def apply(self, key: str, exit: Exit) -> None:
        """Record that a run has ended; does nothing if that is recorded. NotFound."""
        engine = self._engine
        claim = engine.claim("")
        before: list[ContainerRecord] = []

        def decide(record: ContainerRecord) -> ContainerRecord:
            before[:] = [record]
            return states.exited(record, exit, claim)

        row = await engine.containers.change(key, decide)
        faults.point("lifecycle.exit.applied")
        record, was = row.record, before[0].state
        if record.run != exit.run:
            return
        if record.state is State.REMOVING and was is not State.REMOVING:
            if record.owner == engine.owner:
                self.remove_in_background(row)
        elif was not in (State.REMOVING, State.REMOVED):
            # Again for an exit that was known: who recorded it may have died right after.
            engine.tasks.spawn(
                engine.hosts.release(record.node, key, exit.run), f"release {key[:12]}"
            )

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

        That the host knows nothing proves nothing: the fact may be on its way.
        """
        report = await self._engine.hosts.report(record.node)
        truth = next((t for t in report.containers if t.id == record.id), None)
        if truth is not None and not truth.running:
            await self.apply(record.id, exit_of(truth))

    # --- removing ---

    def remove_in_background(self, row: Row[ContainerRecord]) -> None:
        """Carry out a removal that nobody waits for."""
        self._engine.tasks.spawn(self._remove_held(row), f"remove {row.key[:12]}")

    async def _remove_held(self, row: Row[ContainerRecord]) -> None:
        with self._engine.holding(row.key):
            await self.finish_remove(row)

    async def finish_remove(self, row: Row[ContainerRecord]) -> Row[ContainerRecord]:
        """Carry out a claimed removal; can be repeated."""
        engine = self._engine
        if row.record.state is State.REMOVED:
            return row
        row = await self._kill_first(row)
        record = row.record
        await engine.hosts.remove(record.node, record.id)
        faults.point("lifecycle.remove.hosted")
        now = engine.claim("").now
        row = await engine.containers.change(
            row.key, lambda r: states.removed(r, engine.owner, now)
        )
        faults.point("lifecycle.remove.recorded")
        engine.tasks.spawn(self._clean_up(record), f"clean up after {record.id[:12]}")
        return row

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
        hosts = self._engine.hosts
        if record.resume_state is State.PAUSED:
            with contextlib.suppress(EngineError):
                await hosts.unpause(record.node, HostContainer(id=record.id))
        request = HostStop(id=record.id, signal=SIGKILL, timeout=1)
        with contextlib.suppress(NotFound, Conflict):
            await hosts.stop(record.node, request)

    async def _clean_up(self, record: ContainerRecord) -> None:
        engine = self._engine
        await engine.names.release(record.name, record.id, record.name_revision)
        for exec_id in list(engine.execs_of.get(record.id, {})):
            await engine.execs.delete(exec_id)
            engine.events.forget(exec_id)


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

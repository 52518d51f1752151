"""Finding what was left undone, and what the hosts know better, and putting it right.

Every few seconds each replica looks at its copy of the records. A transition that nobody
carries out any more is carried out here; events that are not known to be stored are published
again; claims and tombstones that have served are deleted. At the start, and now and then, the
hosts say what is there, and a difference that two reports in a row confirm is recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from typing import NamedTuple

from mooring.kit.errors import EngineError, StaleRevision, Unavailable
from mooring.kit.models.container import ContainerRecord, State
from mooring.kit.models.exec import ExecRecord, ExecState
from mooring.kit.models.host import HostStop, RunTruth
from mooring.kit.models.image import ImageChange

from . import exits, states
from .differences import Action, difference
from .endings import Endings, exit_of
from .engine import Engine
from .execs import ExecHandlers
from .exits import Exit
from .images import ImageHandlers
from .networks import NetworkHandlers
from .outboxes import Outboxes
from .running import RunningHandlers
from .states import SECOND, TRANSITIONS
from .table import Row
from .volumes import VolumeHandlers
from .wiring import WiringHandlers

logger = logging.getLogger(__name__)

INTERVAL = 2.0
"""Seconds between two looks at the records."""
_REPORTS_EVERY = 15
"""Looks between two reports of the hosts, when nothing is amiss."""
_GRACE = SECOND
"""A transition younger than this is surely being carried out."""
_LOST_AFTER = 10.0
"""Seconds that an exit which the host knows nothing of may still be on its way as a fact."""
_SKIPPED_AFTER = 30.0
"""Seconds until the facts about a run have surely come after which the host has a later one."""
_PAUSED_AFTER = 5.0
"""Seconds until a command whose replica has died has surely come again, and is recorded by it."""
_CLEARING = 5 * SECOND
"""How long the replica that removed a container may take to clear away what it left."""
_EXEC_GRACE = 10 * SECOND
_AT_ONCE = 16
"""How many transitions are finished at the same time."""


class Suspect(NamedTuple):
    """A difference that one report has shown; `since` is monotonic, in seconds."""

    revision: int
    action: Action
    since: float


class Reconciler:
    """One to a replica; several replicas may do the same thing at once, and it is done once."""

    def __init__(
        self,
        engine: Engine,
        endings: Endings,
        running: RunningHandlers,
        execs: ExecHandlers,
        images: ImageHandlers,
        networks: NetworkHandlers,
        wiring: WiringHandlers,
        volumes: VolumeHandlers,
    ) -> None:
        self._engine = engine
        self._endings = endings
        self._running = running
        self._execs = execs
        self._images = images
        self._networks = networks
        self._wiring = wiring
        self._volumes = volumes
        self._outboxes = Outboxes(engine)
        self._suspects: dict[str, Suspect] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """For ever."""
        await self._outboxes.recover()
        looks = 0
        while True:
            try:
                await self.look(ask_hosts=looks % _REPORTS_EVERY == 0 or bool(self._suspects))
            except Exception:
                # One record that can't be handled must not end the care for all others.
                logger.exception("reconciling failed, trying again")
            looks += 1
            # Replicas that were started together should not stay in step.
            await asyncio.sleep(INTERVAL * random.uniform(0.8, 1.2))

    async def look(self, *, ask_hosts: bool = True) -> None:
        """One look at everything."""
        now = time.time_ns()
        for row in self._engine.containers.rows():
            if row.record.state is State.REMOVED:
                await self._look_at_tombstone(row, now)
            elif _is_transition(row.record):
                await self._take_over(row, now)
        for execution in self._engine.execs.rows():
            if execution.record.state in (ExecState.STARTING, ExecState.RUNNING):
                await self._look_at_exec(execution, now)
        for change in self._engine.changes.rows():
            await self._finish_change(change, now)
        await self._networks.look(now)
        await self._wiring.look()
        await self._images.collect()
        await self._volumes.look(now)
        await self._outboxes.look(now)
        if ask_hosts:
            await self._engine.names.sweep()
            await self.compare_with_hosts()

    # --- transitions ---

    async def _take_over(self, row: Row[ContainerRecord], now: int) -> None:
        engine, record = self._engine, row.record
        if engine.is_held(row.key) or not _is_old_enough(record, now, engine.owner):
            return
        if not _is_overdue(record, now) and not await engine.abandoned(record.owner, row.key):
            return
        engine.tasks.spawn(self._finish(row), f"finish {record.state} of {row.key[:12]}")

    async def _finish(self, row: Row[ContainerRecord]) -> None:
        engine, record = self._engine, row.record
        with engine.holding(row.key):
            async with self._slots:
                current = engine.containers.get(row.key)
                if current is None or current.revision != row.revision:
                    return
                logger.info("container %s was left %s, finishing", row.key[:12], record.state)
                try:
                    await self._finish_held(row)
                except Unavailable as exc:
                    await self._give_up_if_overdue(row, exc)

    async def _finish_held(self, row: Row[ContainerRecord]) -> None:
        match row.record.state:
            case State.STARTING:
                await self._running.finish_start(row)
            case State.STOPPING:
                row = await self._running.finish_stop(row)
                if row.record.restart_wanted:
                    await self._running.finish_restart(row)
            case State.EXITED | State.CREATED:
                await self._running.finish_restart(row)
            case State.REMOVING:
                await self._endings.finish_remove(row)

    async def _give_up_if_overdue(self, row: Row[ContainerRecord], why: Unavailable) -> None:
        engine, record = self._engine, row.record
        if record.state is not State.STARTING or not _is_overdue(record, time.time_ns()):
            raise why
        run, claim = record.run, engine.claim("")
        await engine.containers.change(row.key, lambda r: states.start_given_up(r, run, claim))
        logger.warning("starting %s was given up: %s", row.key[:12], why)

    async def _look_at_exec(self, row: Row[ExecRecord], now: int) -> None:
        engine, record = self._engine, row.record
        container = engine.containers.get(record.container)
        if container is None or container.record.state is State.REMOVED:
            return
        ended = container.record.run != record.run or not container.record.pid
        if ended and container.record.finished_ns + _EXEC_GRACE < now:
            # It cannot have outlived its container, and no fact has said how it ended.
            with contextlib.suppress(EngineError):
                await self._execs.exited(row.key, 128 + states.SIGKILL, 0)
        elif record.state is ExecState.RUNNING or engine.is_held(row.key):
            return
        elif await engine.abandoned(record.owner, row.key):
            engine.tasks.spawn(self._execs.finish(row), f"finish exec {row.key[:12]}")

    async def _finish_change(self, row: Row[ImageChange], now: int) -> None:
        change = row.record
        if now - change.decided_ns < _GRACE and change.owner != self._engine.owner:
            return
        if self._engine.is_held(row.key):
            return
        if change.done_ns:
            if now - change.done_ns > states.TOMBSTONE_AGE:
                await self._engine.changes.delete(row.key)
            return
        if await self._engine.abandoned(change.owner, row.key):
            with self._engine.holding(row.key), contextlib.suppress(EngineError):
                await self._images.finish(row)

    # --- tombstones ---

    async def _look_at_tombstone(self, row: Row[ContainerRecord], now: int) -> None:
        engine, record = self._engine, row.record
        old = record.deadline_ns < now
        if not self._endings.is_cleared(row.key):
            fresh = now - record.deadline_ns + states.TOMBSTONE_AGE < _CLEARING
            if engine.is_held(row.key) or (fresh and record.owner == engine.owner):
                return
            if old or await engine.abandoned(record.owner, row.key):
                self._endings.clear_in_background(record)
        elif old and all(engine.events.is_stored(event) for event in record.outbox):
            with contextlib.suppress(StaleRevision):
                await engine.containers.delete(row.key, row.revision)
            engine.events.forget(row.key)
            self._endings.forget(row.key)

    # --- the hosts ---

    async def compare_with_hosts(self) -> None:
        """Ask every host what is there; act on differences that were there last time too."""
        engine = self._engine
        suspects: dict[str, Suspect] = {}
        for node in engine.nodes.records():
            before = {row.key: row for row in engine.containers.rows()}
            try:
                report = await engine.hosts.report(node.id)
            except Unavailable as exc:
                logger.info("no report: %s", exc)
                continue
            if not report.complete:
                continue
            truths = {truth.id: truth for truth in report.containers}
            for key, row in before.items():
                if row.record.node == node.id:
                    await self._compare(row, truths.get(key), suspects)
        self._suspects = suspects

    async def _compare(
        self,
        row: Row[ContainerRecord],
        truth: RunTruth | None,
        suspects: dict[str, Suspect],
    ) -> None:
        action = difference(row.record, truth)
        if action is Action.RELEASE and self._endings.is_released(row.key, row.record.run):
            return
        current = self._engine.containers.get(row.key)
        if action is Action.NONE or current is None or current.revision != row.revision:
            return
        seen = self._suspects.get(row.key)
        if seen is None or (seen.revision, seen.action) != (row.revision, action):
            suspects[row.key] = Suspect(row.revision, action, time.monotonic())
        elif time.monotonic() - seen.since < _patience(action, row.record, truth):
            suspects[row.key] = seen
        else:
            logger.info("container %s: the host says otherwise: %s", row.key[:12], action)
            with contextlib.suppress(EngineError):
                await self._act(row.key, row.record, truth, action)

    async def _act(
        self, key: str, record: ContainerRecord, truth: RunTruth | None, action: Action
    ) -> None:
        engine, now = self._engine, time.time_ns()
        match action, truth:
            case Action.LOST, _:
                await self._endings.apply(key, Exit(record.run, None, 0, 0, error=exits.LOST))
            case Action.EXITED, RunTruth():
                await self._endings.apply(key, exit_of(truth))
            case Action.STARTED, RunTruth():
                await engine.containers.change(
                    key,
                    lambda r: exits.started_by_host(
                        r, truth.run, truth.pid, truth.started_ns, 0, record.network, now
                    ),
                )
            case Action.PAUSED, _:
                await engine.containers.change(key, lambda r: states.paused(r, "", now))
            case Action.UNPAUSED, _:
                await engine.containers.change(key, lambda r: states.unpaused(r, "", now))
            case Action.RELEASE, _:
                await self._endings.release(record)
            case Action.KILL, RunTruth():
                stop = HostStop(id=key, run=truth.run, signal=states.SIGKILL, timeout=1)
                await engine.hosts.stop(record.node, stop)


def _patience(action: Action, record: ContainerRecord, truth: RunTruth | None) -> float:
    """Seconds that a difference must have lasted."""
    if truth is not None and record.pid and truth.run > record.run:
        # The facts about the run before are on their way: a report knows nothing of its end.
        return _SKIPPED_AFTER
    match action:
        case Action.LOST:
            return _LOST_AFTER
        case Action.PAUSED | Action.UNPAUSED:
            return _PAUSED_AFTER
    return 0.0


def _is_transition(record: ContainerRecord) -> bool:
    return record.state in TRANSITIONS or (
        record.restart_wanted and record.state in (State.EXITED, State.CREATED)
    )


def _is_overdue(record: ContainerRecord, now: int) -> bool:
    return 0 < record.deadline_ns < now


def _is_old_enough(record: ContainerRecord, now: int, me: str) -> bool:
    if record.owner == me or not record.outbox:
        return True
    return now - record.outbox[-1].time_ns > _GRACE

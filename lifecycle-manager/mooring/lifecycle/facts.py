"""Facts from the hosts: applied once, in an order that makes sense, however they arrive."""

from __future__ import annotations

import contextlib
import logging
import time

from mooring.kit import subjects
from mooring.kit.errors import NotFound, Unavailable
from mooring.kit.models.container import ContainerRecord, Health, State
from mooring.kit.models.host import (
    ContainerExited,
    ContainerOom,
    ContainerStarted,
    ExecExited,
    HealthChecked,
    NodeRecord,
)
from mooring.kit.models.network import BridgeReady

from . import exits, states
from .endings import Endings
from .engine import Engine
from .execs import ExecHandlers
from .exits import Exit
from .networks import NetworkHandlers
from .states import SECOND

logger = logging.getLogger(__name__)

_ORDER_WAIT = 2.0
"""Seconds that what is told of a run waits for the end of the one before to be recorded."""
_ORDER_LIMIT = 60 * SECOND
_HEALTH_LOG = 5
"""Docker's: the last five results of a health check are kept."""


class Facts:
    """The consumer of the facts stream; a handler that raises gets its fact again."""

    def __init__(
        self,
        engine: Engine,
        endings: Endings,
        execs: ExecHandlers,
        networks: NetworkHandlers,
    ) -> None:
        self._engine = engine
        self._networks = networks
        self._endings = endings
        self._execs = execs

    async def handle(self, subject: str, data: bytes) -> None:
        """Apply one fact; one about something that does not exist is dropped."""
        kind = subject.split(".", 3)[3]
        try:
            await self._apply(kind, data)
        except NotFound:
            logger.info("a fact about what does not exist (any more): %s", subject)
        except ValueError as exc:
            # Delivering it again would not make it readable.
            logger.error("a fact that cannot be read: %s: %s", subject, exc)

    async def _apply(self, kind: str, data: bytes) -> None:
        match kind:
            case subjects.FACT_EXITED:
                await self._exited(ContainerExited.unpack(data))
            case subjects.FACT_STARTED:
                await self._started(ContainerStarted.unpack(data))
            case subjects.FACT_OOM:
                await self._oom(ContainerOom.unpack(data))
            case subjects.FACT_HEALTH:
                await self._health(HealthChecked.unpack(data))
            case subjects.FACT_EXEC_EXITED:
                fact = ExecExited.unpack(data)
                await self._execs.exited(fact.id, fact.exit_code, fact.pid)
            case subjects.FACT_NODE:
                node = NodeRecord.unpack(data)
                await self._engine.nodes.put(node.id, node)
            case subjects.FACT_BRIDGE:
                await self._networks.bridge_ready(BridgeReady.unpack(data))
            case _:
                logger.error("a fact of an unknown kind: %s", kind)

    async def _exited(self, fact: ContainerExited) -> None:
        exit = Exit(
            fact.run,
            fact.exit_code,
            fact.started_ns,
            fact.finished_ns,
            fact.oom_killed,
            fact.error,
            fact.restarting,
            fact.restart_count,
        )
        try:
            await self._in_order(fact)
            await self._endings.apply(fact.id, exit)
        except NotFound:
            await self._engine.hosts.release(fact.node, fact.id, fact.run)

    async def _started(self, fact: ContainerStarted) -> None:
        await self._in_order(fact)
        now = time.time_ns()
        await self._engine.containers.change(
            fact.id,
            lambda r: exits.started_by_host(
                r, fact.run, fact.pid, fact.started_ns, fact.restart_count, fact.network, now
            ),
        )

    async def _in_order(self, fact: ContainerStarted | ContainerExited) -> None:
        """What is told of the runs before is on its way, perhaps at another replica: let it pass.

        Also before the end of this one: a record that has that takes no end of an earlier run.
        Each run has been told before the next one began, and its number is in the record unless
        it was started by its policy: so none is skipped but where facts were lost.
        """
        row = await self._engine.containers.find(fact.id)
        if not _awaits_exit(row.record, fact.run):
            return
        with contextlib.suppress(TimeoutError):
            await self._engine.containers.until(
                fact.id, lambda r: r is None or not _awaits_exit(r, fact.run), _ORDER_WAIT
            )
            return
        row = await self._engine.containers.fetch(fact.id)
        if _awaits_exit(row.record, fact.run) and time.time_ns() - fact.time_ns < _ORDER_LIMIT:
            raise Unavailable(f"run {row.record.run} of {fact.id[:12]} has not ended yet")

    async def _oom(self, fact: ContainerOom) -> None:
        now = time.time_ns()

        def decide(record: ContainerRecord) -> ContainerRecord:
            if record.run != fact.run or fact.kills <= record.oom_kills or not record.pid:
                return record
            told = {"oom_killed": True, "oom_kills": fact.kills}
            return states.advance(record, now, ("oom", {}), **told)

        await self._engine.containers.change(fact.id, decide)

    async def _health(self, fact: HealthChecked) -> None:
        now = time.time_ns()
        await self._engine.containers.change(fact.id, lambda r: checked(r, fact, now))


def checked(record: ContainerRecord, fact: HealthChecked, now: int) -> ContainerRecord:
    """With the result of a health check; an event if the verdict has changed."""
    if record.run != fact.run or record.state not in (State.RUNNING, State.PAUSED):
        return record
    known = record.health or Health()
    if any(result.start_ns == fact.result.start_ns for result in known.log):
        return record
    health = Health(
        status=fact.status,
        failing_streak=fact.failing_streak,
        log=[*known.log, fact.result][-_HEALTH_LOG:],
    )
    if fact.status == known.status:
        return states.advance(record, now, health=health)
    return states.advance(record, now, (f"health_status: {fact.status}", {}), health=health)


def _awaits_exit(record: ContainerRecord, run: int) -> bool:
    if record.state is State.REMOVED or record.run >= run:
        return False
    return record.run < run - 1 or record.pid != 0 or record.state is State.STARTING

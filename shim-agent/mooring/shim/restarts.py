"""Restarts by policy: wait out the back-off, have the worker start the next run, tell everyone.

A pending restart is in the policy file, time and all: an agent that starts finds it there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace

from mooring.kit import faults, log, subjects
from mooring.kit.bus import Bus
from mooring.kit.errors import EngineError, Unavailable
from mooring.kit.models.host import (
    ContainerExited,
    ContainerStarted,
    HostRestart,
    HostStarted,
)

from .facts import Facts
from .policies import Policies, Policy
from .rundir import ExitRecord
from .runs import Container
from .work import Work

logger = logging.getLogger(__name__)

WORKER_TIMEOUT = 30.0
"""Seconds until a worker that does not answer is asked again."""


class Restart:
    """One container's next start: first it waits, then it is under way, then it is done."""

    __slots__ = ("done", "run", "starting", "task")

    def __init__(self, run: int) -> None:
        self.run = run
        self.starting = False
        self.done = asyncio.Event()
        self.task: asyncio.Task[Policy | None] | None = None


class Restarts:
    """The restarts of this host that are pending."""

    def __init__(self, bus: Bus, facts: Facts, policies: Policies, work: Work) -> None:
        self._bus = bus
        self._facts = facts
        self._node = facts.node
        self._policies = policies
        self._work = work

    def schedule(self, container: Container, policy: Policy) -> None:
        """Start the container again at `policy.next_ns`, unless it was stopped meanwhile.

        Between a decision and its restart the exit is told, for as long as that takes: a stop that
        came then found no restart to call off.
        """
        if container.restart is not None or self._policies.read(container.id).stopped:
            return
        restart = Restart(policy.run + 1)
        restart.task = self._work.start(
            self._restart(container, restart, policy), name=f"restart {container.id}"
        )
        if restart.task is None:
            return
        container.restart = restart

        def over(task: asyncio.Task[Policy | None]) -> None:
            container.restart = None
            if not task.cancelled() and not task.exception() and (following := task.result()):
                self.schedule(container, following)
            restart.done.set()
            container.changed.fire()

        # Not in the task's own `finally`: a task cancelled before its first step runs none.
        restart.task.add_done_callback(over)

    async def cancel(self, container: Container) -> None:
        """Call a waiting restart off; of one that is under way, await the end.

        To be called when the policy file says `stopped`: then nothing follows.
        """
        restart = container.restart
        if restart is None:
            return
        if not restart.starting and restart.task is not None:
            restart.task.cancel()
        await restart.done.wait()

    async def _restart(
        self, container: Container, restart: Restart, policy: Policy
    ) -> Policy | None:
        with log.bind(container=container.id):
            await asyncio.sleep(max(0.0, (policy.next_ns - time.time_ns()) / 1e9))
            restart.starting = True
            return await self._start(container, policy)

    async def _start(self, container: Container, policy: Policy) -> Policy | None:
        """Start the next run; the policy to go on with if its program could not be executed."""
        id_, run = container.id, policy.run + 1
        faults.point("agent.restart.due")
        try:
            started = _over(container, run) or await self._ask_worker(id_, run)
        except EngineError as exc:
            logger.warning("restart given up: %s", exc)
            started = HostStarted(error=exc.message, exit_code=128)
        faults.point("agent.restart.started")
        if started.error:
            return await self._failed(id_, policy, run, started)
        fact = ContainerStarted(
            node=self._node,
            time_ns=started.started_ns or time.time_ns(),
            id=id_,
            run=run,
            pid=started.pid,
            started_ns=started.started_ns,
            restart_count=policy.count,
            network=started.network,
        )
        await self._facts.tell(subjects.FACT_STARTED, fact, f"{id_}.{run}.started")
        faults.point("agent.restart.published")
        # Not before it is told: an agent that finds this restart pending starts here again.
        kept = self._policies.read(id_)
        if kept.run < run:
            self._policies.write(id_, replace(kept, run=run, next_ns=0))
        faults.point("agent.restart.recorded")
        return None

    async def _ask_worker(self, id_: str, run: int) -> HostStarted:
        subject = subjects.runtime(self._node, subjects.RUNTIME_RESTART)
        # The same id each time: a start that the worker finished meanwhile is answered as such.
        request = HostRestart(request_id=f"restart-{id_}.{run}", id=id_, run=run)
        while True:
            try:
                return await self._bus.request(
                    subject, request, HostStarted, timeout=WORKER_TIMEOUT
                )
            except Unavailable as exc:
                logger.warning("restart waits for the runtime worker: %s", exc)
                await asyncio.sleep(0.2)

    async def _failed(
        self, id_: str, policy: Policy, run: int, started: HostStarted
    ) -> Policy | None:
        now = time.time_ns()
        exited = ExitRecord(
            run=run,
            started_ns=now,
            finished_ns=now,
            exit_code=started.exit_code or 128,
            error=started.error,
        )
        decided = self._policies.decide(id_, exited, now)
        fact = exited_fact(self._node, id_, exited, decided)
        await self._facts.tell(subjects.FACT_EXITED, fact, f"{id_}.{run}.exited")
        return decided if fact.restarting else None


def _over(container: Container, number: int) -> HostStarted | None:
    """What is known of a run that an agent before this one started and that has ended since."""
    run = container.runs.get(number)
    if run is None or run.exit is None:
        return None
    return HostStarted(pid=run.exit.pid, started_ns=run.exit.started_ns)


def exited_fact(node: str, id_: str, exited: ExitRecord, policy: Policy) -> ContainerExited:
    """The fact of an exit, with what the policy decided about it."""
    return ContainerExited(
        node=node,
        time_ns=exited.finished_ns or time.time_ns(),
        id=id_,
        run=exited.run,
        pid=exited.pid,
        started_ns=exited.started_ns,
        finished_ns=exited.finished_ns,
        exit_code=exited.exit_code,
        oom_killed=exited.oom_killed,
        error=exited.error,
        restarting=policy.pending and policy.decided == exited.run,
        restart_count=policy.count,
    )

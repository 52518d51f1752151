"""Exits on their way up: each is published until JetStream has it, and only then crossed off.

A record that was found, written or announced twice is published once: within a process by `Run`,
across processes by its message id, and for good by the renamed file.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time

from mooring.kit import faults, log, subjects
from mooring.kit.models.host import ContainerOom, ExecExited

from . import held, rundir
from .facts import Facts
from .policies import Policies
from .record import remove_tree
from .restarts import Restarts, exited_fact
from .rundir import ExitRecord
from .runs import Exec, Run
from .work import Work

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 0.5
"""How long a container's exit is held back for readers of an exec's last output."""
HEALTH_PREFIX = "health."
"""Of the ids of execs that are health checks: nobody is told of their ends."""
UNREAD_SECONDS = 60.0
"""How long the output of an exec that ended waits for its first reader."""


class Exits:
    """Publishes exits of containers and of execs, and what the policy decided."""

    def __init__(
        self,
        facts: Facts,
        policies: Policies,
        restarts: Restarts,
        work: Work,
    ) -> None:
        self._facts = facts
        self._node = facts.node
        self.restarts_known = asyncio.Event()
        """Set when the restarts that were pending at the agent's start are scheduled again."""
        self._policies = policies
        self._restarts = restarts
        self._work = work

    def ended(self, run: Run, exited: ExitRecord, *, acknowledged: bool = False) -> None:
        """A run is over; acknowledged: its fact is known to be in the stream."""
        if run.exit is not None:
            return
        run.exit = exited
        run.published = acknowledged
        if run.pidfd >= 0:
            os.close(run.pidfd)
            run.pidfd = -1
        held.drop(run)
        if run.channel is not None:
            run.channel.close()
        for entry in run.execs.values():
            entry.finished = True
        for source in tuple(run.sources):
            source.pin()
        run.changed()
        if not acknowledged:
            self._work.start(self._publish(run, exited), name=f"exit {run.container.id}")

    def exec_ended(self, run: Run, id_: str, exit_code: int, pid: int) -> None:
        """An exec is over, its output complete."""
        entry = run.exec(id_)
        if entry.published:
            return
        entry.published = True
        entry.started = entry.finished = True
        entry.exit_code = exit_code
        entry.pid = pid or entry.pid
        held.drop_exec(run, entry)
        run.container.changed.fire()
        entry.watch.fire()
        if id_.startswith(HEALTH_PREFIX):
            return
        self._work.start(self._publish_exec(run, id_, entry), name=f"exec exit {id_}")

    def exec_failed(self, run: Run, id_: str, error: str, exit_code: int) -> None:
        """The program of an exec could not be executed: it is over before it began."""
        entry = run.exec(id_)
        entry.error = error
        entry.read = True
        self.exec_ended(run, id_, exit_code, 0)

    def exec_acknowledged(self, run: Run, id_: str) -> None:
        """An exec is over and its fact known to be in the stream: only its output is left."""
        entry = run.exec(id_)
        if entry.published:
            return
        entry.published = entry.started = entry.finished = True
        held.drop_exec(run, entry)
        self._work.start(self._forget_exec(run, id_, entry), name=f"forget {id_}")

    def out_of_memory(self, run: Run, kills: int) -> None:
        """The kernel killed something in the container for want of memory, for the nth time."""
        self._work.start(self._publish_oom(run, kills), name=f"oom {run.container.id}")

    async def _publish(self, run: Run, exited: ExitRecord) -> None:
        container = run.container
        with log.bind(container=container.id):
            await self.restarts_known.wait()
            restart = container.restart
            if restart is not None and restart.run == run.number:
                # It is over before its start was told: keep the order of the facts.
                await restart.done.wait()
            await self._drain(run)
            policy = self._policies.decide(container.id, exited, time.time_ns())
            faults.point("agent.exit.decided")
            fact = exited_fact(self._node, container.id, exited, policy)
            msg_id = f"{container.id}.{run.number}.exited"
            await self._facts.tell(subjects.FACT_EXITED, fact, msg_id)
            faults.point("agent.exit.published")
            rundir.acknowledge(run.directory)
            faults.point("agent.exit.acked")
            run.published = True
            for number in [n for n in container.runs if n < run.number]:
                del container.runs[number]
            if fact.restarting:
                self._restarts.schedule(container, policy)
            container.changed.fire()

    async def _drain(self, run: Run) -> None:
        """Let readers of execs finish: the worker deletes the directory once the exit is known."""
        if not run.execs:
            return
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while any(entry.readers and not entry.read for entry in run.execs.values()):
                    await run.container.changed.wait()
        except TimeoutError:
            logger.warning("an exec's output was not read to its end before the container's exit")

    async def _publish_exec(self, run: Run, id_: str, entry: Exec) -> None:
        fact = ExecExited(
            node=self._node,
            time_ns=time.time_ns(),
            id=id_,
            container=run.container.id,
            exit_code=entry.exit_code or 0,
            pid=entry.pid,
        )
        await self._facts.tell(subjects.FACT_EXEC_EXITED, fact, f"{id_}.exited")
        faults.point("agent.exec.published")
        rundir.acknowledge(f"{run.directory}/execs/{id_}")
        await self._forget_exec(run, id_, entry)

    async def _forget_exec(self, run: Run, id_: str, entry: Exec) -> None:
        """Have the directory of an exec deleted when it has been read, or nobody came to read."""
        try:
            async with asyncio.timeout(UNREAD_SECONDS):
                while not entry.read:
                    await run.container.changed.wait()
        except TimeoutError:
            pass
        while entry.readers:
            await run.container.changed.wait()
        run.execs.pop(id_, None)
        run.ended_execs.append(id_)
        forget_exec(run, id_)

    async def _publish_oom(self, run: Run, kills: int) -> None:
        fact = ContainerOom(
            node=self._node,
            time_ns=time.time_ns(),
            id=run.container.id,
            run=run.number,
            kills=kills,
        )
        msg_id = f"{run.container.id}.{run.number}.oom.{kills}"
        await self._facts.tell(subjects.FACT_OOM, fact, msg_id)


def forget_exec(run: Run, id_: str) -> None:
    """Have an exec's directory deleted; by its shim, if it has one that knows it."""
    if run.channel is not None and id_ not in run.orphans:
        run.channel.tell("exec_forget", exec=id_)
    else:
        remove_tree(f"{run.directory}/execs/{id_}")

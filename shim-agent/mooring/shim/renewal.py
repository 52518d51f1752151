"""Shims of older code give way to shims of this version, while their containers run.

    agent                              shim                      successor
      | --- prepare --------------------------------------------> |  imported, ready
      |  waits until nothing but stdin is asked of the shim; what is asked next waits
      | --- descriptors -------------> |
      | --- SIGKILL -----------------> |
      | --- what the shim held ---------------------------------> |  goes on at the byte
      | --- hello ----------------------------------------------> |

It is killed, not asked: what keeps every byte when a shim is killed is needed anyway, and
there is no second way that could be wrong. Nothing is done to a shim before its successor is ready,
or where the end of the container would not be known any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable

from mooring.kit import faults
from mooring.kit.errors import EngineError
from mooring.kit.models.host import KeptShim, RenewShims, ShimsRenewed

from . import orphans, rundir, version
from .channel import Channel
from .exits import HEALTH_PREFIX
from .rundir import Process
from .runs import Containers, Run
from .shims import Shims
from .successors import Successors

logger = logging.getLogger(__name__)

AT_ONCE = 4
QUIET_SECONDS = 35.0
"""How long a moment is waited for in which nothing is asked of a shim: health checks take long."""
_POLL = 0.005
OLD_KERNEL = (
    "this kernel (before Linux 6.15) does not tell the exit status of a process to any but its "
    "parent, which the new shim would not be"
)


class Renewal:
    """Replaces the shims of this host that run older code."""

    def __init__(self, containers: Containers, shims: Shims, successors: Successors) -> None:
        self._containers = containers
        self._shims = shims
        self._successors = successors
        self._turn = asyncio.Lock()
        self._renewed: set[tuple[str, int]] = set()
        self.tells_exits: Callable[[], bool] = orphans.tells_exits
        self.on_done: Callable[[ShimsRenewed], None] = lambda result: None

    async def begin(self) -> None:
        """Replace what an earlier version has left; once, when an agent has started."""
        try:
            done = await self.renew(RenewShims())
        except OSError as exc:
            # Of an installation that is being changed: the agent of the new one does it.
            logger.warning("shims of older code are not looked for: %s", exc)
            return
        if done.replaced or done.kept:
            self.on_done(done)

    async def renew(self, request: RenewShims) -> ShimsRenewed:
        """Replace the shims of older code, or every one; what became of them until now."""
        async with self._turn:
            # OSError if the code can't be read.
            code = await asyncio.to_thread(version.digest)
            live = [run for container in self._containers if (run := container.live) is not None]
            due = [run for run in live if request.every or _code_of(run) != code]
            kept = await self._replace_all(due)
            others = {one.id for one in kept} | {id_ for id_, _ in self._renewed}
            current = sum(run.live and run.container.id not in others for run in live)
            return ShimsRenewed(replaced=len(self._renewed), current=current, kept=kept)

    async def _replace_all(self, due: list[Run]) -> list[KeptShim]:
        if not due:
            return []
        if not await asyncio.to_thread(self.tells_exits):
            return [KeptShim(id=run.container.id, reason=OLD_KERNEL) for run in due]
        room = asyncio.Semaphore(AT_ONCE)

        async def one(run: Run) -> KeptShim | None:
            async with room:
                return await self._carefully(run)

        return [kept for kept in await asyncio.gather(*map(one, due)) if kept is not None]

    async def _carefully(self, run: Run) -> KeptShim | None:
        try:
            await self._replace(run)
        except EngineError as exc:
            if not run.live:
                return None
            logger.warning("container %s keeps its shim: %s", run.container.id, exc.message)
            return KeptShim(id=run.container.id, reason=exc.message)
        return None

    async def _replace(self, run: Run) -> None:
        """EngineError: it is not replaced."""
        await run.reach()
        with await self._successors.prepare(run.directory) as successor:
            channel = await _quiet(run)
            run.handover = True
            try:
                await self._shims.hold(run, channel)
                faults.point("agent.renewal.held")
                if not run.live or run.record is None:
                    return
                if "listener" not in run.held or run.pidfd < 0:
                    raise EngineError("it does not hand over what another shim needs")
                # For the next agent, should this one die between the two shims.
                run.keeping.settle()
                await _end(run.record.shim)
                faults.point("agent.renewal.killed")
                if rundir.read_exit(run.directory) is None and rundir.read_shim(run.directory):
                    await successor.take(run)
                    self._renewed.add((run.container.id, run.number))
                    logger.info("container %s has a shim of this version", run.container.id)
            finally:
                run.handover = False
                self._shims.reconnect(run, channel)


def _code_of(run: Run) -> str:
    return run.record.code if run.record is not None else ""


async def _quiet(run: Run) -> Channel:
    """The connection to a shim of which nothing is asked at this very moment."""
    deadline = time.monotonic() + QUIET_SECONDS
    while True:
        channel = await run.reach()
        checked = any(id_.startswith(HEALTH_PREFIX) for id_ in run.execs)
        if not channel.busy and not checked:
            return channel
        if time.monotonic() > deadline:
            raise EngineError("something was asked of it all the time")
        await asyncio.sleep(_POLL)


async def _end(shim: Process) -> None:
    pidfd = orphans.open_init(shim)
    if pidfd < 0:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        await orphans.readable(pidfd)
    finally:
        os.close(pidfd)

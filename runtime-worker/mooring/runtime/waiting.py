"""Waiting for a shim that is just beginning, or just ending."""

from __future__ import annotations

import asyncio
import contextlib
import os

from .runs import Run, Stage, read, start_time

LONGEST = 10.0
"""Seconds; both are a matter of milliseconds."""
_LOOK = 0.002


async def until_executed(run: Run) -> Run | None:
    """The run once its program has been executed; None if it could not be, and was taken back."""
    now: Run | None = run
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LONGEST):
            while now is not None and now.stage is Stage.LIVE and not now.executed:
                if not now.shim_alive:
                    # It ended between shim.json and the mark: what is left of it tells.
                    return now
                await asyncio.sleep(_LOOK)
                now = read(run.directory, run.id, run.run)
    return None if now is None or now.stage is Stage.HALF else now


async def until_ended(run: Run) -> None:
    """Wait for the shim of a run that is over; it clears its cgroup away and ends."""
    if run.shim_alive:
        await until_gone(run.shim_pid, run.shim_start)


async def until_gone(pid: int, start: int) -> None:
    """Wait until a process has ended, 10 s at most; start is its start time (runs.start_time)."""
    if not pid:
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        # The pid may have been given to another process before it was opened.
        if start_time(pid) != start:
            return
        loop.add_reader(descriptor, ended.set)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LONGEST):
                await ended.wait()
        loop.remove_reader(descriptor)
    finally:
        os.close(descriptor)

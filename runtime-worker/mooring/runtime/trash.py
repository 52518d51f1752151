"""Deleting directories of ours, whatever a container has made of them.

rm(1) does it, for all that has come together: a thread that deletes would wait for the interpreter
after each of its system calls, and have this process wait for it. No depth is too much for rm.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os

logger = logging.getLogger(__name__)

BATCH = 0.25
"""Seconds that what is discarded waits for more."""
MOST = 1000
"""Names given to one rm: the kernel takes 2 MB of arguments at least."""

_numbers = itertools.count(1)


def discard(path: str, trash: str) -> bool:
    """Move a file or directory into the trash, on the same file system; False if it is gone."""
    name = os.path.basename(path)
    try:
        os.rename(path, f"{trash}/{name}.{os.getpid()}.{next(_numbers)}")
    except FileNotFoundError:
        return False
    return True


class Emptier:
    """Deletes what is in trash directories, soon after it was told that there is something."""

    def __init__(self, *directories: str) -> None:
        self._directories = directories
        self._timer: asyncio.TimerHandle | None = None
        self._working: asyncio.Task[None] | None = None

    def soon(self) -> None:
        """There is something to delete."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BATCH, self._begin)

    async def close(self) -> None:
        """Delete what there is now, and end."""
        if self._timer is not None:
            self._timer.cancel()
        if self._working is not None:
            await self._working
        await self.empty()

    async def empty(self) -> None:
        """Delete what there is now; what can't be deleted is logged and left."""
        for directory in self._directories:
            names = [f"{directory}/{name}" for name in os.listdir(directory)]
            for start in range(0, len(names), MOST):
                await _remove(names[start : start + MOST])

    def _begin(self) -> None:
        self._timer = None
        if self._working is not None and not self._working.done():
            self.soon()
        else:
            self._working = asyncio.create_task(self._work(), name="trash")

    async def _work(self) -> None:
        try:
            await self.empty()
        except OSError as exc:
            logger.warning("cannot empty the trash: %s", exc)


async def _remove(names: list[str]) -> None:
    pid = _spawn(names)
    descriptor = os.pidfd_open(pid)
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    loop.add_reader(descriptor, _reap, pid, ended)
    try:
        # What it was told to delete it deletes, also when nobody waits any more.
        if await ended:
            logger.warning("not all of the trash can be deleted (rm's words are above)")
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _spawn(names: list[str]) -> int:
    # Not by fork: copying the tables of this process's memory would cost more than all of it.
    return os.posix_spawnp("rm", ["rm", "-rf", "--", *names], os.environ)


def _reap(pid: int, ended: asyncio.Future[int]) -> None:
    if not ended.done():
        _, status = os.waitpid(pid, 0)
        ended.set_result(status)

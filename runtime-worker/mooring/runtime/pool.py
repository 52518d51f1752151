"""Warm shims kept ready, so that a start waits for no fork."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
from collections import deque
from typing import Generic, Protocol, TypeVar

from mooring.kit.errors import EngineError

logger = logging.getLogger(__name__)

MOST = 16
"""Warm shims at the height of a rush."""
PAUSE = 0.02
"""Seconds a refill waits after a start: the container's first milliseconds are its own."""
CALM = 2.0
"""Seconds without a start after which the pool shrinks to its usual size."""

_numbers = itertools.count(1)
"""Of prepared cgroups: two pools of one worker make theirs beside each other."""


class Warm(Protocol):
    """A shim that waits for its container."""

    def alive(self) -> bool: ...
    def close(self) -> None: ...


Shim = TypeVar("Shim", bound=Warm)
Made = TypeVar("Made", bound=Warm, covariant=True)


class Forks(Protocol[Made]):
    """What makes warm shims."""

    async def fork(self, cgroup: str | None) -> Made:
        """A fresh one, with its cgroup prepared under that name."""


class Pool(Generic[Shim]):
    """`size` warm shims, more while many starts arrive at once."""

    def __init__(self, launcher: Forks[Shim], size: int, cgroup_root: str | None) -> None:
        self._launcher = launcher
        self._size = self._target = size
        self._cgroup_root = cgroup_root
        self._warm: deque[Shim] = deque()
        self._filling: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._warm)

    async def take(self) -> Shim:
        """A living warm shim, forked now if there is none."""
        while self._warm:
            shim = self._warm.popleft()
            if shim.alive():
                return shim
            shim.close()
        if self._size:
            self._target = min(max(self._target * 2, 4), max(MOST, self._size))
        return await self._fork()

    def refill(self) -> None:
        """Fill the pool in the background: at once when it runs low, else in a quiet moment."""
        if self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._filling is not None and not self._filling.done():
            return
        if len(self._warm) * 2 < self._target:
            self._begin()
        else:
            self._timer = asyncio.get_running_loop().call_later(PAUSE, self._begin)

    async def close(self) -> None:
        """End every warm shim."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._filling is not None:
            self._filling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._filling
        while self._warm:
            self._warm.popleft().close()

    def _begin(self) -> None:
        self._timer = None
        if self._filling is None or self._filling.done():
            self._filling = asyncio.create_task(self._fill(), name="warm-shims")

    async def _fill(self) -> None:
        try:
            while len(self._warm) < self._target:
                self._warm.append(await self._fork())
        except EngineError as exc:
            # The next start tries again, and its user is told.
            logger.warning("cannot prepare a shim: %s", exc)
        if self._target > self._size:
            self._timer = asyncio.get_running_loop().call_later(CALM, self._shrink)

    def _shrink(self) -> None:
        self._timer = None
        self._target = self._size
        while len(self._warm) > self._size:
            self._warm.pop().close()

    async def _fork(self) -> Shim:
        name = None
        if self._cgroup_root is not None:
            name = f"{self._cgroup_root}/warm.{os.getpid()}.{next(_numbers)}"
        return await self._launcher.fork(name)

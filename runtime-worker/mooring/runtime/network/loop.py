"""An event loop of a hundred lines: epoll, timers, and nothing that has to be imported."""

from __future__ import annotations

import heapq
import itertools
import logging
import select
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
EDGE = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


class Timer:
    """One call in the future; cancel() takes it back."""

    __slots__ = ("call", "due")

    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due = due
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Loop:
    """Calls back what is registered; a callback that fails is logged, and the loop goes on."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._serial = itertools.count()
        self._soon: list[Callable[[], None]] = []
        self.running = True

    def watch(self, descriptor: int, callback: Callable[[], None], mask: int = READ) -> None:
        """Call back on these events until `forget`."""
        self._epoll.register(descriptor, mask)
        self._callbacks[descriptor] = callback

    def forget(self, descriptor: int) -> None:
        """Before it is closed: others may hold duplicates, and those would keep it registered."""
        if self._callbacks.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def later(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call once, after so many seconds."""
        timer = Timer(time.monotonic() + seconds, call)
        heapq.heappush(self._timers, (timer.due, next(self._serial), timer))
        return timer

    def soon(self, call: Callable[[], None]) -> None:
        """Call after everybody else has had a turn."""
        self._soon.append(call)

    def run(self) -> None:
        """Until `running` is unset."""
        while self.running:
            for descriptor, _ in self._epoll.poll(self._timeout(), 64):
                # It may have been forgotten by the callback of another one.
                if (callback := self._callbacks.get(descriptor)) is not None:
                    _call(callback)
            soon, self._soon = self._soon, []
            for call in soon:
                _call(call)
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                timer = heapq.heappop(self._timers)[2]
                if timer.call is not None:
                    _call(timer.call)

    def _timeout(self) -> float:
        if self._soon:
            return 0
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1


def _call(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception:
        logger.exception("a callback failed")

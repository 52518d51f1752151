"""The shim's event loop: descriptors with callbacks, and a few timers."""

from __future__ import annotations

from select import (
    EPOLL_CLOEXEC,
    EPOLLERR,
    EPOLLET,
    EPOLLHUP,
    EPOLLIN,
    EPOLLONESHOT,
    EPOLLOUT,
    epoll,
)
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Handler = Callable[[int], None]
    Timer = Callable[[], None]

READ = EPOLLIN
WRITE = EPOLLOUT
EDGE = EPOLLET
ONCE = EPOLLIN | EPOLLONESHOT
GONE = EPOLLHUP | EPOLLERR


class Loop:
    """Runs callbacks until `stop`; everything happens in the one thread of the process."""

    __slots__ = ("_epoll", "_handlers", "_stopped", "_timers")

    def __init__(self) -> None:
        self._epoll = epoll(flags=EPOLL_CLOEXEC)
        self._handlers: dict[int, Handler] = {}
        self._timers: dict[Timer, float] = {}
        self._stopped = False

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        """Call `handler(events)` whenever one of `events` is there (GONE always counts)."""
        if fd in self._handlers:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def forget(self, fd: int) -> None:
        """Stop watching `fd`, before it is closed; nothing if it is not watched."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def later(self, seconds: float, timer: Timer) -> None:
        """Call `timer` once after `seconds`; asked again before that, it moves."""
        self._timers[timer] = monotonic() + seconds

    def never(self, timer: Timer) -> None:
        """Don't call `timer` after all."""
        self._timers.pop(timer, None)

    def stop(self) -> None:
        """Return from `run` after the callback that is running."""
        self._stopped = True

    def run(self) -> None:
        """Wait and call back until `stop`."""
        poll = self._epoll.poll
        handlers = self._handlers
        while not self._stopped:
            # A small batch: epoll.poll makes room for as many events as it may return.
            for fd, events in poll(self._due() if self._timers else None, 16):
                # One callback may end what another event of the same batch was for.
                if (handler := handlers.get(fd)) is not None:
                    handler(events)
            if self._timers:
                self._expire()

    def _due(self) -> float:
        return max(0.0, min(self._timers.values()) - monotonic())

    def _expire(self) -> None:
        now = monotonic()
        for timer in [t for t, when in self._timers.items() if when <= now]:
            self._timers.pop(timer, None)
            timer()

"""Work in a child process of the shim: what would take long, or memory that is never given back."""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socket, socketpair

from .control import receive_with, send_with
from .loop import READ, Loop
from .packets import join, parse
from .warm import refusal, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Result = tuple[dict[str, Any], list[int]]

_PACKET_BYTES = 64 << 10


class Helper:
    """A forked child that does `work` and sends its result, an object and descriptors.

    `done` is called with them after the child has ended: processes that it made are the shim's
    children from then on. An exception of `work` arrives as `{"error": …}`.
    """

    __slots__ = ("_done", "_loop", "_pid", "_pidfd", "_socket")

    def __init__(
        self,
        loop: Loop,
        work: Callable[[], Result],
        done: Callable[[dict[str, Any], list[int]], None],
    ) -> None:
        self._loop = loop
        self._done = done
        self._socket, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        self._pid = os.fork()
        if not self._pid:
            _do(work, theirs)
        theirs.close()
        self._pidfd = os.pidfd_open(self._pid)
        loop.watch(self._pidfd, READ, self._ended)

    def _ended(self, events: int) -> None:
        self._loop.forget(self._pidfd)
        os.close(self._pidfd)
        os.waitpid(self._pid, 0)
        packet, fds = receive_with(self._socket, _PACKET_BYTES)
        self._socket.close()
        if packet:
            self._done(parse(packet), fds)
        else:
            self._done(refusal("internal", "the helper of the shim was killed", 128), fds)


def _do(work: Callable[[], Result], answer: socket) -> None:
    try:
        try:
            result, fds = work()
        except Exception as error:
            result, fds = refused(error), []
        send_with(answer, join(result), fds)
    finally:
        os._exit(0)

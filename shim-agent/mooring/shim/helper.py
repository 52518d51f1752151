"""Work in a child process of the shim: what would take long, or memory that is never given back."""

from __future__ import annotations

import os
from _socket import AF_UNIX, MSG_NOSIGNAL, SOCK_CLOEXEC, SOCK_SEQPACKET, socket, socketpair

from .control import receive_with, send_with
from .loop import READ, Loop
from .packets import join, parse
from .warm import refusal, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Result = tuple[dict[str, Any], list[int]]
    Ask = Callable[[dict[str, Any], list[int]], None]

_PACKET_BYTES = 64 << 10
_GO, _NO = b"g", b"n"
_ASKS = "asks"


class Helper:
    """A forked child that does `work` and sends its result, an object and descriptors.

    On its way `work` may ask once, with descriptors, whether to go on: `asked` says so, or
    raises; if the shim is killed meanwhile, the answer is no. `done` is called after the child has
    ended: processes that it made are the shim's children from then on. An exception of `work`
    arrives as `{"error": …}`.
    """

    __slots__ = ("_asked", "_done", "_loop", "_pid", "_pidfd", "_result", "_socket")

    def __init__(
        self,
        loop: Loop,
        work: Callable[[Ask], Result],
        asked: Callable[[dict[str, Any], list[int], Callable[[], None]], None],
        done: Callable[[dict[str, Any], list[int]], None],
    ) -> None:
        """asked gets what `work` asks with, and what to call to let it go on."""
        self._loop = loop
        self._asked = asked
        self._done = done
        self._result: Result | None = None
        self._socket, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        self._pid = os.fork()
        if not self._pid:
            self._socket.close()
            _do(work, theirs)
        theirs.close()
        self._pidfd = os.pidfd_open(self._pid)
        loop.watch(self._pidfd, READ, self._ended)
        loop.watch(self._socket.fileno(), READ, self._said)

    def _said(self, events: int) -> None:
        self._loop.forget(self._socket.fileno())
        packet, fds = receive_with(self._socket, _PACKET_BYTES)
        fields = parse(packet) if packet else {}
        if _ASKS not in fields:
            self._result = (fields, fds) if packet else None
            return
        try:
            self._asked(fields, fds, lambda: self._answer(_GO))
        except Exception:
            self._answer(_NO)
        for fd in fds:
            os.close(fd)

    def _answer(self, word: bytes) -> None:
        try:
            self._socket.send(word, MSG_NOSIGNAL)
        except OSError:
            pass  # It was killed: its end tells.

    def _ended(self, events: int) -> None:
        self._loop.forget(self._pidfd)
        os.close(self._pidfd)
        os.waitpid(self._pid, 0)
        if self._result is None:
            self._loop.forget(self._socket.fileno())
            packet, fds = receive_with(self._socket, _PACKET_BYTES)
            self._result = (parse(packet) if packet else {}, fds)
        self._socket.close()
        fields, fds = self._result
        if not fields or _ASKS in fields:
            for fd in fds:
                os.close(fd)
            fields, fds = refusal("internal", "the helper of the shim was killed", 128), []
        self._done(fields, fds)


def _do(work: Callable[[Ask], Result], answer: socket) -> None:
    def ask(fields: dict[str, Any], fds: list[int]) -> None:
        send_with(answer, join({**fields, _ASKS: True}), fds)
        if answer.recv(len(_GO)) != _GO:
            raise RuntimeError("the shim does not go on with it")

    try:
        try:
            result, fds = work(ask)
        except Exception as error:
            result, fds = refused(error), []
        send_with(answer, join(result), fds)
    finally:
        os._exit(0)

"""One relayed TCP connection. Bytes are in a socket or in a pipe, never only in this process.

So a relay that is killed loses nothing: the next one finds the two sockets and the two pipes in
the descriptor store and goes on moving.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable, Sequence

from mooring.runtime.network.loop import EDGE, Loop
from mooring.runtime.network.manager import Manager

_CHUNK = 1 << 18
_TURN = 32
"""Moves of one connection before others have their turn."""
# Pipes look alike in the store: by their sizes it is known which way each one leads.
_SIZES = (1 << 17, 1 << 18)
_AGAIN = (errno.EAGAIN, errno.ENOTCONN)
"""ENOTCONN: the connection to the container is not made yet."""


class _Way:
    """One direction: source, pipe, destination."""

    __slots__ = ("destination", "ended", "inlet", "outlet", "shut", "source")

    def __init__(self, source: int, pipe: tuple[int, int], destination: int) -> None:
        self.source = source
        self.outlet, self.inlet = pipe
        self.destination = destination
        self.ended = self.shut = False

    def move(self) -> bool:
        """Move once; whether anything moved. OSError if one of the ends is broken."""
        moved = False
        if not self.ended:
            count = _splice(self.source, self.inlet)
            self.ended = count == 0
            moved = count is not None and count > 0
        if _waiting(self.outlet):
            return bool(_splice(self.outlet, self.destination)) or moved
        if self.ended and not self.shut:
            self.shut = True
            with socket.socket(fileno=os.dup(self.destination)) as end:
                end.shutdown(socket.SHUT_WR)
        return moved


class Flow:
    """Both directions between a client and a container. over() is called once, when it is over."""

    def __init__(
        self,
        loop: Loop,
        name: str,
        ends: tuple[socket.socket, socket.socket],
        pipes: tuple[tuple[int, int], tuple[int, int]],
        over: Callable[[Flow], None],
    ) -> None:
        self.name = name
        self._loop = loop
        self._ends = ends
        self._pipes = pipes
        self._over = over
        client, target = ends[0].fileno(), ends[1].fileno()
        self._ways = (_Way(client, pipes[0], target), _Way(target, pipes[1], client))
        self._closed = False
        for end in ends:
            loop.watch(end.fileno(), self._pump, EDGE)

    def close(self) -> None:
        """End both connections."""
        if self._closed:
            return
        self._closed = True
        for end in self._ends:
            self._loop.forget(end.fileno())
            end.close()
        for descriptor in (*self._pipes[0], *self._pipes[1]):
            os.close(descriptor)
        self._over(self)

    def _pump(self) -> None:
        if self._closed:
            return
        try:
            for _ in range(_TURN):
                if not any([way.move() for way in self._ways]):
                    break
            else:
                self._loop.soon(self._pump)
        except OSError:
            # Reset, or refused by the container: the other side is to see an end as well.
            self.close()
            return
        if all(way.shut for way in self._ways) or self._broken():
            self.close()

    def _broken(self) -> bool:
        return any(end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for end in self._ends)


def begin(
    loop: Loop,
    manager: Manager,
    listener: socket.socket,
    target: tuple[str, int],
    over: Callable[[Flow], None],
) -> Flow:
    """Connect the next client to a container. BlockingIOError if there is none; OSError."""
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    with contextlib.ExitStack() as undo:
        end = undo.enter_context(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        end.connect_ex(target)
        # The kernel gives no outgoing connection the port of a listening socket.
        name = f"flow.{os.fstat(end.fileno()).st_ino}.{end.getsockname()[1]}"
        pipes = _pipe(_SIZES[0], undo), _pipe(_SIZES[1], undo)
        # Last: once accepted, a client is lost with us until it is stored.
        client = undo.enter_context(listener.accept()[0])
        descriptors = [client.fileno(), end.fileno(), *pipes[0], *pipes[1]]
        manager.store(name, descriptors)
        client.setblocking(False)
        for sock in (client, end):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        undo.pop_all()
    return Flow(loop, name, (client, end), pipes, over)


def resume(
    loop: Loop, name: str, descriptors: Sequence[int], over: Callable[[Flow], None]
) -> Flow | None:
    """The flow of what was stored; None, with all of it closed, if some of it is missing."""
    port = int(name.rpartition(".")[2])
    ends: dict[bool, socket.socket] = {}
    pipes: dict[tuple[int, bool], int] = {}
    for descriptor in descriptors:
        try:
            sock = socket.socket(fileno=descriptor)
        except OSError:
            size = fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)
            writes = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_WRONLY != 0
            pipes[size, writes] = descriptor
        else:
            sock.setblocking(False)
            ends[sock.getsockname()[1] == port] = sock
    if len(ends) != 2 or len(pipes) != 4:
        for sock in ends.values():
            sock.close()
        for descriptor in pipes.values():
            os.close(descriptor)
        return None
    one, two = (tuple(pipes[size, writes] for writes in (False, True)) for size in _SIZES)
    return Flow(loop, name, (ends[False], ends[True]), ((one[0], one[1]), (two[0], two[1])), over)


def _pipe(size: int, undo: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    for end in ends:
        undo.callback(os.close, end)
    fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, size)
    return ends


def _splice(source: int, destination: int) -> int | None:
    """Bytes moved, 0 at the end of the source, None for not now."""
    try:
        return os.splice(source, destination, _CHUNK, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
    except OSError as exc:
        if exc.errno in _AGAIN:
            return None
        raise


def _waiting(pipe: int) -> int:
    """Bytes in a pipe."""
    count: int = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0\0\0\0"))[0]
    return count

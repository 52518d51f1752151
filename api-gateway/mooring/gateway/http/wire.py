"""A hijacked connection: a raw two-way byte stream that belongs to one handler.

Input is peeked, handed on, and consumed only when it was acknowledged: what is in nobody's
hands yet stays in the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from typing import Protocol

PEEK = 64 * 1024
"""Bytes looked at in one go."""
_DRAIN_ROUNDS = 64


class Wire(Protocol):
    """What attach and exec talk through."""

    gone: asyncio.Future[None]
    """Done when the client is seen to have closed both directions."""

    limit: int | None
    """Bytes of one `send`, where there is a limit."""

    async def send(self, data: bytes, state: bytes | None = None) -> None:
        """Send all of data; ConnectionError if the client is gone.

        Where the wire outlives this process, its output is then at `state`.
        """
        ...

    async def peek(self) -> bytes:
        """What has arrived and was not consumed; waits for at least a byte, b"" at the end."""
        ...

    def consume(self, count: int, state: bytes | None = None) -> None:
        """Take `count` of the bytes that were peeked; state as with `send`."""
        ...

    async def close(self) -> None:
        """End both directions; what was sent still arrives."""
        ...


class HangupWatch:
    """Tells sockets whose peer has closed both directions, without reading from them.

    After a half-close a socket is readable for ever, so the loop cannot watch it for more. The
    edge-triggered set asks the kernel for hang-ups alone, and the loop watches only the set.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._futures: dict[int, asyncio.Future[None]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._ready)

    def add(self, descriptor: int) -> asyncio.Future[None]:
        """A future that is done when the peer of this socket has gone."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._futures[descriptor] = future
        self._epoll.register(descriptor, select.EPOLLET | select.EPOLLHUP)
        return future

    def remove(self, descriptor: int) -> None:
        """Before the socket is closed."""
        if self._futures.pop(descriptor, None) is not None and not self._epoll.closed:
            self._epoll.unregister(descriptor)

    def close(self) -> None:
        """Watch no more."""
        if self._epoll.closed:
            return
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _ready(self) -> None:
        for descriptor, _ in self._epoll.poll(0):
            future = self._futures.get(descriptor)
            if future is not None and not future.done():
                future.set_result(None)


class SocketWire:
    """A wire over a socket of our own. `early` is what arrived together with the request."""

    limit: int | None = None

    def __init__(self, sock: socket.socket, early: bytes, watch: HangupWatch) -> None:
        self._socket = sock
        self._early = early
        self._watch = watch
        self._loop = asyncio.get_running_loop()
        self.gone = watch.add(sock.fileno())

    async def send(self, data: bytes, state: bytes | None = None) -> None:
        """See Wire."""
        await self._loop.sock_sendall(self._socket, data)

    async def peek(self) -> bytes:
        """See Wire."""
        if self._early:
            return self._early
        while True:
            try:
                return self._socket.recv(PEEK, socket.MSG_PEEK)
            except BlockingIOError:
                await self._readable()
            except ConnectionResetError:
                return b""

    def consume(self, count: int, state: bytes | None = None) -> None:
        """See Wire."""
        if self._early:
            self._early = self._early[count:]
            return
        while count:
            count -= len(self._socket.recv(count))

    async def close(self) -> None:
        """See Wire."""
        self._watch.remove(self._socket.fileno())
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            # Unread input would turn the peer's end of stream into a reset.
            for _ in range(_DRAIN_ROUNDS):
                if not self._socket.recv(PEEK):
                    break
        self._socket.close()

    async def _readable(self) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        descriptor = self._socket.fileno()
        self._loop.add_reader(descriptor, _settle, future)
        try:
            await future
        finally:
            self._loop.remove_reader(descriptor)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class TransportWire:
    """A wire over a transport, for TLS: the socket alone does not have the bytes."""

    limit: int | None = None

    def __init__(self, transport: asyncio.Transport, early: bytes) -> None:
        self._transport = transport
        self._data = bytearray(early)
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.gone: asyncio.Future[None] = self._loop.create_future()

    # What the connection passes on.

    def feed(self, data: bytes) -> None:
        """More input."""
        self._data += data
        if len(self._data) > PEEK:
            self._transport.pause_reading()
        self._changed.set()

    def feed_end(self) -> None:
        """No more input."""
        self._ended = True
        self._changed.set()

    def lost(self) -> None:
        """The connection is closed."""
        self.feed_end()
        self._writable.set()
        if not self.gone.done():
            self.gone.set_result(None)

    def set_writable(self, writable: bool) -> None:
        """Back-pressure."""
        if writable:
            self._writable.set()
        else:
            self._writable.clear()

    # What the handler uses.

    async def send(self, data: bytes, state: bytes | None = None) -> None:
        """See Wire."""
        if self._transport.is_closing():
            raise ConnectionResetError("the client is gone")
        self._transport.write(data)
        await self._writable.wait()

    async def peek(self) -> bytes:
        """See Wire."""
        while not self._data and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        return bytes(self._data[:PEEK])

    def consume(self, count: int, state: bytes | None = None) -> None:
        """See Wire."""
        del self._data[:count]
        if len(self._data) < PEEK and not self._transport.is_closing():
            self._transport.resume_reading()

    async def close(self) -> None:
        """See Wire."""
        self._transport.close()

"""Questions that are not ours, passed on: one server after the other, each with its time."""

from __future__ import annotations

import logging
import secrets
import socket
import struct
from collections.abc import Callable

from mooring.runtime.network.loop import READ, WRITE, Loop

from . import wire

logger = logging.getLogger(__name__)

TIMEOUT = 4.0
"""Seconds for one server, as Docker has it; the container's own resolver waits 5."""
FASTER = 1.5
"""Seconds, while there is another one to ask."""
SERVERS = 3
AT_ONCE = 1024
"""Questions under way, as Docker has it; one more is refused."""
_LARGEST = 65535


class Upstream:
    """Passes questions on; `open_socket` makes a socket where a container's questions leave."""

    def __init__(
        self, loop: Loop, open_socket: Callable[[str, int, str], tuple[socket.socket, str]]
    ) -> None:
        self.loop = loop
        self.open_socket = open_socket
        self.under_way = 0

    def ask(
        self,
        holder: str,
        servers: tuple[str, ...],
        query: wire.Query,
        packet: bytes,
        reply: Callable[[bytes], None],
        *,
        tcp: bool = False,
    ) -> None:
        """Ask; reply is called once, with whatever came of it."""
        if self.under_way >= AT_ONCE:
            reply(wire.refusal(query, wire.REFUSED))
            return
        self.under_way += 1
        _Question(self, holder, servers[:SERVERS], query, packet, reply, tcp).next()


class _Question:
    """One question on its way through the servers."""

    def __init__(
        self,
        upstream: Upstream,
        holder: str,
        servers: tuple[str, ...],
        query: wire.Query,
        packet: bytes,
        reply: Callable[[bytes], None],
        tcp: bool,
    ) -> None:
        self._upstream = upstream
        self._loop = upstream.loop
        self._holder = holder
        self._servers = list(servers)
        self._query = query
        self._packet = packet
        self._reply = reply
        self._tcp = tcp
        self._socket: socket.socket | None = None
        self._refusal = b""
        self._id = 0
        self._unsent = self._received = b""

    def next(self) -> None:
        """Ask the next server, or give up."""
        self._hang_up()
        while self._servers:
            server = self._servers.pop(0)
            try:
                self._send(server)
            except OSError as exc:
                logger.debug("cannot ask %s: %s", server, exc)
                self._hang_up()
                continue
            seconds = FASTER if self._servers else TIMEOUT
            self._timer = self._loop.later(seconds, self.next)
            return
        self._finish(self._refusal or wire.refusal(self._query, wire.SERVFAIL))

    def _send(self, server: str) -> None:
        kind = socket.SOCK_STREAM if self._tcp else socket.SOCK_DGRAM
        self._socket, address = self._upstream.open_socket(self._holder, kind, server)
        # A number of our own: nobody who knows the container's can answer in the server's place.
        self._id = secrets.randbelow(1 << 16)
        packet = wire.with_id(self._packet, self._id)
        self._received = b""
        if self._tcp:
            self._socket.connect_ex((address, 53))
            self._unsent = struct.pack(">H", len(packet)) + packet
            self._loop.watch(self._socket.fileno(), self._writable, WRITE)
        else:
            # Connected: what comes from another address never arrives.
            self._socket.connect((address, 53))
            self._socket.send(packet)
            self._loop.watch(self._socket.fileno(), self._arrived)

    def _arrived(self) -> None:
        assert self._socket is not None
        try:
            while True:
                self._judge(self._socket.recv(_LARGEST))
                if self._socket is None:
                    return
        except BlockingIOError:
            return
        except OSError:
            self._next_at_once()

    def _writable(self) -> None:
        assert self._socket is not None
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            self._next_at_once()
            return
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._loop.forget(self._socket.fileno())
            self._loop.watch(self._socket.fileno(), self._readable, READ)

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(_LARGEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._next_at_once()
            return
        self._received += data
        if len(self._received) >= 2:
            length = int.from_bytes(self._received[:2], "big")
            if len(self._received) >= 2 + length:
                self._judge(self._received[2 : 2 + length])

    def _judge(self, answer: bytes) -> None:
        """Take an answer, or go on waiting for one that is."""
        if not wire.same_question(self._query, self._id, answer):
            return
        answer = wire.with_id(answer, self._query.id)
        if wire.code(answer) in (wire.SERVFAIL, wire.REFUSED, wire.NOTIMP):
            # Another server may know; else this is the answer.
            self._refusal = answer
            self._next_at_once()
        else:
            self._finish(answer)

    def _next_at_once(self) -> None:
        self._timer.cancel()
        self.next()

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _finish(self, answer: bytes) -> None:
        if hasattr(self, "_timer"):
            self._timer.cancel()
        self._hang_up()
        self._upstream.under_way -= 1
        self._reply(answer)

"""One connection to a NATS server: bytes to messages and back, handshake and keep-alive."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import Any, Protocol, cast

logger = logging.getLogger(__name__)

PING_INTERVAL = 10.0
"""Seconds; a server that leaves two pings unanswered is given up."""
_MAX_LINE = 64 << 10
_WRITE_HIGH_WATER = 1 << 20
_TOGETHER = 32 << 10
"""Bytes: what is sent in one turn of the loop goes out in one piece, as long as it is less."""

WORKING = b"NATS/1.0\r\nMooring-Working: 1\r\n\r\n"
"""The header of a sign of life: the request is being worked on, the reply is still to come."""


class Disconnected(Exception):
    """The connection was lost, or is not there; whether what was sent arrived is unknown."""


class NoResponders(Exception):
    """Nobody is subscribed to the subject of a request."""


class ProtocolError(Exception):
    """The server said something that is not NATS, or refused us; the message is what it said."""


class Msg:
    """One message as it arrived. `header` is the raw header block, empty if there was none."""

    __slots__ = ("data", "header", "reply", "subject")

    def __init__(self, subject: str, reply: str, header: bytes, data: bytes) -> None:
        self.subject = subject
        self.reply = reply
        self.header = header
        self.data = data

    @property
    def status(self) -> int:
        """The status in the header's first line (`NATS/1.0 503`), 0 if there is none."""
        if not self.header:
            return 0
        text = self.header[8:12].strip()
        return int(text) if text.isdigit() else 0

    @property
    def description(self) -> str:
        """What stands behind the status."""
        return self.header[12 : self.header.find(b"\r\n")].decode(errors="replace").strip()

    def headers(self) -> dict[str, str]:
        """The header fields by name; a repeated name keeps its last value."""
        fields = {}
        for line in self.header.split(b"\r\n")[1:]:
            name, separator, value = line.partition(b":")
            if separator:
                fields[name.decode(errors="replace")] = value.strip().decode(errors="replace")
        return fields


def encode_headers(fields: dict[str, str]) -> bytes:
    """A header block. Values must not contain line ends: they would end the field."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"NATS/1.0\r\n{lines}\r\n".encode()


class Receiver(Protocol):
    """Who a connection belongs to."""

    max_payload: int

    def deliver(self, sid: int, message: Msg) -> None:
        """A message for subscription `sid`."""

    def connection_lost(self, connection: Connection) -> None:
        """Nothing can be sent, nothing will come any more; may be told more than once."""


class Connection(asyncio.Protocol):
    """One connection: bytes to messages and back."""

    def __init__(self, client: Receiver) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._tail = b""
        # The message whose payload is not complete yet: sid, subject, reply, header's size, size.
        self._partial: tuple[int, str, str, int, int] | None = None
        self._chunks: list[bytes] = []
        self._missing = 0
        self._info: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._pongs: list[asyncio.Future[None]] = []
        self._unsent: list[Any] = []
        self._unsent_size = 0
        self._unanswered = 0
        self._pinger: asyncio.TimerHandle | None = None
        self._writable: asyncio.Future[None] | None = None
        self.address = ""
        self.lost = asyncio.Event()
        self.reason = "closed"

    # --- asyncio's side ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected; the server speaks first."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(_WRITE_HIGH_WATER)
        host, port = transport.get_extra_info("peername")[:2]
        self.address = f"{host}:{port}"

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everyone who waits for something of this connection."""
        if exc is not None:
            self.reason = str(exc)
        if self._pinger is not None:
            self._pinger.cancel()
        for future in (self._info, self._writable, *self._pongs):
            if future is not None and not future.done():
                future.set_exception(Disconnected())
                # Not everyone is still waiting: an exception nobody fetched is no news here.
                future.exception()
        self._client.connection_lost(self)
        self.lost.set()

    def pause_writing(self) -> None:
        """The socket's buffer is over its high-water mark."""
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        """The socket's buffer has been sent."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def data_received(self, data: bytes) -> None:
        """Parse what arrived and deliver each complete message."""
        if self._partial is not None:
            self._chunks.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._chunks)
            self._chunks.clear()
        elif self._tail:
            data = self._tail + data
            self._tail = b""
        try:
            self._parse(data)
        except (ProtocolError, LookupError, ValueError) as exc:
            self.reason = str(exc)
            self.close()

    # --- our side ---

    async def handshake(self, name: str, credentials: dict[str, str]) -> None:
        """INFO, CONNECT, PING, PONG; ProtocolError if the server refuses."""
        info = await self._info
        if info.get("tls_required"):
            raise ProtocolError("this nats-server requires TLS, which is not supported")
        self._client.max_payload = int(info.get("max_payload", 1 << 20))
        connect: dict[str, object] = {
            "verbose": False,
            "pedantic": False,
            "lang": "mooring",
            "version": "1",
            "protocol": 1,
            "headers": True,
            "no_responders": True,
            "name": name,
        }
        connect.update(credentials)
        self.write([b"CONNECT ", json.dumps(connect).encode(), b"\r\n"])
        try:
            await self.ping()
        except Disconnected:
            raise ProtocolError(self.reason) from None
        self._pinger = self._loop.call_later(PING_INTERVAL, self._keep_alive)

    def write(self, parts: list[Any]) -> None:
        """Hand bytes to the socket; Disconnected if it is closed."""
        if self._transport.is_closing():
            # asyncio tells us of the loss only when everyone who is runnable has run.
            self._client.connection_lost(self)
            raise Disconnected
        if not self._unsent:
            # After everyone who is runnable now has run: what they send too costs no more calls
            # of the system, neither here nor in the server.
            self._loop.call_soon(self._send)
        self._unsent += parts
        self._unsent_size += sum(map(len, parts))
        if self._unsent_size > _TOGETHER:
            self._send()

    def _send(self) -> None:
        parts = self._unsent
        if not parts:
            return
        small, self._unsent, self._unsent_size = self._unsent_size <= _TOGETHER, [], 0
        if small:
            self._transport.write(b"".join(parts))
        else:
            self._transport.writelines(parts)

    async def drain(self) -> None:
        """Wait until the socket's buffer is below its mark."""
        if self._writable is not None:
            await asyncio.shield(self._writable)

    def ping(self) -> asyncio.Future[None]:
        """A future of the server's answer to a ping sent now."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._pongs.append(future)
        self.write([b"PING\r\n"])
        return future

    def close(self) -> None:
        """Close the socket; `lost` follows."""
        self._send()
        self._transport.abort() if self._unanswered > 2 else self._transport.close()

    def _keep_alive(self) -> None:
        self._unanswered += 1
        if self._unanswered > 2:
            self.reason = "nats-server does not answer"
            self._transport.abort()
            return
        with contextlib.suppress(Disconnected):
            self.ping().add_done_callback(self._alive)
        self._pinger = self._loop.call_later(PING_INTERVAL, self._keep_alive)

    def _alive(self, pong: asyncio.Future[None]) -> None:
        if not pong.cancelled() and pong.exception() is None:
            self._unanswered = 0

    def _parse(self, data: bytes) -> None:
        position, end = 0, len(data)
        head, self._partial = self._partial, None
        while position < end:
            if head is None:
                eol = data.find(b"\r\n", position)
                if eol < 0:
                    self._tail = data[position:]
                    if len(self._tail) > _MAX_LINE:
                        raise ProtocolError("a line of nats-server is too long")
                    return
                head = self._line(data[position:eol])
                position = eol + 2
                if head is None:
                    continue
            sid, subject, reply, header, size = head
            body, stop = position + header, position + size
            if end < stop + 2:
                self._partial, self._missing = head, stop + 2 - end
                self._chunks.append(data[position:])
                return
            head = None
            self._client.deliver(sid, Msg(subject, reply, data[position:body], data[body:stop]))
            position = stop + 2
        if head is not None:
            # The line has arrived and not one byte of what it announces.
            self._partial, self._missing = head, head[4] + 2

    def _line(self, line: bytes) -> tuple[int, str, str, int, int] | None:
        """The head of a message, or None for a control line, which is dealt with here."""
        words = line.split()
        if line.startswith(b"MSG "):
            reply = words[3].decode() if len(words) == 5 else ""
            return int(words[2]), words[1].decode(), reply, 0, int(words[-1])
        if line.startswith(b"HMSG "):
            reply = words[3].decode() if len(words) == 6 else ""
            return int(words[2]), words[1].decode(), reply, int(words[-2]), int(words[-1])
        self._control(line)
        return None

    def _control(self, line: bytes) -> None:
        word = line[:4].upper()
        if word == b"PING":
            with contextlib.suppress(Disconnected):
                self.write([b"PONG\r\n"])
        elif word == b"PONG":
            if self._pongs:
                future = self._pongs.pop(0)
                if not future.done():
                    future.set_result(None)
        elif word == b"INFO":
            if not self._info.done():
                self._info.set_result(json.loads(line[5:]))
        elif word == b"-ERR":
            self.reason = line[5:].decode(errors="replace").strip("'")
            logger.warning("nats-server says: %s", self.reason)
        elif not line.startswith(b"+OK"):
            raise ProtocolError(f"not NATS: {line[:40]!r}")

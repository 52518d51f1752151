"""A small NATS client: the wire protocol, reconnecting, and replies through one inbox.

Written for this engine because every process carries it: the general client imports 12 MB
of modules that we have no use for and runs a task for each subscription. Callbacks here are plain
functions called from the socket's reader; a lost connection fails what waits for a reply
at once, so that the caller can send again as soon as there is a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)

RECONNECT_WAIT = 0.05
"""Seconds between attempts to connect: a restarted nats-server is back within about 100 ms."""
CONNECT_TIMEOUT = 2.0
PING_INTERVAL = 10.0
"""Seconds; a server that leaves two pings unanswered is given up."""
_MAX_LINE = 64 << 10
_WRITE_HIGH_WATER = 1 << 20

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


Callback = Callable[[Msg], None]


class Subscription:
    """A subject we listen to; it is sent again after every reconnect."""

    __slots__ = ("callback", "group", "sid", "subject")

    def __init__(self, sid: int, subject: str, group: str, callback: Callback) -> None:
        self.sid = sid
        self.subject = subject
        self.group = group
        self.callback = callback

    def line(self) -> bytes:
        """The SUB command."""
        return f"SUB {self.subject} {self.group} {self.sid}\r\n".encode()


def encode_headers(fields: dict[str, str]) -> bytes:
    """A header block. Values must not contain line ends: they would end the field."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"NATS/1.0\r\n{lines}\r\n".encode()


class NatsClient:
    """A connection to one of several NATS servers that comes back by itself.

    `servers` is asked before every attempt, so that an address that appears or changes is found.
    """

    def __init__(
        self, servers: Callable[[], list[str]], credentials: Callable[[], dict[str, str]], name: str
    ) -> None:
        self._servers = servers
        self._credentials = credentials
        self._name = name
        self._protocol: _Protocol | None = None
        self._subscriptions: dict[int, Subscription] = {}
        self._sid = 0
        self._inbox = f"_INBOX.{secrets.token_hex(11)}."
        self._token = 0
        self._replies: dict[str, asyncio.Future[Msg]] = {}
        self._signs: dict[str, float] = {}
        self._up = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._attempt = 0
        self._refusal = ""
        self.max_payload = 1 << 20
        self.on_reconnect: list[Callable[[], None]] = []
        """Called each time a connection stands, the subscriptions already sent."""
        self._closed = False

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._protocol is not None

    @property
    def server(self) -> str:
        """`host:port` of the server we are connected to, or empty."""
        return self._protocol.address if self._protocol else ""

    async def start(self, timeout: float) -> None:
        """Connect and go on reconnecting; Disconnected with the reason after `timeout` seconds."""
        self.subscribe(self._inbox + "*", self._on_reply)
        self._keeper = asyncio.create_task(self._keep_connected(), name="nats")
        if not await self.wait_connected(timeout):
            await self.close()
            raise Disconnected(self._refusal or "no answer")

    async def close(self) -> None:
        """Send what is buffered, close, and fail whoever waits for a reply."""
        self._closed = True
        if self._protocol is not None:
            with contextlib.suppress(Disconnected, TimeoutError):
                await self.flush(1.0)
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        if (protocol := self._protocol) is not None:
            protocol.close()
            await protocol.lost.wait()

    async def wait_connected(self, timeout: float | None) -> bool:
        """True as soon as there is a connection, False after `timeout` seconds without one."""
        if self._protocol is not None:
            return True
        try:
            async with asyncio.timeout(timeout):
                await self._up.wait()
        except TimeoutError:
            return False
        return True

    # --- sending ---

    def publish(self, subject: str, data: bytes, reply: str = "", header: bytes = b"") -> None:
        """Hand one message to the socket; Disconnected if there is none."""
        if self._protocol is None:
            raise Disconnected
        if header:
            size = len(header) + len(data)
            line = f"HPUB {subject} {reply} {len(header)} {size}\r\n".encode()
            self._protocol.write([line, header, data, b"\r\n"])
        else:
            line = f"PUB {subject} {reply} {len(data)}\r\n".encode()
            self._protocol.write([line, data, b"\r\n"])

    def publish_parts(self, subject: str, parts: list[Any]) -> None:
        """Like `publish`, for a payload in several pieces that are not joined before sending."""
        if self._protocol is None:
            raise Disconnected
        size = sum(map(len, parts))
        self._protocol.write([f"PUB {subject} {size}\r\n".encode(), *parts, b"\r\n"])

    async def drain(self) -> None:
        """Wait while the socket has more to send than it should; Disconnected if it is lost."""
        if self._protocol is None:
            raise Disconnected
        await self._protocol.drain()

    async def flush(self, timeout: float) -> None:
        """Wait until the server has taken everything sent so far."""
        if self._protocol is None:
            raise Disconnected
        async with asyncio.timeout(timeout):
            await self._protocol.ping()

    async def request(self, subject: str, data: bytes, timeout: float, header: bytes = b"") -> Msg:
        """One request and its one reply; Disconnected, NoResponders or TimeoutError."""
        future, reply = self.expect()
        timer = asyncio.get_running_loop().call_later(timeout, _time_out, future)
        try:
            self.publish(subject, data, reply, header)
            message = await future
        finally:
            timer.cancel()
            self.forget(reply)
        if message.status == 503 and not message.data:
            raise NoResponders
        return message

    def expect(self) -> tuple[asyncio.Future[Msg], str]:
        """A future for one reply and the subject to have it sent to; `forget` it afterwards."""
        self._token += 1
        reply = f"{self._inbox}{self._token:x}"
        future = self._replies[reply] = asyncio.get_running_loop().create_future()
        return future, reply

    def heard(self, reply: str) -> float:
        """When the other side last said that it is at work on this reply (loop time), or 0."""
        return self._signs.get(reply, 0.0)

    def forget(self, reply: str) -> None:
        """No more interest in this reply."""
        self._replies.pop(reply, None)
        self._signs.pop(reply, None)

    def new_inbox(self) -> str:
        """A subject that nobody else uses."""
        return f"_INBOX.{secrets.token_hex(11)}"

    # --- receiving ---

    def subscribe(self, subject: str, callback: Callback, group: str = "") -> Subscription:
        """Call `callback` for every message on `subject`; of a group one member gets each."""
        self._sid += 1
        subscription = Subscription(self._sid, subject, group, callback)
        self._subscriptions[self._sid] = subscription
        self._try_write(subscription.line())
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """No more messages from this subscription."""
        if self._subscriptions.pop(subscription.sid, None):
            self._try_write(f"UNSUB {subscription.sid}\r\n".encode())

    def _try_write(self, line: bytes) -> None:
        # Without a connection there is nothing to say: the next one gets every subscription.
        if self._protocol is not None:
            with contextlib.suppress(Disconnected):
                self._protocol.write([line])

    def deliver(self, sid: int, message: Msg) -> None:
        """From the protocol: a message for subscription `sid`."""
        subscription = self._subscriptions.get(sid)
        if subscription is None:
            return
        try:
            subscription.callback(message)
        except Exception:
            logger.exception("a message on %s was not handled", message.subject)

    def _on_reply(self, message: Msg) -> None:
        future = self._replies.get(message.subject)
        if future is None or future.done():
            return
        if message.header == WORKING:
            self._signs[message.subject] = asyncio.get_running_loop().time()
        else:
            future.set_result(message)

    # --- the connection ---

    async def _keep_connected(self) -> None:
        while not self._closed:
            protocol = await self._connect_once()
            if protocol is None:
                await asyncio.sleep(RECONNECT_WAIT)
                continue
            self._refusal = ""
            try:
                protocol.write([s.line() for s in self._subscriptions.values()])
            except Disconnected:
                continue
            self._protocol = protocol
            self._up.set()
            for callback in self.on_reconnect:
                callback()
            await protocol.lost.wait()
            if not self._closed:
                logger.info("the connection to nats-server is lost: %s", protocol.reason)

    async def _connect_once(self) -> _Protocol | None:
        try:
            servers = self._servers()
            credentials = self._credentials()
            if not servers:
                raise OSError("no address of a nats-server yet")
            self._attempt += 1
            url = urlsplit(servers[self._attempt % len(servers)])
            if url.scheme not in ("nats", ""):
                raise OSError(f"{url.scheme}:// is not supported, use nats://")
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(CONNECT_TIMEOUT):
                _, protocol = await loop.create_connection(
                    lambda: _Protocol(self), url.hostname or "127.0.0.1", url.port or 4222
                )
                try:
                    await protocol.handshake(self._name, credentials)
                except BaseException:
                    protocol.close()
                    raise
        except (OSError, TimeoutError, Disconnected, ProtocolError, LookupError, ValueError) as exc:
            text = str(exc) or "no answer in time"
            if isinstance(exc, ProtocolError) and text != self._refusal:
                logger.error("nats-server refuses us: %s", text)
            self._refusal = text
            return None
        return protocol

    def connection_lost(self, protocol: _Protocol) -> None:
        """From the protocol, at once: nothing can be sent, no reply will come any more."""
        if protocol is not self._protocol:
            return
        self._protocol = None
        self._up.clear()
        waiting, self._replies = self._replies, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(Disconnected())
                # Whoever could not even send does not wait for it.
                future.exception()


def _time_out(future: asyncio.Future[Msg]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())


class _Protocol(asyncio.Protocol):
    """One connection: bytes to messages and back."""

    def __init__(self, client: NatsClient) -> None:
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
        except (ProtocolError, ValueError) as exc:
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

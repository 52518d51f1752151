"""A small NATS client: reconnecting, subscriptions, and replies through one inbox.

Written for this engine because every process carries it: the general client imports 12 MB
of modules that we have no use for and runs a task for each subscription. Callbacks here are plain
functions called from the socket's reader; a lost connection fails what waits for a reply
at once, so that the caller can send again as soon as there is a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from .nats_protocol import WORKING, Connection, Disconnected, Msg, NoResponders, ProtocolError

logger = logging.getLogger(__name__)

RECONNECT_WAIT = 0.05
"""Seconds between attempts to connect: a restarted nats-server is back within about 100 ms."""
CONNECT_TIMEOUT = 2.0

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
        self._connection: Connection | None = None
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
        return self._connection is not None

    @property
    def server(self) -> str:
        """`host:port` of the server we are connected to, or empty."""
        return self._connection.address if self._connection else ""

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
        if self._connection is not None:
            with contextlib.suppress(Disconnected, TimeoutError):
                await self.flush(1.0)
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        if (connection := self._connection) is not None:
            connection.close()
            await connection.lost.wait()

    async def wait_connected(self, timeout: float | None) -> bool:
        """True as soon as there is a connection, False after `timeout` seconds without one."""
        if self._connection is not None:
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
        if self._connection is None:
            raise Disconnected
        if header:
            size = len(header) + len(data)
            line = f"HPUB {subject} {reply} {len(header)} {size}\r\n".encode()
            self._connection.write([line, header, data, b"\r\n"])
        else:
            line = f"PUB {subject} {reply} {len(data)}\r\n".encode()
            self._connection.write([line, data, b"\r\n"])

    def publish_parts(self, subject: str, parts: list[Any]) -> None:
        """Like `publish`, for a payload in several pieces that are not joined before sending."""
        if self._connection is None:
            raise Disconnected
        size = sum(map(len, parts))
        self._connection.write([f"PUB {subject} {size}\r\n".encode(), *parts, b"\r\n"])

    async def drain(self) -> None:
        """Wait while the socket has more to send than it should; Disconnected if it is lost."""
        if self._connection is None:
            raise Disconnected
        await self._connection.drain()

    async def flush(self, timeout: float) -> None:
        """Wait until the server has taken everything sent so far."""
        if self._connection is None:
            raise Disconnected
        async with asyncio.timeout(timeout):
            await self._connection.ping()

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
        if self._connection is not None:
            with contextlib.suppress(Disconnected):
                self._connection.write([line])

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
            connection = await self._connect_once()
            if connection is None:
                await asyncio.sleep(RECONNECT_WAIT)
                continue
            self._refusal = ""
            try:
                connection.write([s.line() for s in self._subscriptions.values()])
            except Disconnected:
                continue
            self._connection = connection
            self._up.set()
            for callback in self.on_reconnect:
                callback()
            await connection.lost.wait()
            if not self._closed:
                logger.info("the connection to nats-server is lost: %s", connection.reason)

    async def _connect_once(self) -> Connection | None:
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
                _, connection = await loop.create_connection(
                    lambda: Connection(self), url.hostname or "127.0.0.1", url.port or 4222
                )
                try:
                    await connection.handshake(self._name, credentials)
                except BaseException:
                    connection.close()
                    raise
        except (OSError, TimeoutError, Disconnected, ProtocolError, LookupError, ValueError) as exc:
            text = str(exc) or "no answer in time"
            if isinstance(exc, ProtocolError) and text != self._refusal:
                logger.error("nats-server refuses us: %s", text)
            self._refusal = text
            return None
        return connection

    def connection_lost(self, connection: Connection) -> None:
        """From the protocol, at once: nothing can be sent, no reply will come any more."""
        if connection is not self._connection:
            return
        self._connection = None
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

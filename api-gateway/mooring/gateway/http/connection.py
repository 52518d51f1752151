"""One client's connection: requests in, one at a time, and their answers out, in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple, cast

from mooring.gateway.errors import HttpError, status_and_message
from mooring.gateway.versions import OLDEST
from mooring.kit import log

from .body import ChunkedBody, LengthBody
from .head import MAX_HEAD, BadHead, Head, parse
from .headway import head_was_read
from .reply import Reply, error_reply, preamble
from .request import Request
from .stream import Answer, ChunkedAnswer, ResponseStream
from .wire import SocketWire, TransportWire, Wire

if TYPE_CHECKING:
    from mooring.gateway.sessions.store import Beginning
    from mooring.gateway.sessions.wire import DurableWire

    from .server import Server

logger = logging.getLogger(__name__)

_LINGER = 2.0
"""Seconds that a client may go on sending a body that was refused, to see the answer."""
_UPGRADE = (("Connection", "Upgrade"), ("Upgrade", "tcp"))


class Kind(Enum):
    """How a route's handler is run."""

    ALWAYS = auto()
    """Answered at once by a plain function, even before the records are there."""
    INSTANT = auto()
    """Answered at once from the records in memory, by a plain function."""
    PLAIN = auto()
    """Goes on when the client has gone: it changes something."""
    STREAM = auto()
    """Ends when the client has gone."""
    HIJACK = auto()
    """May take the connection over."""


InstantHandler = Callable[[Request], Reply]
Handler = Callable[[Request], Awaitable[Reply | None]]


class Call(NamedTuple):
    """What a request turned out to ask for."""

    kind: Kind
    handler: InstantHandler | Handler
    path: str
    query: str
    version: tuple[int, int]
    name: str


class Connection(asyncio.Protocol):
    """The protocol of one connection. Reads stop while a request is handled that wants no more."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._buffer = b""
        self._request: Request | None = None
        self._kind = Kind.PLAIN
        self._task: asyncio.Task[None] | None = None
        self._keep_alive = True
        self._refused = False
        self._ended = False
        self._paused_reading = False
        self._unwritable: asyncio.Future[None] | None = None
        self._lost = False
        self._wire: TransportWire | None = None
        self._handed_over = False

    # --- asyncio's side ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client."""
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Bytes: of a head, a body, or of what comes after."""
        if self._wire is not None:
            self._wire.feed(data)
        elif self._refused:
            return
        elif self._request is None and not self._buffer:
            known = self._server.known.get(data)
            if known is not None:
                # The very bytes of a request that was answered from memory before.
                self._send_instant(*known)
                return
            self._buffer = data
            self._advance()
        elif self._request is not None and not self._request.body_complete:
            self._feed_body(data)
        else:
            self._buffer += data
            if self._request is None:
                self._advance()
            elif len(self._buffer) > MAX_HEAD:
                self.pause_reading()

    def eof_received(self) -> bool:
        """The client sends no more. For HTTP that means it went away, as Go's server sees it."""
        self._ended = True
        if self._wire is not None:
            self._wire.feed_end()
            return True
        if self._task is None:
            return False
        self._keep_alive = False
        self._client_gone()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed, by whomever."""
        self._lost = True
        self._server.connections.discard(self)
        self.resume_writing()
        if self._wire is not None:
            self._wire.lost()
        elif not self._handed_over:
            self._client_gone()

    def pause_writing(self) -> None:
        """The client does not read fast enough."""
        if self._wire is not None:
            self._wire.set_writable(False)
        elif self._unwritable is None:
            self._unwritable = self._server.loop.create_future()

    def resume_writing(self) -> None:
        """It has caught up."""
        if self._wire is not None:
            self._wire.set_writable(True)
        waiting, self._unwritable = self._unwritable, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    # --- requests ---

    def _advance(self) -> None:
        """Begin with the requests that are whole, one after the other."""
        while self._request is None and self._buffer and not self._transport.is_closing():
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > MAX_HEAD:
                    self._refuse(BadHead("request header fields too large", 431))
                return
            raw, self._buffer = self._buffer[: end + 4], self._buffer[end + 4 :]
            try:
                head = parse(raw[:-4].lstrip(b"\r\n"))
            except BadHead as exc:
                self._refuse(exc)
                return
            try:
                call = self._server.find(head)
            except HttpError as exc:
                self._answer_unrouted(head, exc)
            else:
                self._begin(raw, head, call)

    def _answer_unrouted(self, head: Head, exc: HttpError) -> None:
        """404, or a version that is not served: the body of such a request is not read."""
        keep = head.keep_alive and not head.has_body
        reply = error_reply(exc.status, exc.message, plain=exc.plain)
        self._write_reply(reply, keep_alive=keep, head=head.method == "HEAD")
        if not keep:
            self._linger()

    def _begin(self, raw: bytes, head: Head, call: Call) -> None:
        request = Request(self, head, call.path, call.query, call.version, call.name)
        self._keep_alive = head.keep_alive and not self._server.draining
        instant = call.kind is Kind.ALWAYS or (call.kind is Kind.INSTANT and self._server.ready)
        if instant and not head.has_body:
            handler = cast(InstantHandler, call.handler)
            if self._keep_alive:
                self._server.remember(raw, handler, request)
            self._send_instant(handler, request)
            return
        self._request, self._kind = request, call.kind
        if head.has_body:
            request.expect_body(ChunkedBody() if head.chunked else LengthBody(head.length))
            rest, self._buffer = self._buffer, b""
            if rest:
                self._feed_body(rest)
        elif call.kind is Kind.HIJACK:
            self.pause_reading()
        self._task = self._server.start(self._handle(request, call))

    def _feed_body(self, data: bytes) -> None:
        assert self._request is not None
        try:
            self._buffer = self._request.feed(data)
        except BadHead as exc:
            self._request.break_off(exc.message)
            self._refused = True
            self._keep_alive = False
            return
        if self._request.body_complete and self._kind is Kind.HIJACK:
            # What comes next is not HTTP: leave it, and the end of it, in the socket.
            self.pause_reading()

    def _send_instant(self, handler: InstantHandler, request: Request) -> None:
        try:
            reply = handler(request)
        except Exception as exc:
            reply = self._failure(request, exc)
        self._write_reply(reply, keep_alive=self._keep_alive, head=request.method == "HEAD")
        if not self._keep_alive:
            self._transport.close()

    async def _handle(self, request: Request, call: Call) -> None:
        reply: Reply | None
        request_id = request.head.headers.get("x-request-id") or os.urandom(6).hex()
        log.set_context(request=request_id)
        try:
            if not self._server.ready and call.kind is not Kind.ALWAYS:
                await self._server.until_ready()
            if call.kind in (Kind.ALWAYS, Kind.INSTANT):
                reply = cast(InstantHandler, call.handler)(request)
            else:
                reply = await cast(Handler, call.handler)(request)
        except asyncio.CancelledError:
            self._transport.abort()
            return
        except Exception as exc:
            if request.started or (self._lost and isinstance(exc, ConnectionError)):
                # A truncated answer is all that can still tell the client.
                if not isinstance(exc, ConnectionError):
                    logger.exception("%s %s broke off", request.method, request.path)
                if not self._handed_over:
                    self._transport.abort()
                return
            reply = self._failure(request, exc)
        if self._handed_over or self._wire is not None:
            return
        self._finish(request, reply)

    def _failure(self, request: Request, exc: Exception) -> Reply:
        known = status_and_message(exc)
        if known is None:
            logger.exception("%s %s failed", request.method, request.path, exc_info=exc)
            known = 500, f"internal error: {type(exc).__name__}"
        else:
            logger.debug("%s %s: %d %s", request.method, request.path, *known)
        return error_reply(*known, plain=request.version < OLDEST)

    def _finish(self, request: Request, reply: Reply | None) -> None:
        whole = request.body_complete and not self._refused
        keep = self._keep_alive and whole and not self._server.draining
        if reply is not None:
            self._write_reply(reply, keep_alive=keep, head=request.method == "HEAD")
        self._task = None
        if not whole:
            self._linger()
            return
        self._request = None
        if not keep:
            self._transport.close()
            return
        self.resume_reading()
        self._advance()

    def _client_gone(self) -> None:
        if self._request is not None:
            self._request.break_off("unexpected EOF")
        if self._task is not None and self._kind is Kind.STREAM:
            self._task.cancel()

    # --- writing ---

    def _write_reply(self, reply: Reply, *, keep_alive: bool, head: bool = False) -> None:
        if self._transport.is_closing():
            return
        wire = reply.wire[: -len(reply.body)] if head and reply.body else reply.wire
        first = preamble(reply.status)
        if not keep_alive:
            first += b"Connection: close\r\n"
        self._transport.writelines([first, wire])

    def send_parts(self, parts: list[bytes | memoryview]) -> None:
        """Send now or as soon as the socket takes it."""
        if self._lost or self._transport.is_closing():
            raise ConnectionResetError("the client is gone")
        self._transport.writelines(parts)

    async def drained(self) -> None:
        """Wait while the client does not read; ConnectionError once it is gone."""
        if self._unwritable is not None:
            await asyncio.shield(self._unwritable)
        if self._lost:
            raise ConnectionResetError("the client is gone")

    def begin_stream(
        self,
        request: Request,
        status: int,
        content_type: str,
        headers: tuple[tuple[str, str], ...],
    ) -> ResponseStream:
        """The head of an answer that goes on."""
        chunked = not request.head.is_old
        lines = [f"{name}: {value}\r\n" for name, value in headers]
        if chunked:
            lines.append("Transfer-Encoding: chunked\r\n")
        if not chunked or not self._keep_alive or not request.body_complete:
            self._keep_alive = False
            lines.append("Connection: close\r\n")
        lines.append(f"Content-Type: {content_type}\r\n\r\n")
        self.send_parts([preamble(status), "".join(lines).encode("latin-1")])
        return ResponseStream(self, chunked)

    def continue_if_expected(self, head: Head) -> None:
        """`100 Continue`, once, to a client that waits for it."""
        if head.expects_continue and not self._transport.is_closing():
            head.headers.pop("expect")
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # --- reading ---

    def pause_reading(self) -> None:
        """Leave what comes in the socket."""
        if not self._paused_reading and not self._transport.is_closing():
            self._paused_reading = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if self._paused_reading and not self._transport.is_closing():
            self._paused_reading = False
            self._transport.resume_reading()

    # --- the end ---

    async def hijack(
        self,
        request: Request,
        content_type: str,
        head: bytes = b"",
        beginning: Beginning | None = None,
    ) -> Wire:
        """Send the head (of a raw stream, if none is given) and hand the connection over."""
        head = head or self._raw_head(request, content_type)
        if not self._has_tls:
            return await self._take_over(head, beginning, raw=True)
        early, self._buffer = self._buffer, b""
        self._wire = TransportWire(self._transport, early)
        self._transport.write(head)
        self.resume_reading()
        if self._ended:
            self._wire.feed_end()
        return self._wire

    def _raw_head(self, request: Request, content_type: str) -> bytes:
        upgrading = bool(request.head.headers.get("upgrade"))
        lines = f"Content-Type: {content_type}\r\n"
        if upgrading:
            lines += "".join(f"{name}: {value}\r\n" for name, value in _UPGRADE)
        else:
            lines += "Connection: close\r\n"
        return preamble(101 if upgrading else 200) + lines.encode() + b"\r\n"

    @property
    def _has_tls(self) -> bool:
        return self._transport.get_extra_info("sslcontext") is not None

    async def _take_over(
        self, head: bytes, beginning: Beginning | None, *, raw: bool = False
    ) -> Wire:
        """Let go of the transport and go on with the socket alone."""
        # The answers to requests before this one must be on their way first.
        self._transport.set_write_buffer_limits(high=0)
        await self.drained()
        if self._lost or self._transport.is_closing():
            raise ConnectionResetError("the client is gone")
        early, self._buffer = self._buffer, b""
        descriptor = os.dup(self._transport.get_extra_info("socket").fileno())
        self._handed_over = True
        self._transport.abort()
        sock = socket.socket(fileno=descriptor)
        sock.setblocking(False)
        durable: DurableWire | None = None
        if beginning is not None and self._server.sessions is not None:
            durable = self._server.sessions.begin(sock, early, beginning, head)
        wire: Wire = durable or SocketWire(sock, early, self._server.hangups)
        if durable is not None:
            await durable.flush()
        else:
            await wire.send(head)
        if raw:
            await head_was_read(sock)
        return wire

    async def begin_answer(
        self, request: Request, content_type: str, beginning: Beginning
    ) -> Answer:
        """The head of an answer without an end to be seen, which a successor can go on with."""
        task = self._task
        durable = self._server.sessions is not None and task is not None and not self._has_tls
        if not durable or request.head.is_old or not request.body_complete:
            return self.begin_stream(request, 200, content_type, ())
        assert task is not None
        lines = f"Transfer-Encoding: chunked\r\nConnection: close\r\nContent-Type: {content_type}"
        wire = await self._take_over(preamble(200) + lines.encode() + b"\r\n\r\n", beginning)
        running = task
        wire.gone.add_done_callback(lambda _: running.cancel())
        return ChunkedAnswer(wire)

    def _refuse(self, exc: BadHead) -> None:
        """What came is no request: say so and listen to nothing more."""
        self._refused = True
        self._write_reply(error_reply(exc.status, exc.message), keep_alive=False)
        self._linger()

    def _linger(self) -> None:
        """Close, but let a client that is still sending read the answer first."""
        self._refused = True
        self._buffer = b""
        self._request = None
        if self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            with contextlib.suppress(OSError, RuntimeError):
                self._transport.write_eof()
        self.resume_reading()
        self._server.loop.call_later(_LINGER, self._transport.close)

    def stop(self) -> None:
        """Close if idle; else after the answer under way. Streams end now, sessions do not."""
        self._keep_alive = False
        if self._task is None:
            if self._wire is None:
                self._transport.close()
        elif self._kind is Kind.STREAM and not self._handed_over:
            self._task.cancel()

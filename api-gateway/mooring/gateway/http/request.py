"""One request as a handler sees it: what was asked, its body, and the ways to answer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from mooring.gateway.errors import HttpError

from .body import Body
from .head import Head

if TYPE_CHECKING:
    from mooring.gateway.sessions.store import Beginning

    from .connection import Connection
    from .stream import Answer, ResponseStream
    from .wire import Wire

_HIGH_WATER = 256 * 1024
"""Bytes of a body held for a handler that does not read; more stay in the socket."""


class Request:
    """A request being handled. version is the Docker API's that the client speaks."""

    def __init__(
        self,
        connection: Connection,
        head: Head,
        path: str,
        query: str,
        version: tuple[int, int],
        name: str,
    ) -> None:
        self.head = head
        self.method = head.method
        self.path = path
        self.query_text = query
        self.version = version
        self.name = name
        """What stands for `{id}` or `{name}` in the route, decoded."""
        self.started = False
        """Whether the answer's head was sent: from then on there is no other status."""
        self._connection = connection
        self._query: dict[str, list[str]] | None = None
        self._body: Body | None = None
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._arrived: asyncio.Future[None] | None = None
        self._broken: str = ""

    def detached(self) -> Request:
        """The same question without a connection: what an instant handler needs, to be kept."""
        copy = object.__new__(Request)
        copy.__dict__.update(self.__dict__, _connection=None)
        return copy

    # --- the query ---

    @property
    def query(self) -> dict[str, list[str]]:
        """The query's values by name."""
        if self._query is None:
            self._query = {}
            for name, value in parse_qsl(self.query_text, keep_blank_values=True):
                self._query.setdefault(name, []).append(value)
        return self._query

    def get(self, name: str, default: str = "") -> str:
        """The first value of a query parameter."""
        values = self.query.get(name)
        return values[0] if values else default

    # --- the body ---

    @property
    def body_complete(self) -> bool:
        """Whether all of the body has arrived."""
        return self._body is None or self._body.complete

    def expect_body(self, body: Body) -> None:
        """The connection will feed this body."""
        self._body = body

    def feed(self, data: bytes) -> bytes:
        """Take what arrived; returns what follows the body's end."""
        assert self._body is not None
        pieces, rest = self._body.feed(data)
        self._pieces.extend(pieces)
        self._held += sum(map(len, pieces))
        if self._held > _HIGH_WATER:
            self._connection.pause_reading()
        self._wake()
        return rest

    def break_off(self, reason: str) -> None:
        """The rest of the body will not come."""
        if not self.body_complete and not self._broken:
            self._broken = reason
            self._wake()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives; HttpError 400 if it breaks off."""
        self._connection.continue_if_expected(self.head)
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                self._held -= len(piece)
                yield piece
            if self.body_complete:
                return
            if self._broken:
                raise HttpError(400, self._broken)
            self._connection.resume_reading()
            self._arrived = asyncio.get_running_loop().create_future()
            try:
                await self._arrived
            finally:
                self._arrived = None

    async def body(self, limit: int) -> bytes:
        """The whole body, of at most `limit` bytes; HttpError 413."""
        if self.head.length > limit:
            raise HttpError(413, f"request body too large: the limit is {limit} bytes")
        parts: list[bytes] = []
        size = 0
        async for piece in self.chunks():
            size += len(piece)
            if size > limit:
                raise HttpError(413, f"request body too large: the limit is {limit} bytes")
            parts.append(piece)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    # --- answers that are not one Reply ---

    def stream(
        self, content_type: str, status: int = 200, headers: tuple[tuple[str, str], ...] = ()
    ) -> ResponseStream:
        """Send the head of an open-ended answer now."""
        self.started = True
        return self._connection.begin_stream(self, status, content_type, headers)

    async def answer(self, content_type: str, beginning: Beginning) -> Answer:
        """The same for an answer that goes on even if this process does not."""
        self.started = True
        return await self._connection.begin_answer(self, content_type, beginning)

    async def hijack(self, content_type: str, beginning: Beginning | None = None) -> Wire:
        """Turn the connection into a raw stream: 101 if the client asks to upgrade, else 200."""
        self.started = True
        return await self._connection.hijack(self, content_type, beginning=beginning)

    async def upgrade(self, head: bytes) -> Wire:
        """Hand the connection over after this head of an answer."""
        self.started = True
        return await self._connection.hijack(self, "", head)

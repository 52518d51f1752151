"""An answer that goes on: chunked, with back-pressure from the client to whoever writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .connection import Connection
    from .wire import Wire

_AROUND = 16
"""Bytes around one chunk."""


class Answer(Protocol):
    """What handlers write open-ended answers to; a context, left when it is over."""

    limit: int | None
    """Bytes of one write, where there is a limit."""

    async def write(self, data: bytes, state: bytes | None = None) -> None:
        """Send data, after which the answer is at `state`; ConnectionError."""
        ...

    async def finish(self) -> None:
        """The answer is whole."""
        ...

    async def close(self) -> None:
        """Whole or not, nothing more comes."""
        ...


class ResponseStream:
    """The body of an answer whose head was sent; `end` completes it. See Answer."""

    limit: int | None = None

    def __init__(self, connection: Connection, chunked: bool) -> None:
        self._connection = connection
        self._chunked = chunked

    async def write(self, data: bytes | memoryview, state: bytes | None = None) -> None:
        """Send data; waits while the client does not read. ConnectionError once it is gone."""
        if not data:
            return
        if self._chunked:
            self._connection.send_parts([b"%x\r\n" % len(data), data, b"\r\n"])
        else:
            self._connection.send_parts([data])
        await self._connection.drained()

    async def finish(self) -> None:
        """See Answer."""
        self.end()

    async def close(self) -> None:
        """See Answer; its connection knows by itself."""

    def end(self) -> None:
        """The answer is whole."""
        if self._chunked:
            self._connection.send_parts([b"0\r\n\r\n"])


class ChunkedAnswer:
    """See Answer. The body of an answer on a wire, which is closed at the end."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.limit = None if wire.limit is None else wire.limit - _AROUND

    async def write(self, data: bytes, state: bytes | None = None) -> None:
        """See Answer."""
        if data:
            await self._wire.send(b"%x\r\n%b\r\n" % (len(data), data), state)

    async def finish(self) -> None:
        """See Answer."""
        await self._wire.send(b"0\r\n\r\n")

    async def close(self) -> None:
        """See Answer."""
        await self._wire.close()

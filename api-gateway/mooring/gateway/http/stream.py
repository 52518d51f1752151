"""An answer that goes on: chunked, with back-pressure from the client to whoever writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .connection import Connection


class ResponseStream:
    """The body of an answer whose head was sent; `end` completes it."""

    def __init__(self, connection: Connection, chunked: bool) -> None:
        self._connection = connection
        self._chunked = chunked

    async def write(self, data: bytes | memoryview) -> None:
        """Send data; waits while the client does not read. ConnectionError once it is gone."""
        if not data:
            return
        if self._chunked:
            self._connection.send_parts([b"%x\r\n" % len(data), data, b"\r\n"])
        else:
            self._connection.send_parts([data])
        await self._connection.drained()

    def end(self) -> None:
        """The answer is whole."""
        if self._chunked:
            self._connection.send_parts([b"0\r\n\r\n"])

"""Lines of progress for a client that may still be busy with sending its request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from mooring.gateway.http.reply import JSON, dumps
from mooring.gateway.http.request import Request
from mooring.gateway.http.stream import ResponseStream

Line = Mapping[str, Any]


class Showing:
    """Passes lines on. Of each id only the last one waits while the client does not read.

    Some clients read nothing until they have sent everything: whoever reads their request must
    never wait for them to read.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._waiting: dict[str, Line] = {}
        self._changed = asyncio.Event()
        self.stream: ResponseStream | None = None
        """The answer, once something was shown."""

    async def follow(self, lines: asyncio.Queue[Any]) -> None:
        """Take lines until there is a None among them."""
        while (line := await lines.get()) is not None:
            self._waiting[line["id"]] = line
            self._changed.set()

    async def write(self) -> None:
        """Send what waits, for ever."""
        while True:
            await self._changed.wait()
            await self.flush()

    async def flush(self) -> None:
        """Send what waits now."""
        self._changed.clear()
        rows, self._waiting = list(self._waiting.values()), {}
        if rows:
            await self.say(rows)

    async def say(self, rows: Iterable[Line]) -> None:
        """Send these."""
        self.stream = self.stream or self._request.stream(JSON)
        await self.stream.write(wire(rows))


@contextlib.asynccontextmanager
async def showing(request: Request, lines: asyncio.Queue[Any]) -> AsyncIterator[Showing]:
    """Show lines beside the block; when it is over, what had come by then was sent."""
    shown = Showing(request)
    following = asyncio.create_task(shown.follow(lines))
    writing = asyncio.create_task(shown.write())
    try:
        yield shown
        lines.put_nowait(None)
        await following
    finally:
        for task in (following, writing):
            task.cancel()
        await asyncio.gather(following, writing, return_exceptions=True)
    await shown.flush()


def wire(rows: Iterable[Line]) -> bytes:
    """Lines of a progress stream as they are sent."""
    return b"".join(dumps(row) + b"\r\n" for row in rows)


def failure(message: str) -> Line:
    """The line that says what went wrong."""
    return {"errorDetail": {"message": message}, "error": message}

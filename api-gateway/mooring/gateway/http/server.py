"""The listening side: which connections there are, what they may ask, and how it ends."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from mooring.gateway.errors import HttpError

from .connection import Call, Connection, InstantHandler
from .head import Head
from .request import Request
from .wire import HangupWatch

if TYPE_CHECKING:
    from mooring.gateway.sessions.store import Sessions

_MOST_KNOWN = 1024
_READY_TIMEOUT = 30.0
_LOOK = 0.05
_LEFT = 0.5
"""Seconds; what has been called off ends at once."""
_BACKLOG = 4096


class Server:
    """All connections of one gateway."""

    def __init__(self, find: Callable[[Head], Call]) -> None:
        self.find = find
        self.loop = asyncio.get_running_loop()
        self.connections: set[Connection] = set()
        self.hangups = HangupWatch()
        self.sessions: Sessions | None = None
        """Where open-ended answers are kept beyond this process, if anybody keeps them."""
        self.draining = False
        self.known: dict[bytes, tuple[InstantHandler, Request]] = {}
        """Requests answered from memory, by their very bytes: the next one needs no parsing."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._ready = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether the records are there to answer from."""
        return self._ready.is_set()

    def set_ready(self) -> None:
        """The records are there."""
        self._ready.set()

    async def until_ready(self) -> None:
        """Wait for the records; 503 if they do not come."""
        try:
            async with asyncio.timeout(_READY_TIMEOUT):
                await self._ready.wait()
        except TimeoutError:
            raise HttpError(503, "the engine is starting: its state is not there yet") from None

    async def listen(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        """Take connections on a bound socket; with TLS if there is a context."""
        sock.setblocking(False)
        if sock.family == socket.AF_UNIX:
            server = await self.loop.create_unix_server(
                lambda: Connection(self), sock=sock, backlog=_BACKLOG, ssl=context
            )
        else:
            server = await self.loop.create_server(
                lambda: Connection(self), sock=sock, backlog=_BACKLOG, ssl=context
            )
        self._servers.append(server)

    def remember(self, raw: bytes, handler: InstantHandler, request: Request) -> None:
        """Answer these bytes by this handler from now on."""
        if len(self.known) >= _MOST_KNOWN:
            self.known.clear()
        self.known[raw] = (handler, request.detached())

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run the handling of a request; the server owns it."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def drain(self, timeout: float) -> None:
        """Take no more connections; let answers under way end, for up to `timeout` seconds.

        Sessions go on meanwhile: those who are attached do not wait for others' requests.
        """
        self.draining = True
        self.known.clear()
        for server in self._servers:
            server.close()
        for connection in tuple(self.connections):
            connection.stop()
        until = self.loop.time() + timeout
        while (rest := self._answering()) and (left := until - self.loop.time()) > 0:
            # Not longer: what is under way may become a session.
            await asyncio.wait(rest, timeout=min(left, _LOOK))

    def _answering(self) -> set[asyncio.Task[None]]:
        sessions = self.sessions.tasks() if self.sessions is not None else set()
        return self._tasks - sessions

    async def close(self) -> None:
        """End what is still under way."""
        await self.drain(0.0)
        for task in self._answering():
            task.cancel()
        # Sessions that are left to another process have been called off already.
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=_LEFT)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in tuple(self.connections):
            connection.stop()
        self.hangups.close()

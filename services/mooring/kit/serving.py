"""The answering side of the bus: one subject, a bounded number of requests at a time.

A request that takes longer tells its sender every half second that it is being worked on, so that
a sender that hears nothing knows that the process is gone. A request that is sent again is
not carried out again here: it joins the one at work, or gets the answer already given.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Any

from . import log
from .errors import EngineError, Unavailable
from .models.base import Model, Request
from .nats_client import NatsClient
from .nats_protocol import WORKING, Disconnected, Msg
from .wire import decode, encode_error

logger = logging.getLogger(__name__)

CONCURRENCY = 256
QUEUE = 4096
"""Requests that may wait for a free place; one more is refused as unavailable."""
SIGN_OF_LIFE = 0.5
"""Seconds."""
REMEMBERED = 1024
REMEMBERED_SECONDS = 60.0
REMEMBERED_SIZE = 16 << 10
"""Bytes of an answer that is kept for a request sent again; a larger one is made again."""


class _Work:
    """A request at work, and everyone who wants its answer."""

    __slots__ = ("message", "replies", "request")

    def __init__(self, request: Request | Model, message: Msg) -> None:
        self.request = request
        self.message = message
        self.replies = [message.reply]


class Endpoint:
    """Serves one subject with one handler."""

    def __init__(
        self,
        client: NatsClient,
        subject: str,
        request_type: type[Any],
        handler: Callable[[Any], Awaitable[Model]],
    ) -> None:
        self._client = client
        self._subject = subject
        self._request_type = request_type
        self._handler = handler
        self._tasks: set[asyncio.Task[None]] = set()
        self._queue: deque[_Work] = deque()
        self._works: dict[int, _Work] = {}
        self._by_id: dict[str, _Work] = {}
        self._answers: OrderedDict[str, tuple[float, bytes, bytes]] = OrderedDict()
        self._ticker: asyncio.TimerHandle | None = None

    def receive(self, message: Msg) -> None:
        """One message on the subject, from the socket's reader."""
        try:
            request = decode(message.data, self._request_type)
        except EngineError as exc:
            self._send(message.reply, *encode_error(exc))
            return
        request_id = getattr(request, "request_id", "")
        if request_id:
            if (work := self._by_id.get(request_id)) is not None:
                work.replies.append(message.reply)
                return
            if (answer := self._answers.get(request_id)) is not None:
                self._send(message.reply, answer[1], answer[2])
                return
        if len(self._queue) >= QUEUE:
            refusal = Unavailable(f"too many requests to {self._subject} at once")
            self._send(message.reply, *encode_error(refusal))
            return
        work = _Work(request, message)
        self._works[id(work)] = work
        if request_id:
            self._by_id[request_id] = work
        if self._ticker is None:
            self._ticker = asyncio.get_running_loop().call_later(SIGN_OF_LIFE, self._tick)
        if len(self._tasks) < CONCURRENCY:
            self._begin(work)
        else:
            self._queue.append(work)

    async def close(self) -> None:
        """Let what is at work end within a second, then cancel it."""
        if self._ticker is not None:
            self._ticker.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, work: _Work) -> None:
        task = asyncio.create_task(self._answer(work))
        self._tasks.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        while self._queue and len(self._tasks) < CONCURRENCY:
            self._begin(self._queue.popleft())

    async def _answer(self, work: _Work) -> None:
        request_id: str = getattr(work.request, "request_id", "")
        if request_id:
            log.set_context(request=request_id)
        header, data, keep = b"", b"", True
        try:
            reply = await self._handler(work.request)
            data = reply.pack()
        except EngineError as exc:
            header, data = encode_error(exc)
            # What could not be done now may work when it is asked for again.
            keep = not isinstance(exc, Unavailable) and type(exc) is not EngineError
        except asyncio.CancelledError:
            header, data = encode_error(Unavailable("the service is stopping"))
            keep = False
            raise
        except Exception as exc:
            logger.exception("%s failed", self._subject)
            header, data = encode_error(EngineError(f"internal error: {exc}"))
            keep = False
        finally:
            del self._works[id(work)]
            if request_id:
                del self._by_id[request_id]
                if keep and len(data) <= REMEMBERED_SIZE:
                    self._remember(request_id, header, data)
            for subject in work.replies:
                self._send(subject, header, data)

    def _remember(self, request_id: str, header: bytes, data: bytes) -> None:
        now = time.monotonic()
        self._answers[request_id] = (now, header, data)
        while len(self._answers) > REMEMBERED:
            self._answers.popitem(last=False)
        oldest = next(iter(self._answers.values()))
        while oldest[0] < now - REMEMBERED_SECONDS:
            self._answers.popitem(last=False)
            oldest = next(iter(self._answers.values()))

    def _send(self, subject: str, header: bytes, data: bytes) -> None:
        if not subject:
            return
        if len(header) + len(data) > self._client.max_payload:
            header, data = encode_error(EngineError(f"the answer of {self._subject} is too large"))
        try:
            self._client.publish(subject, data, header=header)
        except Disconnected:
            pass  # Asked again over the new connection, the answer is there.

    def _tick(self) -> None:
        self._ticker = None
        if not self._works:
            return
        for work in self._works.values():
            for subject in work.replies:
                self._send(subject, WORKING, b"")
        self._ticker = asyncio.get_running_loop().call_later(SIGN_OF_LIFE, self._tick)

"""Downloads: byte streams opened by their reader, who can open again at any offset.

    reader                                     writer
      OpenDownload(request, data, credit)  →     open_source(request)
      ←  DownloadOpened(control, offset)
      ←  DATA offset …  (up to the credit)
      CREDIT  →                                  (as it is consumed)
      PING  →  ←  PING offset                    (when nothing came for 2 s, after a reconnect,
                                                  and when another writer begins to serve)
      ←  END                                     or CLOSE  →
      CLOSE  →                                   (all of it is there, to the end)

Whoever misses something (a gap, no answer, a writer that is behind what it has sent) opens again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, Protocol, TypeVar, runtime_checkable

from .bus import Bus, served
from .errors import EngineError
from .framing import (
    CHUNK,
    CLOSE,
    CREDIT,
    DATA,
    END,
    GONE,
    MOVED,
    PING,
    SILENCE,
    WINDOW,
    pack,
    pack_end,
    prefix,
    unpack_end,
)
from .models.base import Done, Request
from .nats_protocol import Disconnected, Msg, NoResponders
from .wire import decode

logger = logging.getLogger(__name__)

Q = TypeVar("Q", bound=Request)


class Moved(Exception):
    """Raised by a source: it can't go on from here, the stream is to be opened again."""


class Source(Protocol):
    """What a download is sent from.

    `read` returns up to `limit` bytes from `offset` on, which only ever grows by what was read; it
    may wait for more, and b"" is the end of the stream. What it returned must not change later: it
    is sent without a copy. An EngineError ends the stream with its message, Moved has the reader
    open it again. `close` is called once, whatever happened; `read` is cancelled before.
    """

    async def read(self, offset: int, limit: int) -> bytes:
        """See above."""
        ...

    async def close(self) -> None:
        """See above."""
        ...


@runtime_checkable
class Confirmed(Source, Protocol):
    """A source of which something is given up once its reader has all of it."""

    def confirmed(self) -> None:
        """The reader has it, to the end. Called before `close`, if it is called."""
        ...


class OpenDownload(Request):
    """`request` is the packed command that names the stream; credit in bytes from its start."""

    request: bytes
    data: str
    credit: int


class DownloadOpened(Done):
    """Where the reader sends to, and the offset of the first byte."""

    control: str
    offset: int


async def serve_downloads(
    bus: Bus,
    subject: str,
    request_type: type[Q],
    open_source: Callable[[Q], Awaitable[tuple[Source, int]]],
) -> None:
    """Answer requests for streams; open_source returns the source and the offset to begin at."""
    sending: set[asyncio.Task[None]] = set()

    async def handle(message: OpenDownload) -> DownloadOpened:
        source, offset = await open_source(decode(message.request, request_type))
        sender = _Sender(bus, source, offset, message)
        task = asyncio.create_task(sender.run(), name=f"download {subject}")
        sending.add(task)
        task.add_done_callback(sending.discard)
        return DownloadOpened(control=sender.control, offset=offset)

    async def close() -> None:
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)

    bus.at_close(close)
    await bus.serve(subject, OpenDownload, handle)
    # Readers of one that was killed need not wait until they miss it.
    with contextlib.suppress(Disconnected):
        bus.client.publish(served(subject), b"")


class _Sender:
    """The writing side of one download."""

    def __init__(self, bus: Bus, source: Source, offset: int, message: OpenDownload) -> None:
        self._client = bus.client
        self._source = source
        self._offset = offset
        self._granted = offset + message.credit
        self._data = message.data
        self.control = self._client.new_inbox()
        self._subscription = self._client.subscribe(self.control, self._on_control)
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._more = asyncio.Event()
        self._end = b""
        """Sent already: the last word, to be said again to a reader that asks."""
        self._confirmed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._watcher: asyncio.TimerHandle

    async def run(self) -> None:
        """Send until the end of the source, or until the reader is gone."""
        self._task = asyncio.current_task()
        self._watcher = self._loop.call_later(GONE / 3, self._watch)
        reason, error = "end", None
        try:
            await self._send_all()
            if isinstance(self._source, Confirmed):
                await self._await_confirmation(self._source)
        except (asyncio.CancelledError, Moved):
            reason = MOVED
        except EngineError as exc:
            error = exc
        except Exception as exc:
            logger.exception("a stream failed at %d", self._offset)
            error = EngineError(f"internal error: {exc}")
        finally:
            self._watcher.cancel()
            self._client.unsubscribe(self._subscription)
            if not self._end:
                # Lost, the reader asks, is told that nobody is here, and opens again.
                with contextlib.suppress(Disconnected):
                    last = pack(END, self._offset, pack_end(reason, error))
                    self._client.publish(self._data, last)
            await self._source.close()

    async def _await_confirmation(self, source: Confirmed) -> None:
        """Say that this was all, until the reader says that it has it; GONE seconds at most."""
        self._end = pack(END, self._offset, pack_end("end", None))
        with contextlib.suppress(Disconnected):
            self._client.publish(self._data, self._end)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GONE):
                await self._confirmed.wait()
                source.confirmed()

    async def _send_all(self) -> None:
        while True:
            while (room := self._granted - self._offset) <= 0:
                self._more.clear()
                await self._more.wait()
            data = await self._source.read(self._offset, min(room, CHUNK))
            if not data:
                return
            head = prefix.pack(DATA, 0, self._offset)
            try:
                self._client.publish_parts(self._data, [head, data])
                self._offset += len(data)
                await self._client.drain()
            except Disconnected:
                # What was on its way may be lost: the reader will notice and open again.
                await self._client.wait_connected(GONE)

    def _on_control(self, message: Msg) -> None:
        self._heard = self._loop.time()
        kind, _, offset = prefix.unpack_from(message.data)
        if kind == CLOSE:
            if self._end:
                self._confirmed.set()
            elif self._task is not None:
                self._task.cancel()
            return
        if offset > self._granted:
            self._granted = offset
            self._more.set()
        if kind == PING and message.reply:
            with contextlib.suppress(Disconnected):
                if self._end:
                    self._client.publish(self._data, self._end)
                self._client.publish(message.reply, pack(PING, self._offset))

    def _watch(self) -> None:
        if self._loop.time() - self._heard > GONE and self._client.connected:
            if self._task is not None:
                self._task.cancel()
            return
        self._watcher = self._loop.call_later(GONE / 3, self._watch)


class Download(Generic[Q]):
    """The reading side: iterate over (offset, bytes-like)."""

    def __init__(
        self,
        bus: Bus,
        subject: str,
        request: Q,
        resume: Callable[[Q, int], Q],
        window: int,
        skips: bool,
    ) -> None:
        self._bus = bus
        self._client = bus.client
        self._subject = subject
        self._request = request
        self._resume = resume
        self._window = window
        self._skips = skips
        self.begin = 0
        """Of the first byte."""
        self.offset = 0
        """Of the byte that comes next."""
        self.reason = ""
        """After the end: "end", or why the stream ended."""
        self._received = 0
        self._granted = 0
        self._control = ""
        self._queue: deque[memoryview | Msg] = deque()
        self._arrived = asyncio.Event()
        self._lost = False
        self._heard = 0.0
        self._data = ""
        self._early: list[Msg] | None = None
        self._subscription = self._client.subscribe(self._client.new_inbox(), self._on_message)
        self._loop = asyncio.get_running_loop()
        self._keeper: asyncio.Task[None] | None = None
        self._nudge = asyncio.Event()

    async def open(self) -> None:
        """Open it the first time; the far side's EngineError if it refuses."""
        await self._open(self._request)
        self.begin = self.offset
        self._client.on_reconnect.append(self._nudge.set)
        self._bus.on_served(self._subject).add(self._nudge.set)
        self._keeper = asyncio.create_task(self._keep(), name=f"download of {self._subject}")

    async def close(self) -> None:
        """Tell the writer that no more is wanted."""
        self._bus.on_served(self._subject).discard(self._nudge.set)
        if self._nudge.set in self._client.on_reconnect:
            self._client.on_reconnect.remove(self._nudge.set)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._client.unsubscribe(self._subscription)
        # No more is wanted; or, after the end, all of it is here.
        self._tell(CLOSE)

    async def begun(self) -> bool:
        """Wait for the first bytes, which are left to be read; False if none come for now."""
        while not self._queue and not self._lost:
            self._arrived.clear()
            await self._arrived.wait()
        return bool(self._queue) and not isinstance(self._queue[0], Msg)

    async def __aiter__(self) -> AsyncIterator[tuple[int, memoryview]]:
        while not self.reason:
            while not self._queue:
                if self._lost:
                    await self._open_again()
                    continue
                self._arrived.clear()
                await self._arrived.wait()
            item = self._queue.popleft()
            if isinstance(item, Msg):
                self.reason, _ = unpack_end(item.data[prefix.size :])
                return
            offset = self.offset
            self.offset += len(item)
            yield offset, item
            # Here the caller is done with it.
            if self.offset + self._window - self._granted >= self._window // 4:
                self._granted = self.offset + self._window
                self._tell(CREDIT)

    async def _open(self, request: Q) -> None:
        self._client.unsubscribe(self._subscription)
        self._data = self._client.new_inbox()
        self._early = []
        self._lost = False
        self._subscription = self._client.subscribe(self._data, self._on_message)
        message = OpenDownload(request=request.pack(), data=self._data, credit=self._window)
        opened = await self._bus.request(self._subject, message, DownloadOpened)
        self._control = opened.control
        self._received = self.offset = opened.offset
        self._granted = opened.offset + self._window
        self._heard = self._loop.time()
        early, self._early = self._early, None
        for arrived in early:
            self._on_message(arrived)

    async def _open_again(self) -> None:
        expected = self.offset
        logger.debug("opening %s again at %d", self._subject, expected)
        await self._open(self._resume(self._request, expected))
        if self.offset != expected and not (self._skips and self.offset > expected):
            raise EngineError(
                f"a stream could not be resumed: it is at {self.offset} instead of {expected}"
            )

    def _on_message(self, message: Msg) -> None:
        if self._early is not None:
            self._early.append(message)
            return
        self._heard = self._loop.time()
        if self._lost:
            return
        kind, _, offset = prefix.unpack_from(message.data)
        if offset != self._received:
            self._lose()
        elif kind == DATA:
            payload = memoryview(message.data)[prefix.size :]
            self._received += len(payload)
            self._queue.append(payload)
            self._arrived.set()
        elif kind == END:
            self._end(message)

    def _end(self, message: Msg) -> None:
        reason, _ = unpack_end(message.data[prefix.size :])
        if reason == MOVED:
            self._lose()
            return
        self._queue.append(message)
        self._arrived.set()

    def _lose(self) -> None:
        """Something is missing: what is queued is good, then open again."""
        self._lost = True
        self._arrived.set()

    def _tell(self, kind: int) -> None:
        with contextlib.suppress(Disconnected):
            self._client.publish(self._control, pack(kind, self._granted))

    async def _keep(self) -> None:
        """Ask the writer whether it is there when it is silent, and after a reconnect."""
        while True:
            try:
                async with asyncio.timeout(SILENCE):
                    await self._nudge.wait()
                self._nudge.clear()
            except TimeoutError:
                if self._loop.time() - self._heard < SILENCE:
                    continue
            if self._lost or self._early is not None or not self._client.connected:
                continue
            control = self._control
            try:
                answer = await self._client.request(control, pack(PING, self._granted), SILENCE)
            except Disconnected:
                continue
            except (NoResponders, TimeoutError):
                sent = -1
            else:
                sent = prefix.unpack_from(answer.data)[2]
            # An END that is queued is the reason why nobody is there.
            ended = bool(self._queue) and isinstance(self._queue[-1], Msg)
            if control == self._control and sent != self._received and not ended:
                self._lose()


@contextlib.asynccontextmanager
async def download(
    bus: Bus,
    subject: str,
    request: Q,
    *,
    resume: Callable[[Q, int], Q],
    window: int = WINDOW,
    skips: bool = False,
) -> AsyncIterator[Download[Q]]:
    """Open a stream and read it; it is opened again by itself with resume(request, offset).

    skips: it may then go on at a later byte, if what comes next is gone.
    """
    reading = Download(bus, subject, request, resume, window, skips)
    try:
        await reading.open()
        yield reading
    finally:
        await reading.close()

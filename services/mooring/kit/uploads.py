"""Uploads: byte streams opened by their writer, with one typed reply when all is read.

    writer                                     reader
      OpenUpload(request, control)         →     handler(request, upload)
      ←  UploadOpened(data, credit)
      DATA offset …  (up to the credit)    →
      ←  CREDIT received                         (as it is consumed)
      PING  →  ←  PING credit, received          (when nothing came for 2 s, and after a reconnect)
      END or CLOSE  →
      ←  END reply or error

The writer keeps what the reader has not acknowledged (at most one window) and sends it again when
the connection broke. A reader that died ends the upload with an error: what it made is half.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

from .bus import Bus
from .errors import KINDS, EngineError, Unavailable
from .framing import (
    CHUNK,
    CLOSE,
    CREDIT,
    DATA,
    END,
    GONE,
    PING,
    SILENCE,
    WINDOW,
    pack,
    position,
    prefix,
)
from .models.base import Done, Model, Request
from .nats_protocol import Disconnected, Msg, NoResponders
from .wire import decode

logger = logging.getLogger(__name__)

Q = TypeVar("Q", bound=Request)
R = TypeVar("R", bound=Model)

NOBODY = 4.0
"""Seconds without a sign of the reader after which "nobody is listening" is believed."""
_KEEP_RESULT = 60.0
"""Seconds that a result is kept for a writer that did not get it."""


class OpenUpload(Request):
    """`request` is the packed command that the bytes belong to."""

    request: bytes
    control: str


class UploadOpened(Done):
    """Where to send data, and how many bytes at first."""

    data: str
    credit: int


class UploadResult(Model):
    """The payload of the reader's END: the packed reply, or an error."""

    reply: bytes = b""
    error: str = ""
    message: str = ""


async def serve_uploads(
    bus: Bus,
    subject: str,
    request_type: type[Q],
    handler: Callable[[Q, Upload], Awaitable[Model]],
) -> None:
    """Receive uploads: the handler iterates over the bytes and returns the reply."""
    receiving: set[asyncio.Task[None]] = set()

    async def handle(message: OpenUpload) -> UploadOpened:
        request = decode(message.request, request_type)
        upload = Upload(bus, message.control)
        task = asyncio.create_task(upload.run(handler(request, upload)), name=f"upload {subject}")
        receiving.add(task)
        task.add_done_callback(receiving.discard)
        return UploadOpened(data=upload.data, credit=WINDOW)

    async def close() -> None:
        for task in receiving:
            task.cancel()
        await asyncio.gather(*receiving, return_exceptions=True)

    bus.at_close(close)
    await bus.serve(subject, OpenUpload, handle)


class Upload:
    """The reading side: iterate over the bytes; Unavailable if the writer gave up or died."""

    def __init__(self, bus: Bus, control: str) -> None:
        self._client = bus.client
        self._control = control
        self.data = self._client.new_inbox()
        self._subscription = self._client.subscribe(self.data, self._on_message)
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._received = 0
        self._consumed = 0
        self._granted = WINDOW
        self._queue: deque[memoryview | None] = deque()
        self._arrived = asyncio.Event()
        self._given_up = False
        self._result = b""

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        while True:
            while not self._queue:
                if self._given_up:
                    raise Unavailable("the upload was broken off")
                self._arrived.clear()
                try:
                    async with asyncio.timeout(GONE / 3):
                        await self._arrived.wait()
                except TimeoutError:
                    if self._loop.time() - self._heard > GONE:
                        raise Unavailable("the sender of the upload is gone") from None
            item = self._queue.popleft()
            if item is None:
                return
            self._consumed += len(item)
            yield item
            if self._consumed + WINDOW - self._granted >= WINDOW // 4:
                self._granted = self._consumed + WINDOW
                self._tell(CREDIT)

    async def has_writer(self) -> bool:
        """Whether somebody listens for the result; in doubt, yes.

        No, too, between a restart of nats-server and the writer's coming back: ask again.
        """
        try:
            await self._client.request(self._control, self._position(PING), SILENCE)
        except NoResponders:
            return False
        except (Disconnected, TimeoutError):
            pass  # A writer answers no ping.
        return True

    async def run(self, handling: Awaitable[Model]) -> None:
        """Carry out the handler and send what it returns, until the writer has it."""
        try:
            result = UploadResult(reply=(await handling).pack())
        except asyncio.CancelledError:
            result = UploadResult(error=Unavailable.kind, message="the service is stopping")
        except EngineError as exc:
            result = UploadResult(error=exc.kind, message=exc.message)
        except Exception as exc:
            logger.exception("an upload was not handled")
            result = UploadResult(error=EngineError.kind, message=f"internal error: {exc}")
        self._result = pack(END, self._received, result.pack())
        self._queue.clear()
        self._publish(self._control, self._result)
        try:
            async with asyncio.timeout(_KEEP_RESULT):
                while not self._given_up:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            pass
        finally:
            self._client.unsubscribe(self._subscription)

    def _on_message(self, message: Msg) -> None:
        self._heard = self._loop.time()
        kind, _, offset = prefix.unpack_from(message.data)
        if kind == CLOSE:
            self._given_up = True
            self._arrived.set()
        elif kind == PING:
            self._publish(message.reply, self._position(PING))
            if self._result:
                self._publish(self._control, self._result)
        elif self._result or offset < self._received:
            pass  # Nobody reads any more, or it was here before.
        elif offset > self._received:
            self._tell(CREDIT)  # A gap: the writer sees what we have and sends the rest again.
        elif kind == DATA:
            payload = memoryview(message.data)[prefix.size :]
            self._received += len(payload)
            self._queue.append(payload)
            self._arrived.set()
        elif kind == END and not (self._queue and self._queue[-1] is None):
            self._queue.append(None)
            self._arrived.set()

    def _tell(self, kind: int) -> None:
        self._publish(self._control, self._position(kind))

    def _position(self, kind: int) -> bytes:
        return pack(kind, self._granted, position.pack(self._received))

    def _publish(self, subject: str, data: bytes) -> None:
        with contextlib.suppress(Disconnected):
            self._client.publish(subject, data)


class Uploader(Generic[R]):
    """The writing side: `write` as often as needed, then `finish`."""

    def __init__(self, bus: Bus, subject: str, request: Request, reply: type[R]) -> None:
        self._bus = bus
        self._client = bus.client
        self._subject = subject
        self._request = request
        self._reply = reply
        self._data = ""
        self._offset = 0
        self._granted = 0
        self._unacknowledged: deque[tuple[int, bytes]] = deque()
        self._control = self._client.new_inbox()
        self._subscription = self._client.subscribe(self._control, self._on_control)
        self._changed = asyncio.Event()
        self._result: UploadResult | None = None
        self._dead: EngineError | None = None
        self._ending = False
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._nudge = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open it; the far side's EngineError if it refuses."""
        message = OpenUpload(request=self._request.pack(), control=self._control)
        opened = await self._bus.request(self._subject, message, UploadOpened)
        self._data = opened.data
        self._granted = max(self._granted, opened.credit)
        self._client.on_reconnect.append(self._nudge.set)
        self._keeper = asyncio.create_task(self._keep(), name=f"upload to {self._subject}")

    async def write(self, data: bytes | memoryview) -> None:
        """Send; waits for credit. Raises the reader's error as soon as there is one."""
        for begin in range(0, len(data), CHUNK):
            # A copy if it is a view: the caller may use its buffer again before we are done.
            piece = bytes(data[begin : begin + CHUNK])
            while self._offset + len(piece) > self._granted:
                self._check()
                if self._result is not None:
                    return  # The reader has all it wants; `finish` has its reply.
                self._changed.clear()
                await self._changed.wait()
            self._check()
            self._unacknowledged.append((self._offset, piece))
            self._send(self._offset, piece)
            self._offset += len(piece)
            with contextlib.suppress(Disconnected):
                await self._client.drain()

    async def finish(self) -> R:
        """Say that this was all, and wait for the reply."""
        self._ending = True
        self._end()
        while self._result is None:
            self._check()
            self._changed.clear()
            await self._changed.wait()
        self._check()
        return decode(self._result.reply, self._reply)

    async def close(self) -> None:
        """Leave; without `finish` the reader learns that the upload was broken off."""
        if self._nudge.set in self._client.on_reconnect:
            self._client.on_reconnect.remove(self._nudge.set)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._client.unsubscribe(self._subscription)
        if self._data:
            with contextlib.suppress(Disconnected):
                self._client.publish(self._data, pack(CLOSE, self._offset))

    def _check(self) -> None:
        if self._dead is not None:
            raise self._dead
        if self._result is not None and self._result.error:
            raise KINDS.get(self._result.error, EngineError)(self._result.message)

    def _send(self, offset: int, piece: bytes) -> None:
        # Not sent because there is no connection: it is sent again after the reconnect.
        with contextlib.suppress(Disconnected):
            self._client.publish_parts(self._data, [prefix.pack(DATA, 0, offset), piece])

    def _end(self) -> None:
        with contextlib.suppress(Disconnected):
            self._client.publish(self._data, pack(END, self._offset))

    def _on_control(self, message: Msg) -> None:
        self._heard = self._loop.time()
        kind, _, offset = prefix.unpack_from(message.data)
        if kind == END:
            self._result = UploadResult.unpack(message.data[prefix.size :])
        elif kind == CREDIT:
            before = self._granted
            self._acknowledge(message.data, offset)
            if offset <= before:
                self._nudge.set()  # No new credit: the reader has seen a gap.
        self._changed.set()

    def _acknowledge(self, data: bytes, granted: int) -> int:
        received: int = position.unpack_from(data, prefix.size)[0]
        self._granted = max(self._granted, granted)
        while self._unacknowledged:
            offset, piece = self._unacknowledged[0]
            if offset + len(piece) > received:
                break
            self._unacknowledged.popleft()
        return received

    async def _keep(self) -> None:
        """Ask the reader where it is when it is silent, and after a reconnect; send again."""
        while True:
            # However busy: hearing nothing is how the reader knows that its writer died.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SILENCE):
                    await self._nudge.wait()
            self._nudge.clear()
            if not self._client.connected:
                continue
            try:
                answer = await self._client.request(self._data, pack(PING, self._offset), SILENCE)
            except (Disconnected, TimeoutError):
                if self._loop.time() - self._heard > GONE:
                    self._die("does not answer")
                continue
            except NoResponders:
                # After a restart of nats-server the reader may reconnect a little later than we.
                if self._loop.time() - self._heard > NOBODY:
                    self._die("was restarted")
                    return
                await asyncio.sleep(0.1)
                self._nudge.set()
                continue
            self._heard = self._loop.time()
            received = self._acknowledge(answer.data, prefix.unpack_from(answer.data)[2])
            self._changed.set()
            if received < self._offset:
                for offset, piece in tuple(self._unacknowledged):
                    self._send(offset, piece)
            if self._ending:
                self._end()

    def _die(self, what: str) -> None:
        if self._result is None:
            self._dead = Unavailable(f"the receiver of the upload {what}")
        self._changed.set()


@contextlib.asynccontextmanager
async def upload(
    bus: Bus, subject: str, request: Request, reply: type[R]
) -> AsyncIterator[Uploader[R]]:
    """Open an upload; leaving without `finish` breaks it off."""
    writing = Uploader(bus, subject, request, reply)
    try:
        await writing.open()
        yield writing
    finally:
        await writing.close()

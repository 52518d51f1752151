"""Between a hijacked connection and a container or exec: output one way, input the other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.errors import EngineError, Unavailable
from mooring.kit.models.host import OpenStream, StdinAck, StdinChunk
from mooring.kit.streams import Download, download

from .detach import Scanner
from .frames import FrameError
from .http.wire import Wire
from .output import Formatter, error_text
from .sessions.plans import AttachPlan, OutputPlan
from .sessions.wire import DurableWire

logger = logging.getLogger(__name__)

_LAST_INPUT = 10.0
"""Seconds that the input of a client that has gone may take to be written."""
_ACK_TIMEOUT = 30.0
"""Seconds for one answer to a chunk of input; it is asked again after that."""


def resume_at(request: OpenStream, offset: int, *, begun: bool = True) -> OpenStream:
    """The same stream from an offset on; `begun`: something of it has arrived."""
    return request.model_copy(
        update={
            "offset": offset,
            "begun": begun,
            "tail": None,
            "since_ns": 0,
            "at_run": None,
            "from_end": False,
            "request_id": "",
        }
    )


@contextlib.asynccontextmanager
async def open_log(bus: Bus, node: str, request: OpenStream) -> AsyncIterator[Download[OpenStream]]:
    """A container's log, or an exec's output, as a download from its host.

    A log that is rotated faster than its client reads goes on at what is there.
    """
    subject = subjects.agent(node, subjects.AGENT_STREAM_OPEN)
    begin = -1

    def resume(request: OpenStream, offset: int) -> OpenStream:
        return resume_at(request, offset, begun=offset != begin)

    skips = not request.exec_id
    async with download(bus, subject, request, resume=resume, skips=skips) as reading:
        begin = reading.begin
        yield reading


def formatter_of(plan: OutputPlan) -> Formatter:
    """What makes a client's bytes of the log's."""
    return Formatter(
        raw=plan.raw,
        lines=plan.kind == "logs",
        stdout=plan.stdout,
        stderr=plan.stderr,
        timestamps=plan.timestamps,
        details=plan.details,
        since_ns=plan.since_ns,
        until_ns=plan.until_ns,
    )


async def formatted(
    reading: Download[OpenStream], formatter: Formatter, *, steps: bool
) -> AsyncIterator[tuple[bytes, bytes | None]]:
    """A client's bytes; in steps: small ones, each with the state after it (Formatter.restore)."""
    async for offset, data in reading:
        if not steps:
            if out := formatter.feed(data, offset):
                yield out, None
            continue
        at = 0
        while at < len(data):
            piece = data[at : at + formatter.step(data[at:])]
            if out := formatter.feed(piece, offset + at):
                yield out, formatter.state(offset + at + len(piece))
            at += len(piece)


@dataclass(slots=True)
class Input:
    """Where a client's input goes."""

    node: str
    container: str
    run: int
    exec_id: str = ""
    detach_keys: bytes | None = None
    """Set for a terminal, and only there: its input has no end, the keys leave it."""
    session: str = field(default_factory=lambda: secrets.token_hex(8))
    """Whose offsets the host counts."""

    @classmethod
    def of(cls, plan: AttachPlan) -> Input | None:
        """The input of an attached client, if it has any."""
        if not plan.session:
            return None
        return cls(
            plan.node, plan.container, plan.run, plan.exec_id, plan.detach_keys, plan.session
        )


async def carry_on(
    bus: Bus,
    plan: AttachPlan,
    wire: DurableWire,
    *,
    at_end: Callable[[], Awaitable[None]] | None = None,
    never: Coroutine[Any, Any, object] | None = None,
) -> bool:
    """Go on with an attached client at the byte; whether it has detached in the end."""
    formatter = formatter_of(plan)
    opened = resume_at(plan.opened, formatter.restore(wire.sent))
    async with open_log(bus, plan.node, opened) as reading:
        await wire.flush()
        relay = Relay(bus, wire, formatter, raw=plan.raw, at_end=at_end)
        await relay.run(reading, Input.of(plan), never)
    return relay.detached


_CONSUMED = struct.Struct("<QQB")
"""The state of the input: offset in its session, bytes taken from the client, matched keys."""


class Relay:
    """One attached client."""

    def __init__(
        self,
        bus: Bus,
        wire: Wire,
        formatter: Formatter,
        *,
        raw: bool,
        at_end: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._bus = bus
        self._wire = wire
        self._formatter = formatter
        self._raw = raw
        self._at_end = at_end
        self._detaching: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def detached(self) -> bool:
        """Whether the client sent the detach keys."""
        return self._detaching.done()

    async def run(
        self,
        reading: Download[OpenStream],
        source: Input | None,
        never: Coroutine[Any, Any, object] | None = None,
    ) -> None:
        """Until the output ends, the client detaches, or is gone. The wire is closed then.

        `never` returns if what is waited for will not begin.
        """
        pump = asyncio.create_task(self._pump(reading))
        tasks: list[asyncio.Task[Any]] = [pump]
        ends: set[asyncio.Future[Any]] = {pump, self._wire.gone, self._detaching}
        if never is not None:
            tasks.append(asyncio.create_task(never))
            ends.add(tasks[-1])
        try:
            if source is None:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            else:
                tasks.append(asyncio.create_task(self._input(source)))
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if self._wire.gone.done() and source.detach_keys is None:
                    # What it had sent before, and that this was all, still counts.
                    await asyncio.wait(tasks[-1:], timeout=_LAST_INPUT)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            await self._wire.close()
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, ConnectionError):
                logger.warning("an attached stream broke off: %r", result)

    async def _pump(self, reading: Download[OpenStream]) -> None:
        """Send what is read, as the client wants it, until the stream ends."""
        steps = self._wire.limit is not None
        try:
            async for out, state in formatted(reading, self._formatter, steps=steps):
                await self._wire.send(out, state)
        except (EngineError, FrameError) as exc:
            await self.tell(str(exc))
            return
        if reading.reason != "end":
            await self.tell(reading.reason)
        if self._at_end is not None:
            await self._at_end()

    async def tell(self, message: str) -> None:
        """A message of the engine itself, in the stream."""
        await self._wire.send(error_text(message, raw=self._raw))

    # --- input ---

    async def _input(self, source: Input) -> None:
        """Look at the input, hand it on, and take it from the socket once it was acknowledged."""
        session, offset, taken, matched = source.session, 0, 0, 0
        if isinstance(self._wire, DurableWire) and self._wire.consumed:
            offset, taken, matched = _CONSUMED.unpack(self._wire.consumed)
            self._wire.skip_early(taken)
        scanner = Scanner(source.detach_keys, matched) if source.detach_keys else None
        while True:
            data = await self._wire.peek()
            if not data:
                if scanner is not None:
                    return
                await self._hand_on(source, session, offset, b"", eof=True)
                return
            if scanner is None:
                ack = await self._hand_on(source, session, offset, data)
                count = ack.offset - offset
                taken += count
                self._wire.consume(count, _CONSUMED.pack(ack.offset, taken, 0))
                offset = ack.offset
            else:
                passed, detaches = scanner.feed(data)
                ack = StdinAck(offset=offset)
                while ack.offset < offset + len(passed):
                    rest = passed[ack.offset - offset :]
                    ack = await self._hand_on(source, session, ack.offset, rest)
                    if ack.closed:
                        break
                taken += len(data)
                state = _CONSUMED.pack(ack.offset, taken, scanner.matched)
                self._wire.consume(len(data), state)
                offset = ack.offset
                if detaches:
                    self._detaching.set_result(None)
                    return
            if ack.closed:
                return

    async def _hand_on(
        self, source: Input, session: str, offset: int, data: bytes, *, eof: bool = False
    ) -> StdinAck:
        """Have the host write data; however long that takes. Sent again it is written once."""
        subject = subjects.agent(source.node, subjects.AGENT_STDIN)
        while True:
            chunk = StdinChunk(
                id=source.container,
                run=source.run,
                session=session,
                offset=offset,
                data=data,
                eof=eof,
                exec_id=source.exec_id,
            )
            try:
                return await self._bus.request(subject, chunk, StdinAck, timeout=_ACK_TIMEOUT)
            except Unavailable as exc:
                logger.debug("input waits: %s", exc.message)
            except EngineError as exc:
                # Nobody reads (any more): what the client sends goes nowhere, its output goes on.
                logger.debug("input ends: %s", exc.message)
                return StdinAck(offset=offset, closed=True)

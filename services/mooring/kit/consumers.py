"""Reading streams: shared durable consumers (facts), and following one for oneself (events)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime

from .errors import EngineError
from .jetstream import JetStream, Message, OrderedReader, when_there
from .nats_client import Subscription
from .nats_protocol import Disconnected, Msg

logger = logging.getLogger(__name__)

ACK_WAIT = 3.0
"""Seconds until a message of a consumer that died is delivered to another."""
PROGRESS = 1.0
IN_FLIGHT = 64
_BUFFER_HIGH, _BUFFER_LOW = 512, 128


class Consumer:
    """One member of a durable consumer's group."""

    def __init__(
        self,
        jetstream: JetStream,
        stream: str,
        durable: str,
        handler: Callable[[str, bytes], Awaitable[None]],
        subject: str,
        group: str,
    ) -> None:
        self._jetstream = jetstream
        self._stream = stream
        self._durable = durable
        self._handler = handler
        self._subject = subject
        self._group = group
        self._inbox = f"mooring.deliver.{stream}.{durable}"
        self._subscription: Subscription | None = None
        self._working: dict[str, tuple[asyncio.Task[None], str]] = {}
        self._reconnected = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._ticker: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Create the consumer if it is not there, and begin."""
        client = self._jetstream.client
        self._subscription = client.subscribe(self._inbox, self._receive, self._group)
        client.on_reconnect.append(self._reconnected.set)
        await when_there(self._stream, self._ensure)
        self._keeper = asyncio.create_task(self._keep(), name=f"consumer {self._durable}")

    async def close(self) -> None:
        """Take no more messages; those at work may end within a second."""
        client = self._jetstream.client
        if self._subscription is not None:
            client.unsubscribe(self._subscription)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._ticker is not None:
            self._ticker.cancel()
        tasks = [task for task, _ in self._working.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ensure(self) -> None:
        config = {
            "durable_name": self._durable,
            "deliver_subject": self._inbox,
            "deliver_group": self._group,
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": int(ACK_WAIT * 1e9),
            "max_deliver": -1,
            "max_ack_pending": IN_FLIGHT,
            "replay_policy": "instant",
            **({"filter_subject": self._subject} if self._subject != ">" else {}),
        }
        await self._jetstream.api(
            f"CONSUMER.DURABLE.CREATE.{self._stream}.{self._durable}",
            {"stream_name": self._stream, "config": config},
        )

    async def _keep(self) -> None:
        """A nats-server that lost its state has lost the consumer as well: make it again."""
        while True:
            await self._reconnected.wait()
            self._reconnected.clear()
            try:
                await self._ensure()
            except Exception as exc:
                level = logging.WARNING if isinstance(exc, EngineError) else logging.ERROR
                logger.log(level, "cannot consume %s, trying again: %s", self._stream, exc)
                await asyncio.sleep(0.5)
                self._reconnected.set()

    def _receive(self, message: Msg) -> None:
        if message.status or not message.reply:
            return
        # $JS.ACK.<stream>.<consumer>.<delivered>.<sequence>…: one message is handled once at a
        # time, even if it is delivered again while its handler still runs.
        sequence = message.reply.split(".")[5]
        if sequence in self._working:
            return
        task = asyncio.create_task(self._handle(sequence, message))
        self._working[sequence] = (task, message.reply)
        if self._ticker is None:
            self._ticker = asyncio.get_running_loop().call_later(PROGRESS, self._tick)

    async def _handle(self, sequence: str, message: Msg) -> None:
        answer = b"+ACK"
        try:
            await self._handler(message.subject, message.data)
        except asyncio.CancelledError:
            answer = b"-NAK"
            raise
        except Exception:
            logger.exception("a message on %s was not handled, it comes again", message.subject)
            answer = b'-NAK {"delay": 1000000000}'
        finally:
            del self._working[sequence]
            self._tell(message.reply, answer)

    def _tell(self, subject: str, answer: bytes) -> None:
        # A lost acknowledgement means one more delivery: handlers can be repeated.
        with contextlib.suppress(Disconnected):
            self._jetstream.client.publish(subject, answer)

    def _tick(self) -> None:
        self._ticker = None
        for _, subject in self._working.values():
            self._tell(subject, b"+WPI")
        if self._working:
            self._ticker = asyncio.get_running_loop().call_later(PROGRESS, self._tick)


async def follow(
    jetstream: JetStream, stream: str, subject: str, since_ns: int | None
) -> AsyncGenerator[Message, None]:
    """See Bus.follow. At most a few hundred messages are buffered: then the server waits."""
    buffered: deque[Message] = deque()
    arrived = asyncio.Event()

    def on_message(message: Msg, seq: int, time_ns: int) -> None:
        buffered.append(Message(seq, time_ns, message.subject, message.data))
        arrived.set()
        if len(buffered) >= _BUFFER_HIGH:
            reader.pause()

    start: dict[str, object] = {"deliver_policy": "new"}
    if since_ns is not None:
        start = {"deliver_policy": "by_start_time", "opt_start_time": _stamp(since_ns)}
    reader = OrderedReader(jetstream, stream, subject, on_message=on_message, start=start)
    try:
        await reader.start()
        while True:
            await arrived.wait()
            arrived.clear()
            while buffered:
                if reader.paused and len(buffered) <= _BUFFER_LOW:
                    reader.resume()
                yield buffered.popleft()
    finally:
        await reader.close()


def _stamp(time_ns: int) -> str:
    moment = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns % 1_000_000_000:09d}Z"

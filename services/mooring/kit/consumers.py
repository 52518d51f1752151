"""Reading streams: shared durable consumers (facts), and following one for oneself (events)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime

from .errors import EngineError, Unavailable
from .jetstream import JetStream, Message, OrderedReader, when_there
from .nats_client import Subscription
from .nats_protocol import Disconnected, Msg

logger = logging.getLogger(__name__)

ACK_WAIT = 3.0
"""Seconds until a message of a consumer that died is delivered to another."""
PROGRESS = 1.0
IN_FLIGHT = 64
_REMEMBERED = 1024
_BUFFER_HIGH, _BUFFER_LOW = 512, 128


class _Work:
    """A message being handled, and where its latest delivery wants the acknowledgement."""

    __slots__ = ("connection", "reply", "task")

    def __init__(self, task: asyncio.Task[None], reply: str, connection: int) -> None:
        self.task = task
        self.reply = reply
        self.connection = connection


class Consumer:
    """One member of a durable consumer's group, on a work queue.

    The consumer's own state is kept in memory by the server: what a work queue still holds is what
    has not been acknowledged, and a nats-server killed between its two files delivers nothing any
    more (seen with 2.9). So after a restart it is made anew, and delivers all that is left. An
    acknowledgement that belongs to the connection before would confuse the new one: it is
    given when the message comes again, without handling it again.
    """

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
        self._working: dict[str, _Work] = {}
        self._handled: OrderedDict[str, None] = OrderedDict()
        self._connection = 0
        self._reconnected = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._ticker: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Create the consumer if it is not there, and begin."""
        client = self._jetstream.client
        client.on_reconnect.append(self._on_reconnect)
        self._subscription = client.subscribe(self._inbox, self._receive, self._group)
        await when_there(self._stream, self._ensure)
        self._keeper = asyncio.create_task(self._keep(), name=f"consumer {self._durable}")

    async def close(self) -> None:
        """Take no more messages; those at work may end within a second."""
        client = self._jetstream.client
        if self._subscription is not None:
            client.unsubscribe(self._subscription)
        if self._on_reconnect in client.on_reconnect:
            client.on_reconnect.remove(self._on_reconnect)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._ticker is not None:
            self._ticker.cancel()
        tasks = [work.task for work in self._working.values()]
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
            "mem_storage": True,
            **({"filter_subject": self._subject} if self._subject != ">" else {}),
        }
        await self._jetstream.api(
            f"CONSUMER.DURABLE.CREATE.{self._stream}.{self._durable}",
            {"stream_name": self._stream, "config": config},
        )

    def _on_reconnect(self) -> None:
        self._connection += 1
        self._reconnected.set()

    async def _keep(self) -> None:
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
        # $JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<consumer's>.<time>.<pending>: sequence
        # and time name a message for ever, even if the stream is made anew.
        words = message.reply.split(".")
        key = f"{words[5]}.{words[7]}"
        if (work := self._working.get(key)) is not None:
            # One message is handled once at a time; the newest delivery gets the answer.
            work.reply, work.connection = message.reply, self._connection
            return
        if key in self._handled:
            del self._handled[key]
            self._tell(message.reply, b"+ACK")
            return
        task = asyncio.create_task(self._handle(key, message))
        self._working[key] = _Work(task, message.reply, self._connection)
        if self._ticker is None:
            self._ticker = asyncio.get_running_loop().call_later(PROGRESS, self._tick)

    async def _handle(self, key: str, message: Msg) -> None:
        answer = b"+ACK"
        try:
            await self._handler(message.subject, message.data)
        except asyncio.CancelledError:
            answer = b"-NAK"
            raise
        except Unavailable as exc:
            logger.info("a message on %s comes again: %s", message.subject, exc)
            answer = b'-NAK {"delay": 1000000000}'
        except Exception:
            logger.exception("a message on %s was not handled, it comes again", message.subject)
            answer = b'-NAK {"delay": 1000000000}'
        finally:
            work = self._working.pop(key)
            if work.connection == self._connection:
                self._tell(work.reply, answer)
            elif answer == b"+ACK":
                self._handled[key] = None
                if len(self._handled) > _REMEMBERED:
                    self._handled.popitem(last=False)

    def _tell(self, subject: str, answer: bytes) -> None:
        # A lost acknowledgement means one more delivery: handlers can be repeated.
        with contextlib.suppress(Disconnected):
            self._jetstream.client.publish(subject, answer)

    def _tick(self) -> None:
        self._ticker = None
        for work in self._working.values():
            if work.connection == self._connection:
                self._tell(work.reply, b"+WPI")
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

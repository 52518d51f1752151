"""The bus: typed requests and replies, facts and events, records; over NATS.

Whoever uses it sees models, never a NATS message. Everything waits for a bus that is away,
up to a bound, and goes on when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from . import subjects
from .config import Settings
from .consumers import Consumer, follow
from .errors import Unavailable
from .jetstream import WRONG_LAST_SEQUENCE, ApiError, JetStream, Message
from .models.base import Model, Request
from .nats_client import NatsClient, Subscription
from .nats_protocol import Disconnected, Msg, NoResponders, encode_headers
from .serving import SIGN_OF_LIFE, Endpoint
from .store import Bucket
from .wire import check_reply, decode

__all__ = ["Bus", "Message"]

logger = logging.getLogger(__name__)

Q = TypeVar("Q", bound=Request)
R = TypeVar("R", bound=Model)

CONNECT_TIMEOUT = 30.0
SILENCE = 4 * SIGN_OF_LIFE
"""Seconds without an answer or a sign of life after which a request is sent again."""
_FIRST_WAIT, _LONGEST_WAIT = 0.01, 0.1


class Bus:
    """One process's connection to everything else."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings = settings
        self.client = NatsClient(
            lambda: _servers(settings), lambda: _credentials(settings), f"mooring-{name}"
        )
        self.jetstream = JetStream(self.client)
        self._id = secrets.token_hex(6)
        self._count = 0
        self._endpoints: list[tuple[Subscription, Endpoint]] = []
        self._consumers: list[Consumer] = []
        self._buckets: dict[str, Bucket[Any]] = {}
        self._closing: list[Callable[[], Awaitable[None]]] = []
        self._on_served: dict[str, set[Callable[[], None]]] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, settings: Settings, name: str) -> AsyncIterator[Bus]:
        """Connect, waiting for a bus that is not there yet; Unavailable after 30 s."""
        bus = cls(settings, name)
        try:
            await bus.client.start(CONNECT_TIMEOUT)
        except Disconnected as exc:
            raise Unavailable(f"cannot connect to nats-server: {exc}") from None
        try:
            yield bus
        finally:
            await bus._close()

    @property
    def connected(self) -> bool:
        """Whether the bus is there now."""
        return self.client.connected

    def at_close(self, close: Callable[[], Awaitable[None]]) -> None:
        """Have something closed before the connection is (streams.py, tests)."""
        self._closing.append(close)

    def on_served(self, subject: str) -> set[Callable[[], None]]:
        """Called whenever somebody begins to serve downloads at `subject` (downloads.py)."""
        listeners = self._on_served.get(subject)
        if listeners is None:
            # One subscription to a subject for good: opening a stream costs nothing more.
            listeners = self._on_served[subject] = set()
            waiting = listeners

            def call(_: Msg) -> None:
                for listener in tuple(waiting):
                    listener()

            self.client.subscribe(served(subject), call)
        return listeners

    def new_id(self) -> str:
        """An id for a request, unique for ever."""
        self._count += 1
        return f"{self._id}-{self._count:x}"

    # --- requests ---

    async def request(
        self,
        subject: str,
        message: Request,
        reply: type[R],
        *,
        timeout: float = 30.0,
        silence: float = float("inf"),
    ) -> R:
        """Ask and get the typed answer, or the EngineError of the far side.

        Unavailable if nobody answers within `timeout` seconds, or nobody is even at work on it for
        `silence` seconds. When the connection breaks or the answering process dies, the request is
        sent again under the same request_id.
        """
        if not message.request_id:
            # A copy: the same message sent once more is another request.
            message = message.model_copy(update={"request_id": self.new_id()})
        data = message.pack()
        if len(data) > self.client.max_payload:
            raise Unavailable(f"the request to {subject} is too large: {len(data)} bytes")
        deadline = time.monotonic() + timeout
        reason = f"the bus does not answer ({subject})"
        wait = _FIRST_WAIT
        sign = time.monotonic()
        while (left := min(deadline, sign + silence) - time.monotonic()) > 0:
            began = time.monotonic()
            if not await self.client.wait_connected(left):
                reason = "the bus (nats-server) is away"
                break
            try:
                answer = await self._ask(subject, data, deadline)
            except Disconnected:
                reason = "the bus (nats-server) is away"
                sign = time.monotonic()
                continue
            except NoResponders:
                reason = f"no {_owner(subject)} answers ({subject})"
                await asyncio.sleep(min(wait, left))
                wait = min(wait * 2, _LONGEST_WAIT)
                continue
            except TimeoutError:
                reason = f"the {_owner(subject)} did not answer in time ({subject})"
                if time.monotonic() - began > SILENCE * 1.5:
                    # Longer than nothing would have been waited for: it was at work meanwhile.
                    sign = time.monotonic()
                continue
            check_reply(answer)
            return decode(answer.data, reply)
        raise Unavailable(reason)

    async def _ask(self, subject: str, data: bytes, deadline: float) -> Msg:
        """Send once; TimeoutError after a silence or at the deadline."""
        loop = asyncio.get_running_loop()
        end = loop.time() + max(0.0, deadline - time.monotonic())
        future, inbox = self.client.expect()

        timer: asyncio.TimerHandle

        def check() -> None:
            nonlocal timer
            now = loop.time()
            limit = min(max(self.client.heard(inbox), sent) + SILENCE, end)
            if now < limit:
                timer = loop.call_later(limit - now, check)
            elif not future.done():
                future.set_exception(TimeoutError())

        sent = loop.time()
        timer = loop.call_later(min(SILENCE, end - sent), check)
        try:
            self.client.publish(subject, data, inbox)
            message = await future
        finally:
            timer.cancel()
            self.client.forget(inbox)
        if message.header and message.status == 503 and not message.data:
            raise NoResponders
        return message

    async def serve(
        self,
        subject: str,
        request_type: type[Q],
        handler: Callable[[Q], Awaitable[Model]],
        *,
        group: str = "",
    ) -> None:
        """Answer requests on a subject; of the members of a group one gets each request."""
        endpoint = Endpoint(self.client, subject, request_type, handler)
        subscription = self.client.subscribe(subject, endpoint.receive, group)
        self._endpoints.append((subscription, endpoint))
        # When this returns, the server knows: whoever asks from now on is answered.
        await self._settle()

    # --- messages ---

    async def publish(self, subject: str, message: Model) -> None:
        """Send to whoever listens now. Unavailable if the bus stays away for 30 s."""
        data = message.pack()
        for _ in range(2):
            if not await self.client.wait_connected(30.0):
                break
            try:
                self.client.publish(subject, data)
                await self.client.drain()
                return
            except Disconnected:
                continue
        raise Unavailable("the bus (nats-server) is away")

    async def publish_durable(self, subject: str, message: Model, *, msg_id: str) -> None:
        """Add to a stream; returns when it is stored, however long the bus is away.

        Published again with the same `msg_id` within two minutes it is stored once.
        """
        header = encode_headers({"Nats-Msg-Id": msg_id})
        data = message.pack()
        try:
            await self.jetstream.publish(subject, data, header=header, timeout=None)
        except ApiError as exc:
            raise Unavailable(f"the bus does not store {subject}: {exc}") from exc

    async def consume(
        self,
        stream: str,
        durable: str,
        handler: Callable[[str, bytes], Awaitable[None]],
        *,
        subject: str = ">",
        group: str,
    ) -> None:
        """Handle every message of a stream at least once, shared by the members of `group`.

        Acknowledged when the handler has returned; delivered again after an exception or when the
        process has died. Up to 64 handlers run at a time, so the order is not the stream's.
        """
        consumer = Consumer(self.jetstream, stream, durable, handler, subject, group)
        self._consumers.append(consumer)
        await consumer.start()

    def follow(
        self, stream: str, *, subject: str, since_ns: int | None = None
    ) -> AsyncGenerator[Message, None]:
        """The messages of a stream in order, from `since_ns` (Unix) on or only new ones; no end.

        Close it (`contextlib.aclosing`) when leaving: until then it goes on reading.
        """
        return follow(self.jetstream, stream, subject, since_ns)

    async def last(self, stream: str, subject: str) -> Message | None:
        """The last message on a subject of a stream."""
        message = await self.jetstream.last(stream, subject)
        if message is None:
            return None
        fields = message.headers()
        return Message(
            int(fields["Nats-Sequence"]),
            _nanoseconds(fields.get("Nats-Time-Stamp", "")),
            fields.get("Nats-Subject", subject),
            message.data,
        )

    # --- records ---

    async def bucket(self, name: str, model: type[R]) -> Bucket[R]:
        """The KV bucket of this name; created if it is not there."""
        bucket: Bucket[R] | None = self._buckets.get(name)
        if bucket is None:
            bucket = Bucket(self.jetstream, name, model)
            self._buckets[name] = bucket
            await bucket.ensure()
        return bucket

    async def ensure_streams(self) -> None:
        """Create the streams of facts and events, with the bounds of the settings."""
        common = {"storage": "file", "num_replicas": 1, "allow_direct": True, "max_consumers": -1}
        await self.jetstream.ensure_stream(
            {
                **common,
                "name": subjects.FACTS_STREAM,
                "subjects": [subjects.FACTS, subjects.FACTS_PIN],
                "retention": "workqueue",
                "discard": "new",
                "max_bytes": 1 << 30,
            }
        )
        await self._pin(subjects.FACTS_PIN)
        await self.jetstream.ensure_stream(
            {
                **common,
                "name": subjects.EVENTS_STREAM,
                "subjects": [subjects.EVENTS],
                "retention": "limits",
                "discard": "old",
                "max_bytes": self.settings.events_max_bytes,
                "max_age": self.settings.events_max_age * 1_000_000_000,
            }
        )

    async def _pin(self, subject: str) -> None:
        """Keep one message in a work queue for ever.

        Whenever one is empty, the server deletes its file and makes a new one for the next message.
        """
        header = encode_headers({"Nats-Expected-Last-Subject-Sequence": "0"})
        try:
            await self.jetstream.publish(subject, b"", header=header)
        except ApiError as exc:
            if exc.code != WRONG_LAST_SEQUENCE:
                raise

    async def _settle(self) -> None:
        with contextlib.suppress(Disconnected, TimeoutError):
            await self.client.flush(5.0)

    async def drain(self) -> None:
        """Take no more requests, and let those at work end, for a second at most.

        Streams that are open go on meanwhile: who is attached does not wait for others' requests.
        """
        endpoints, self._endpoints = self._endpoints, []
        for subscription, _ in endpoints:
            self.client.unsubscribe(subscription)
        await asyncio.gather(*(endpoint.close() for _, endpoint in endpoints))

    async def _close(self) -> None:
        await self.drain()
        for close in self._closing:
            await close()
        for consumer in self._consumers:
            await consumer.close()
        for bucket in self._buckets.values():
            await bucket.close()
        await self.client.close()


def _servers(settings: Settings) -> list[str]:
    if settings.nats_url:
        return [url.strip() for url in settings.nats_url.split(",") if url.strip()]
    try:
        return [json.loads((settings.run_dir / "nats.json").read_text())["url"]]
    except (KeyError, ValueError):
        return []


def _credentials(settings: Settings) -> dict[str, str]:
    found: dict[str, str] = json.loads(settings.credentials_file.read_text())
    return {"user": found["user"], "pass": found["password"]}


def _owner(subject: str) -> str:
    """Which part of the engine a subject belongs to, in a user's words."""
    words = subject.split(".")
    if words[:2] == ["mooring", "lifecycle"]:
        return "lifecycle manager"
    if words[:2] == ["mooring", "host"] and len(words) > 3:
        part = {"runtime": "runtime worker", "agent": "shim agent"}.get(words[3], words[3])
        return f"{part} of node {words[2]}"
    return "service"


def _nanoseconds(stamp: str) -> int:
    """RFC 3339 with up to nine digits of a second, as Unix time in nanoseconds; 0 if empty."""
    if not stamp:
        return 0
    from datetime import datetime

    whole, _, fraction = stamp.rstrip("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole + "+00:00").timestamp())
    return seconds * 1_000_000_000 + int(fraction.ljust(9, "0")[:9] or 0)


def served(subject: str) -> str:
    """Where it is said that somebody begins to serve downloads at `subject`."""
    return f"{subject}.served"

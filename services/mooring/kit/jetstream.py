"""JetStream's API over our client: streams, consumers, acknowledged publishing, ordered reading."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from .errors import EngineError, Unavailable
from .nats_client import NatsClient, Subscription
from .nats_protocol import Disconnected, Msg, NoResponders

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT = 5.0
"""Seconds to wait for one answer of JetStream before asking again."""
RETRY_WAIT = 0.02
HEARTBEAT = 2.0
"""Seconds; an ordered reader that hears nothing for three of these opens again."""

WRONG_LAST_SEQUENCE = 10071
STREAM_NOT_FOUND = 10059
_STREAM_EXISTS = 10058


class ApiError(EngineError):
    """JetStream refused; `code` is its err_code."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"JetStream: {description}")
        self.code = code


class Message(NamedTuple):
    """One message of a stream. `time_ns` is when the stream took it (Unix)."""

    seq: int
    time_ns: int
    subject: str
    data: bytes


class JetStream:
    """The calls we need; each waits for a bus that is away, up to its timeout."""

    def __init__(self, client: NatsClient) -> None:
        self.client = client

    async def call(
        self,
        subject: str,
        data: bytes = b"",
        *,
        header: bytes = b"",
        timeout: float | None = 30.0,
        on_uncertain: Callable[[], None] | None = None,
    ) -> Msg:
        """A request that is sent again until answered; Unavailable after `timeout` seconds.

        `on_uncertain` is called before sending again what may have been carried out already.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise Unavailable("the bus (nats-server) does not answer")
            if not await self.client.wait_connected(left):
                raise Unavailable("the bus (nats-server) is away")
            wait = ANSWER_TIMEOUT if left is None else min(ANSWER_TIMEOUT, left)
            try:
                return await self.client.request(subject, data, wait, header)
            except NoResponders:
                # JetStream is still recovering, or the stream is not there (yet).
                await asyncio.sleep(RETRY_WAIT)
            except (Disconnected, TimeoutError):
                if on_uncertain is not None:
                    on_uncertain()

    async def api(self, verb: str, body: dict[str, Any], timeout: float = 30.0) -> dict[str, Any]:
        """A call of the JSON API; ApiError if it refuses."""
        data = json.dumps(body).encode() if body else b""
        reply = await self.call(f"$JS.API.{verb}", data, timeout=timeout)
        return _checked(reply.data)

    async def ensure_stream(self, config: dict[str, Any]) -> dict[str, Any]:
        """Create the stream, or bring an existing one to this configuration; its info."""
        name = config["name"]
        try:
            return await self.api(f"STREAM.CREATE.{name}", config)
        except ApiError as exc:
            if exc.code != _STREAM_EXISTS:
                raise
        return await self.api(f"STREAM.UPDATE.{name}", config)

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        header: bytes = b"",
        timeout: float | None = 30.0,
        on_uncertain: Callable[[], None] | None = None,
    ) -> int:
        """Store one message; returns its sequence once it is stored. ApiError if refused."""
        reply = await self.call(
            subject, data, header=header, timeout=timeout, on_uncertain=on_uncertain
        )
        return int(_checked(reply.data)["seq"])

    async def last(self, stream: str, subject: str, timeout: float = 30.0) -> Msg | None:
        """The last message on a subject, its sequence and time in its headers; None if none."""
        reply = await self.call(f"$JS.API.DIRECT.GET.{stream}.{subject}", timeout=timeout)
        if reply.status == 404:
            return None
        if reply.status:
            raise ApiError(reply.status, reply.description)
        return reply


async def when_there(stream: str, act: Callable[[], Awaitable[None]]) -> None:
    """Do something with a stream that another process may still have to create; Unavailable."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return await act()
        except ApiError as exc:
            if exc.code != STREAM_NOT_FOUND:
                raise
            if time.monotonic() > deadline:
                raise Unavailable(f"nobody has created the stream {stream}") from exc
            await asyncio.sleep(0.05)


def _checked(data: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(data)
    if error := answer.get("error"):
        raise ApiError(int(error.get("err_code", 0)), str(error.get("description", "")))
    return answer


class OrderedReader:
    """Every message of a stream (below a subject) in order, through any restart of nats-server.

    An ephemeral push consumer that is replaced, from the next sequence on, after a gap, a
    reconnect or silence. `on_begin` is called when it starts at the beginning again, because the
    stream was made anew; `on_current` when everything there is has been delivered; `on_message`
    gets the message, its sequence and its time. All run in the socket's reader, must not block.
    After `whole_after` seconds away it begins again too: what was deleted may have left no mark.
    """

    def __init__(
        self,
        jetstream: JetStream,
        stream: str,
        subject: str,
        *,
        on_message: Callable[[Msg, int, int], None],
        on_begin: Callable[[], None] = lambda: None,
        on_current: Callable[[], None] = lambda: None,
        start: dict[str, Any] | None = None,
        whole_after: float | None = None,
    ) -> None:
        self._jetstream = jetstream
        self._stream = stream
        self._subject = subject
        self._on_message = on_message
        self._on_begin = on_begin
        self._on_current = on_current
        self._start = start or {"deliver_policy": "all"}
        self._whole_after = whole_after
        self._subscription: Subscription | None = None
        self._created = ""
        self._delivered = 0
        self._next = 1
        self._heard = 0.0
        self.seq = 0
        """The sequence of the last message delivered, or that there was nothing up to it."""
        self._reopen = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stalled = ""
        self._goal = 0
        """The stream's last sequence when this was opened."""
        self._current = False
        """`on_current` was called since then."""
        self.paused = False

    async def start(self) -> None:
        """Open it; messages arrive from now on."""
        self._jetstream.client.on_reconnect.append(self._reopen.set)
        await when_there(self._stream, self._open)
        self._reopen.clear()
        self._task = asyncio.create_task(self._keep_open(), name=f"reader {self._stream}")

    async def close(self) -> None:
        """No more messages."""
        client = self._jetstream.client
        if self._reopen.set in client.on_reconnect:
            client.on_reconnect.remove(self._reopen.set)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._subscription is not None:
            client.unsubscribe(self._subscription)

    def pause(self) -> None:
        """Ask for no more than is on its way (flow control) until `resume`."""
        self.paused = True

    def resume(self) -> None:
        """Go on after `pause`."""
        self.paused = False
        if self._stalled:
            self._answer(self._stalled)

    async def _keep_open(self) -> None:
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT):
                    await self._reopen.wait()
            except TimeoutError:
                if time.monotonic() - self._heard < 3 * HEARTBEAT:
                    continue
            self._reopen.clear()
            try:
                await self._open()
            except Exception as exc:
                level = logging.WARNING if isinstance(exc, EngineError) else logging.ERROR
                logger.log(level, "cannot read %s, trying again: %s", self._stream, exc)
                self._reopen.set()
                await asyncio.sleep(0.2)

    async def _open(self) -> None:
        client = self._jetstream.client
        if self._subscription is not None:
            client.unsubscribe(self._subscription)
        info = await self._jetstream.api(f"STREAM.INFO.{self._stream}", {})
        last = int(info["state"]["last_seq"])
        first_time = not self._created
        # A stream made anew counts from 1 again: what we know of the old one says nothing.
        anew = info["created"] != self._created or last < self.seq
        if self._whole_after is not None:
            anew = anew or time.monotonic() - self._heard > self._whole_after
        self._created = info["created"]
        if first_time or (self.seq == 0 and not anew):
            position = self._start
        elif anew:
            position = {"deliver_policy": "all"}
            self.seq = 0
        else:
            position = {"deliver_policy": "by_start_sequence", "opt_start_seq": self.seq + 1}
        if position.get("deliver_policy") == "new":
            # By number, so that an opening repeated before the first message misses none.
            position = {"deliver_policy": "by_start_sequence", "opt_start_seq": last + 1}
            self.seq = last
        inbox = client.new_inbox()
        self._next = 1
        self._delivered = 0
        self._goal, self._current = last, False
        self._stalled = ""
        self._subscription = client.subscribe(inbox, self._receive)
        consumer = {
            "stream_name": self._stream,
            "config": {
                **position,
                "deliver_subject": inbox,
                "ack_policy": "none",
                "max_deliver": 1,
                "replay_policy": "instant",
                "flow_control": True,
                "idle_heartbeat": int(HEARTBEAT * 1e9),
                "mem_storage": True,
                "num_replicas": 1,
                **({"filter_subject": self._subject} if self._subject != ">" else {}),
            },
        }
        if anew and not first_time:
            self._on_begin()
        made = await self._jetstream.api(f"CONSUMER.CREATE.{self._stream}", consumer)
        self._heard = time.monotonic()
        pending = int(made.get("num_pending", 0)) + int(made["delivered"]["consumer_seq"])
        if pending == 0:
            self.seq = max(self.seq, last)
        if pending == 0 or self.seq >= last:
            self._is_current()

    def _is_current(self) -> None:
        if not self._current:
            self._current = True
            self._on_current()

    def _receive(self, message: Msg) -> None:
        self._heard = time.monotonic()
        status = message.status
        if status == 100:
            self._control(message)
            return
        words = message.reply.split(".")
        # $JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<consumer's>.<time>.<pending>, and
        # from a server with domains two more words after ACK.
        if len(words) < 9:
            return
        sequence, own, time_ns, pending = map(int, words[-4:] if len(words) == 9 else words[7:11])
        if own != self._next:
            self._reopen.set()
            return
        self._next += 1
        self._delivered = own
        self.seq = sequence
        self._on_message(message, sequence, time_ns)
        # A restarted nats-server 2.9 may count messages as pending that were deleted, and so
        # never come to 0: a copy that waited for that was never complete.
        if pending == 0 or sequence >= self._goal:
            self._is_current()

    def _control(self, message: Msg) -> None:
        if message.reply:
            self._answer(message.reply)
            return
        fields = message.headers()
        if stalled := fields.get("Nats-Consumer-Stalled"):
            self._answer(stalled)
        sent = int(fields.get("Nats-Last-Consumer", "0"))
        if sent > self._delivered:
            self._reopen.set()
        elif sent == self._delivered and not stalled and not self.paused:
            # Idle, and we have all that was sent: what is still pending there is not there.
            self._is_current()

    def _answer(self, subject: str) -> None:
        if self.paused:
            self._stalled = subject
            return
        self._stalled = ""
        try:
            self._jetstream.client.publish(subject, b"")
        except Disconnected:
            self._reopen.set()

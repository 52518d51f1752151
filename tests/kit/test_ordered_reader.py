"""A copy is complete when all there is has come, whatever the server still counts as pending."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from mooring.kit.jetstream import JetStream, OrderedReader
from mooring.kit.nats_protocol import Msg


class FakeClient:
    def __init__(self) -> None:
        self.on_reconnect: list[Callable[[], None]] = []
        self.receive: Callable[[Msg], None]

    def new_inbox(self) -> str:
        return "_INBOX.1"

    def subscribe(self, subject: str, receive: Callable[[Msg], None]) -> str:
        self.receive = receive
        return subject

    def unsubscribe(self, subscription: str) -> None:
        pass


class FakeJetStream:
    """A stream of two messages, with five to come if one believes the server."""

    def __init__(self, last: int, early: int = 0) -> None:
        self.client = FakeClient()
        self._last = last
        self._early = early

    async def api(self, subject: str, _: dict[str, Any]) -> dict[str, Any]:
        if subject.startswith("STREAM.INFO"):
            return {"created": "now", "state": {"last_seq": self._last}}
        for number in range(1, self._early + 1):
            self.deliver(number)
        return {"num_pending": 7 - self._early, "delivered": {"consumer_seq": self._early}}

    def deliver(self, number: int) -> None:
        reply = f"$JS.ACK.S.c.1.{number}.{number}.0.{7 - number}"
        self.client.receive(Msg("S.x", reply, b"", b""))

    def idle(self, delivered: int) -> None:
        header = f"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: {delivered}\r\n\r\n"
        self.client.receive(Msg("_INBOX.1", "", header.encode(), b""))


async def _opened(stream: FakeJetStream, seen: list[str]) -> OrderedReader:
    reader = OrderedReader(
        cast(JetStream, stream), "S", ">",
        on_message=lambda *_: seen.append("message"), on_current=lambda: seen.append("current"),
    )  # fmt: skip
    await reader.start()
    return reader


async def test_the_last_sequence_completes_a_copy_though_the_server_counts_more() -> None:
    stream, seen = FakeJetStream(last=2), list[str]()
    reader = await _opened(stream, seen)
    stream.deliver(1)
    assert seen == ["message"]
    stream.deliver(2)
    assert seen == ["message", "message", "current"]
    await reader.close()


async def test_messages_that_come_before_the_answer_complete_it_as_well() -> None:
    seen: list[str] = []
    reader = await _opened(FakeJetStream(last=2, early=2), seen)
    assert seen == ["message", "message", "current"]
    await reader.close()


async def test_an_idle_server_completes_it_where_the_last_message_was_deleted() -> None:
    stream, seen = FakeJetStream(last=9), list[str]()
    reader = await _opened(stream, seen)
    stream.deliver(1)
    stream.idle(0)
    stream.deliver(2)
    assert seen[:1] + seen[-1:] == ["message", "message"]
    stream.idle(2)
    assert seen[-1] == "current"
    assert seen.count("current") == 1
    await reader.close()

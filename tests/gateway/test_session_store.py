"""Which sessions a gateway finds, keeps and lets go, whatever moment its predecessor died at."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator

import pytest

from mooring.gateway.http.wire import HangupWatch
from mooring.gateway.sessions.plans import Plan
from mooring.gateway.sessions.slots import Slots
from mooring.gateway.sessions.store import Beginning, Sessions
from mooring.gateway.sessions.wire import DurableWire
from tests.fakes import FakeManager

Pair = Callable[[], tuple[socket.socket, socket.socket]]


@pytest.fixture
def client() -> Iterator[Pair]:
    """Makes a client's end and ours."""
    with contextlib.ExitStack() as made:

        def make() -> tuple[socket.socket, socket.socket]:
            theirs, ours = socket.socketpair()
            made.enter_context(theirs)
            made.enter_context(ours)
            ours.setblocking(False)
            return theirs, ours

        yield make


@pytest.fixture
def manager() -> FakeManager:
    return FakeManager()


async def carried_on(sessions: Sessions) -> list[str]:
    """Resume, and say which sessions were gone on with, and which errands were run."""
    found = []

    async def carry_on(description: bytes, make: Callable[[bytes], DurableWire]) -> None:
        found.append(Plan.unpack(description).kind)
        await make(b"").flush()

    async def run(description: bytes) -> None:
        found.append(f"errand {Plan.unpack(description).kind}")

    await sessions.resume(carry_on, run)
    return found


async def test_a_head_that_was_not_sent_is_sent_by_the_successor(
    manager: FakeManager, client: Pair
) -> None:
    """A client had waited for ever."""
    before = Sessions(manager, HangupWatch())
    theirs, ours = client()
    assert before.begin(ours, b"", Beginning(Plan(kind="old")), b"head")
    assert await carried_on(Sessions(manager, HangupWatch())) == ["old"]
    assert theirs.recv(100) == b"head"


async def test_the_head_of_a_session_that_did_not_begin_is_sent_to_nobody(
    manager: FakeManager, client: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Sessions(manager, HangupWatch())
    with monkeypatch.context() as killed:
        killed.setattr(Slots, "use", lambda *_: None)
        before.begin(client()[1], b"", Beginning(Plan(kind="old")), b"head")
    after = Sessions(manager, HangupWatch())
    assert await carried_on(after) == [] and "client.0" not in manager.kept
    theirs, ours = client()
    wire = after.begin(ours, b"", Beginning(Plan(kind="new")), b"another")
    assert wire is not None
    await wire.flush()
    assert theirs.recv(100) == b"another"


async def test_an_errand_is_run_by_the_successor_unless_it_was_done(manager: FakeManager) -> None:
    before = Sessions(manager, HangupWatch())
    done = before.undertake(Plan(kind="one"))
    assert done is not None and before.undertake(Plan(kind="two")) is not None
    before.done(done)
    after = Sessions(manager, HangupWatch())
    assert await carried_on(after) == ["errand two"]
    assert await carried_on(Sessions(manager, HangupWatch())) == []


async def test_a_session_that_begins_before_the_old_ones_are_resumed_is_left_alone(
    manager: FakeManager, client: Pair
) -> None:
    """It had been taken for one whose client had gone: its slot was given away a second time, and
    one client got another's bytes."""
    before = Sessions(manager, HangupWatch())
    _, ours = client()
    assert before.begin(ours, b"", Beginning(Plan(kind="old")))
    after = Sessions(manager, HangupWatch())
    theirs, ours = client()
    wire = after.begin(ours, b"", Beginning(Plan(kind="new")))
    assert wire is not None
    assert await carried_on(after) == ["old"]
    assert "client.1" in manager.kept
    others = [after.begin(client()[1], b"", Beginning(Plan(kind="other"))) for _ in range(3)]
    for other in others:
        assert other is not None
        await other.send(b"theirs")
    await wire.send(b"ours")
    assert theirs.recv(100) == b"ours"


async def test_pipes_that_were_kept_by_half_are_not_mixed_with_new_ones(
    manager: FakeManager, client: Pair
) -> None:
    Sessions(manager, HangupWatch())
    reading, writing = os.pipe()
    manager.store("out.0", reading)
    os.close(reading)
    os.close(writing)
    sessions = Sessions(manager, HangupWatch())
    theirs, ours = client()
    wire = sessions.begin(ours, b"", Beginning(Plan(kind="new")))
    assert wire is not None
    assert [len(manager.kept[name]) for name in ("out.0", "in.0")] == [2, 2]
    await wire.send(b"hello")
    assert theirs.recv(100) == b"hello"

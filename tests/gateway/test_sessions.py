"""A client's connection is taken up at the byte, wherever the process before was killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from mooring.gateway.http.wire import HangupWatch
from mooring.gateway.output import Formatter
from mooring.gateway.sessions.pipes import Pipe
from mooring.gateway.sessions.slots import (
    AT_REST,
    DESCRIPTION,
    EMPTYING,
    MOVING,
    SLOT,
    SLOTS,
    Slots,
    State,
)
from mooring.gateway.sessions.wire import DurableWire

from .fakes import frame

NUMBER = struct.Struct("<Q")
TOTAL = 20_000
"""Steps of one session under kills."""


class Kept:
    """What a process manager keeps of one session."""

    def __init__(self) -> None:
        self.client, self.server = socket.socketpair()
        self.server.setblocking(False)
        self.slots = Slots()
        number = self.slots.take(b"")
        assert number is not None
        self.number = number
        self.out, self.into = Pipe.new(), Pipe.new()

    def wire(self) -> DurableWire:
        """A wire of the process that has the session now."""
        halves = self.slots.output(self.number), self.slots.input(self.number)
        sock = socket.socket(fileno=os.dup(self.server.fileno()))
        sock.setblocking(False)
        watch = HangupWatch()
        return DurableWire(
            sock, b"", watch, (halves[0], self.out), (halves[1], self.into), lambda: True
        )

    def close(self) -> None:
        """Let go of all of it."""
        self.client.close()
        self.server.close()
        self.out.close()
        self.into.close()
        self.slots.close()


def line(number: int) -> bytes:
    """Lines of all sizes up to what a pipe holds."""
    return b"%d " % number + b"x" * (number * 7919 % 3000) + b"\n"


async def _send(kept: Kept) -> None:
    wire = kept.wire()
    wire.recover()
    await wire.flush()
    at = NUMBER.unpack(wire.sent)[0] if wire.sent else 0
    for number in range(at, TOTAL):
        await wire.send(line(number), NUMBER.pack(number + 1))


async def _take(kept: Kept, into: int) -> None:
    """Hand everything on as a host does that writes what is sent twice once only."""
    wire = kept.wire()
    wire.recover()
    offset = NUMBER.unpack(wire.consumed)[0] if wire.consumed else 0
    while data := await wire.peek():
        data = data[: random.randint(1, len(data))]
        os.pwrite(into, data, offset)
        offset += len(data)
        wire.consume(len(data), NUMBER.pack(offset))


def until_done_under_kills(work: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run it in one process after the other, each killed at some moment; how many it took."""
    lives = 0
    while True:
        lives += 1
        pid = os.fork()
        if pid == 0:
            try:
                asyncio.run(work())
                os._exit(0)
            except BaseException:
                os._exit(9)
        timer = threading.Timer(random.uniform(0.001, 0.02), os.kill, (pid, signal.SIGKILL))
        timer.start()
        _, status = os.waitpid(pid, 0)
        timer.cancel()
        timer.join()
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return lives


@pytest.mark.fault
def test_output_is_neither_lost_nor_doubled_by_kills() -> None:
    kept = Kept()
    received = bytearray()

    def read() -> None:
        while data := kept.client.recv(random.choice((100, 5000, 200_000))):
            received.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    lives = until_done_under_kills(lambda: _send(kept))
    kept.server.shutdown(socket.SHUT_WR)
    reader.join()
    assert lives > 3
    assert bytes(received) == b"".join(map(line, range(TOTAL)))
    kept.close()


@pytest.mark.fault
def test_input_is_neither_lost_nor_doubled_by_kills(tmp_path: Any) -> None:
    kept = Kept()
    lines = [line(n)[: 1 + n * 31 % 700] for n in range(TOTAL)]
    into = os.open(tmp_path / "stdin", os.O_RDWR | os.O_CREAT)

    def write() -> None:
        for text in lines:
            kept.client.sendall(text)
        kept.client.shutdown(socket.SHUT_WR)

    writer = threading.Thread(target=write)
    writer.start()
    lives = until_done_under_kills(lambda: _take(kept, into))
    writer.join()
    assert lives > 3
    assert os.pread(into, 10_000_000, 0) == b"".join(lines)
    os.close(into)
    kept.close()


def test_a_state_is_replaced_in_one_step() -> None:
    slots = Slots()
    number = slots.take(b"what it is")
    assert number is not None and slots.description(number) == b"what it is"
    half = slots.output(number)
    assert half.get() == State()
    half.set(State(b"one"))
    half.set(State(b"two", MOVING, 5))
    assert half.get() == State(b"two", MOVING, 5) and half.before() == State(b"one", AT_REST, 0)
    assert slots.input(number).get() == State()
    slots.close()


def test_another_process_finds_the_sessions_that_count() -> None:
    slots = Slots()
    begun, counts = slots.take(b"begun"), slots.take(b"counts")
    assert begun is not None and counts is not None
    slots.use(counts)
    again = Slots(os.dup(slots.descriptor))
    assert list(again.used()) == [counts]
    assert again.description(counts) == b"counts"
    again.free(counts)
    assert list(slots.used()) == []
    slots.close()
    again.close()


def test_there_is_a_limit_to_sessions_and_to_what_is_said_of_one() -> None:
    slots = Slots()
    assert slots.take(b"x" * (DESCRIPTION + 1)) is None
    taken = [slots.take(b"") for _ in range(SLOTS)]
    assert None not in taken and slots.take(b"") is None
    slots.close()


async def test_a_pipe_that_was_being_emptied_counts_no_more() -> None:
    kept = Kept()
    kept.client.sendall(b"abcdef")
    wire = kept.wire()
    assert await wire.peek() == b"abcdef"
    # Two are out and were dropped, or were about to be: four are still to be taken.
    os.splice(kept.server.fileno(), kept.into.writing, 2)
    kept.slots.input(kept.number).set(State(b"after", EMPTYING, 3))
    wire.recover()
    assert await wire.peek() == b"f" and wire.consumed == b"after"
    await wire.close()
    kept.close()


@pytest.mark.parametrize("timestamps", [False, True])
def test_a_formatter_goes_on_anywhere_in_the_log(timestamps: bool) -> None:
    log = b"".join(
        frame(1 + n % 2, b"line %d\n" % n * (n % 5) + b"open" * (n % 3)) for n in range(1, 60)
    )

    def fresh() -> Formatter:
        return Formatter(raw=True, timestamps=timestamps)

    whole = fresh().feed(log, 0)
    for cut in range(1, len(log), 7):
        first, second = fresh(), fresh()
        out = first.feed(log[:cut], 0)
        at = second.restore(first.state(cut))
        assert out + second.feed(log[at:], at) == whole


async def test_a_client_that_does_not_read_holds_the_session_back() -> None:
    kept = Kept()
    wire = kept.wire()
    kept.client.setblocking(False)
    sending = asyncio.create_task(_fill(wire))
    loop, got = asyncio.get_running_loop(), 0
    while got < 200 * 60_000:
        assert not sending.done() or got > 100 * 60_000
        got += len(await loop.sock_recv(kept.client, 1 << 20))
    await sending
    await wire.close()
    kept.close()


async def _fill(wire: DurableWire) -> None:
    for _ in range(200):
        await wire.send(b"y" * 60_000)


def test_slots_that_were_never_used_take_no_memory() -> None:
    slots = Slots()
    assert os.fstat(slots.descriptor).st_blocks == 0
    taken = [slots.take(b"one"), slots.take(b"two")]
    for number in taken:
        assert number is not None
        slots.use(number)
    again = Slots(os.dup(slots.descriptor))
    assert set(again.used()) == set(taken)
    assert again.take(b"three") not in taken
    assert os.fstat(slots.descriptor).st_blocks * 512 <= 3 * SLOT
    for each in (slots, again):
        each.close()

"""The log is kept for its attached readers, and the container waits for the slowest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mooring.shim import pins
from mooring.shim.frames import HEADER_SIZE, segments
from mooring.shim.log import LogWriter
from mooring.shim.loop import Loop
from mooring.shim.pins import LEASE_SECONDS, Pins
from mooring.shim.stdio import Recorder

from .harness import Client, Container, Launcher

Run = Callable[..., Container]
SMALL: dict[str, Any] = {"log_max_size": 4096, "log_max_files": 2}
FLOOD = "read line; seq 1 400000; read line"


@pytest.fixture
def flood(launcher: Launcher, tmp_path: Path) -> Iterator[Container]:
    """A container that prints 2.7 MB into a log of two segments when told to go."""
    args = ["sh", "-c", FLOOD]
    with Container(launcher, tmp_path, args, stdin=True, **SMALL) as container:
        yield container


def flooded(flood: Container) -> Client:
    """An agent that was there when it began, now that the log is as long as it gets."""
    client = flood.client()
    client.ask("watch_log", after=2_500_000)
    client.ask("stdin", b"go\n", session="s", offset=0)
    client.event("log")
    return client


def test_nothing_is_deleted_before_the_agent_said_who_reads(flood: Container) -> None:
    client = flooded(flood)
    assert client.ask("hello")["pressed"]
    assert segments(str(flood.log))[0] == 0
    assert client.ask("pin", readers={})["first"] > 1_000_000


def test_an_agent_is_asked_when_it_is_there_and_told_in_hello_when_it_comes_later(
    flood: Container,
) -> None:
    client = flood.client()
    assert not client.ask("hello")["pressed"]
    client.ask("stdin", b"go\n", session="s", offset=0)
    client.event("press")
    assert flood.client().ask("hello")["pressed"]


def test_what_a_reader_needs_is_kept_and_goes_when_it_goes_on(flood: Container) -> None:
    client = flooded(flood)
    assert client.ask("pin", readers={"slow": 1_000_000, "fast": 2_000_000})["first"] <= 1_000_000
    assert client.ask("pin", readers={"fast": 2_000_000})["first"] > 1_000_000
    assert client.ask("pin", readers={})["first"] > 2_000_000


class Clock:
    """What pins ask of a loop, and the time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: dict[Any, float] = {}

    def later(self, seconds: float, timer: Any) -> None:
        self.timers[timer] = self.now + seconds

    def pass_(self, seconds: float) -> None:
        self.now += seconds
        for timer in [t for t, when in self.timers.items() if when <= self.now]:
            del self.timers[timer]
            timer()


class Log:
    """A log of two segments of 4 KiB, its pins, and what was asked of agents."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self.asked = 0
        self.connections = [AGENT]
        self.writer = LogWriter(str(directory / "log"), 4096, 2)
        self.recorder = Recorder(Loop(), self.writer)
        loop: Any = clock
        listener: Any = self
        self.pins = Pins(loop, self.recorder, listener)

    def tell(self, event: dict[str, Any]) -> None:
        assert event == {"event": "press"}
        self.asked += 1

    def grow(self, size: int) -> None:
        """More output, in frames of 4 KiB."""
        for _ in range(size // 4096):
            self.writer.note(1, b"x" * (4096 - HEADER_SIZE))
            self.recorder.moved()

    @property
    def size(self) -> int:
        return self.writer.end - self.writer.first

    @property
    def waits(self) -> bool:
        """Whether the container's output is left unread."""
        return self.recorder.waiting


AGENT: Any = "an agent"
SUCCESSOR: Any = "its successor"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pins, "monotonic", lambda: made.now)
    monkeypatch.setattr(pins, "SURPLUS_BYTES", 1 << 20)
    return made


@pytest.fixture
def log(tmp_path: Path, clock: Clock) -> Log:
    return Log(tmp_path, clock)


def test_a_log_within_its_limits_asks_nobody(log: Log) -> None:
    log.grow(8192)
    assert (log.asked, log.pins.asked) == (0, False)


def test_agents_are_asked_once(log: Log) -> None:
    log.grow(1 << 16)
    assert (log.asked, log.size) == (1, 1 << 16)
    log.pins.pin(AGENT, {})
    log.grow(1 << 16)
    assert (log.asked, log.size) == (1, 8192)


def test_who_does_not_answer_in_time_reads_nothing(log: Log, clock: Clock) -> None:
    log.grow(1 << 16)
    clock.pass_(LEASE_SECONDS)
    assert log.size == 8192


def test_the_container_waits_for_a_reader_that_is_far_behind(log: Log) -> None:
    log.grow(1 << 16)
    log.pins.pin(AGENT, {"slow": 0})
    log.grow(1 << 20)
    assert log.waits
    log.pins.pin(AGENT, {"slow": 1 << 19})
    assert not log.waits
    assert log.size < (1 << 19) + (1 << 17)


def test_pins_outlive_their_agent_for_a_while(log: Log, clock: Clock) -> None:
    log.grow(1 << 16)
    log.pins.pin(AGENT, {"slow": 0})
    log.pins.left(AGENT)
    clock.pass_(LEASE_SECONDS - 1)
    log.pins.pin(SUCCESSOR, {})
    assert log.writer.first == 0
    clock.pass_(1)
    assert log.size == 8192


def test_an_agent_that_was_killed_before_it_answered_may_have_had_readers(
    log: Log, clock: Clock
) -> None:
    log.grow(1 << 16)
    log.pins.left(AGENT)
    log.pins.pin(SUCCESSOR, {})
    log.grow(1 << 16)
    assert log.writer.first == 0
    clock.pass_(LEASE_SECONDS)
    assert log.size == 8192


def test_a_reader_that_came_back_is_where_it_says(log: Log) -> None:
    log.grow(1 << 16)
    log.pins.pin(AGENT, {"slow": 0})
    log.pins.left(AGENT)
    log.pins.pin(SUCCESSOR, {"slow": 1 << 15})
    assert log.writer.first == 1 << 15


def test_what_a_container_left_in_its_pipes_is_taken_whoever_reads(log: Log) -> None:
    log.grow(1 << 16)
    log.pins.pin(AGENT, {"slow": 0})
    log.grow(1 << 20)
    log.pins.free()
    assert not log.waits
    log.grow(1 << 16)
    assert not log.waits
    assert log.writer.first == 0


def test_no_log_outgrows_its_bound_when_nobody_can_be_asked(tmp_path: Path) -> None:
    writer = LogWriter(str(tmp_path / "log"), 1 << 20, 1)
    writer.hold = 0
    chunk = b"x" * (1 << 20)
    for _ in range(80):
        writer.note(1, chunk)
    assert 64 << 20 < writer.end - writer.first < 76 << 20

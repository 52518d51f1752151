"""Execs that are prepared before anybody starts them: which machine is used, and which is not."""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import Any

import pytest

from mooring.shim import beginning
from mooring.shim.beginning import PREPARED, Beginnings
from mooring.shim.execs import Exec
from mooring.shim.logread import LogReader
from mooring.shim.loop import Loop
from tests.descriptors import descriptors

RUNNING: Any = None


class Machine:
    """In place of Entering: what became of it."""

    def __init__(self, early: bool) -> None:
        self.early = early
        self.told = self.abandoned = False
        self.pid = os.getpid()
        self.pidfd = os.pidfd_open(self.pid)
        self.channel, self._end = os.pipe()

    def go(self) -> None:
        self.told = True

    def executed(self) -> bool:
        os.close(self.channel)
        return False

    def abandon(self) -> None:
        assert not self.told
        self.abandoned = True
        os.close(self.pidfd)
        os.close(self.channel)

    def die(self) -> None:
        os.close(self._end)


class Oci:
    """Makes machines."""

    UNEXECUTED = "/memfd:machine"

    def __init__(self) -> None:
        self.machines: list[Machine] = []
        self.possible = True

    def enter(self, *_: object, early: bool = False) -> Machine | None:
        if not self.possible:
            return None
        self.machines.append(Machine(early))
        return self.machines[-1]


class Bench:
    """The beginnings of one container in a directory, and what they were asked."""

    def __init__(self) -> None:
        self.oci = Oci()
        self.loop = Loop()
        self.beginnings = Beginnings(self.oci, self.loop, {"seccomp": ""}, lambda: RUNNING)
        self.handed: list[dict[str, int]] = []

    def request(self, *args: str, **fields: Any) -> dict[str, Any]:
        return {"process": {"args": args}, "tty": False, "stdin": True, "output": True, **fields}

    def begin(self, ident: str, request: dict[str, Any]) -> Exec:
        entry = Exec(self.loop, ident, False, lambda _: None, lambda *_: None)
        self.beginnings.begin(entry, request, self.handed.append, lambda: None)
        return entry

    def turn(self, seconds: float = 0.0) -> None:
        """Everything that is due `seconds` from now."""
        self.loop.later(seconds, self.loop.stop)
        self.loop.run()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    return Bench()


def test_the_start_uses_the_machine_that_waits(bench: Bench, tmp_path: Path) -> None:
    bench.beginnings.prepare("e", bench.request("true"))
    (machine,) = bench.oci.machines
    assert machine.early and not machine.told
    assert not (tmp_path / "execs").exists()
    assert bench.beginnings.prepared == {machine.pid}
    bench.begin("e", {**bench.request("true"), "hold": True, "id": 7})
    assert bench.oci.machines == [machine]
    assert machine.told and not machine.abandoned
    assert (tmp_path / "execs/e/exec.json").exists()
    assert set(bench.handed[0]) == {"pidfd", "stdin", "stdout", "stderr"}
    assert bench.beginnings.prepared == set()


@pytest.mark.parametrize("other", [{"stdin": False}, {"process": {"args": ("false",)}}])
def test_one_that_was_made_for_something_else_is_not_used(
    bench: Bench, other: dict[str, Any]
) -> None:
    bench.beginnings.prepare("e", bench.request("true"))
    bench.begin("e", {**bench.request("true"), **other})
    first, second = bench.oci.machines
    assert first.abandoned and second.told and not second.early


def test_one_that_nobody_starts_is_taken_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beginning, "PREPARED_SECONDS", 0.0)
    bench.beginnings.prepare("e", bench.request("true"))
    bench.turn(0.001)
    assert bench.oci.machines[0].abandoned
    assert bench.beginnings.prepared == set()


def test_one_that_nobody_starts_is_taken_back_also_while_others_come(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beginning, "PREPARED_SECONDS", 0.0)
    bench.beginnings.prepare("e1", bench.request("true"))
    monkeypatch.setattr(beginning, "PREPARED_SECONDS", 60.0)
    bench.beginnings.prepare("e2", bench.request("true"))
    bench.turn(0.001)
    first, second = bench.oci.machines
    assert first.abandoned and not second.abandoned


def test_one_that_was_started_is_not_waited_for(bench: Bench) -> None:
    bench.beginnings.prepare("e", bench.request("true"))
    bench.begin("e", bench.request("true"))
    # A shim that has nothing to do sleeps.
    assert not bench.loop._timers


def test_one_that_dies_is_taken_back_and_the_start_makes_another(bench: Bench) -> None:
    bench.beginnings.prepare("e", bench.request("true"))
    bench.oci.machines[0].die()
    assert select.select([bench.oci.machines[0].channel], [], [], 5)[0]
    bench.turn()
    assert bench.oci.machines[0].abandoned
    bench.begin("e", bench.request("true"))
    assert bench.oci.machines[1].told


def test_who_starts_none_gets_no_more_than_a_few(bench: Bench) -> None:
    for number in range(PREPARED + 3):
        bench.beginnings.prepare(f"e{number}", bench.request("true"))
        bench.beginnings.prepare("e0", bench.request("true"))
    assert len(bench.oci.machines) == PREPARED
    bench.beginnings.abandon()
    assert all(machine.abandoned for machine in bench.oci.machines)


def test_what_a_machine_cannot_do_is_not_prepared(bench: Bench) -> None:
    bench.oci.possible = False
    bench.beginnings.prepare("e", bench.request("true"))
    assert bench.beginnings.prepared == set()


def test_nothing_stays_open_of_what_is_taken_back(bench: Bench) -> None:
    before = descriptors()
    bench.beginnings.prepare("e", bench.request("true"))
    bench.beginnings.abandon()
    os.close(bench.oci.machines[0]._end)
    assert descriptors() <= before


def no_room(*_: object) -> None:
    raise BlockingIOError("no room for another process")


@pytest.mark.parametrize("possible", [True, False])
def test_an_exec_for_which_there_is_no_helper_fails_and_leaves_nothing(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, possible: bool
) -> None:
    monkeypatch.setattr(beginning, "Helper", no_room)
    bench.oci.possible = possible
    before = descriptors()
    answers: list[dict[str, Any]] = []
    try:
        bench.begin("e", bench.request("true")).when_started(answers.append)
    except BlockingIOError as error:
        answers.append({"error": str(error)})
    for machine in bench.oci.machines:
        machine.die()
        bench.turn()
        os.close(machine.pidfd)
    assert "no room" in str(answers)
    assert descriptors() <= before
    assert not (tmp_path / "execs/e").exists()


def test_an_exec_that_cannot_be_recorded_fails_and_leaves_nothing(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Exec, "record", no_room)
    before = descriptors()
    with pytest.raises(BlockingIOError):
        bench.begin("e", bench.request("true"))
    assert bench.oci.machines[0].abandoned
    bench.oci.machines[0].die()
    assert descriptors() <= before
    assert not (tmp_path / "execs/e").exists()


def test_an_exec_whose_filter_is_gone_fails_and_leaves_nothing(bench: Bench) -> None:
    before = descriptors()
    request = bench.request("true", seccomp="/no/such.bpf")
    for begin in (bench.beginnings.prepare, bench.begin):
        with pytest.raises(FileNotFoundError):
            begin("e", request)
    assert descriptors() <= before


def test_who_reads_an_exec_that_was_undone_reads_what_it_prints_in_the_end(
    bench: Bench, tmp_path: Path
) -> None:
    first = bench.begin("e", bench.request("true"))
    reader = LogReader(str(tmp_path / "execs/e/log"))
    assert reader.read(0, 100)
    end = reader.end()
    # As the shim after one that was killed does.
    first.undo()
    second = bench.begin("e", bench.request("true"))
    assert second.recorder is not None
    second.recorder.log.note(1, b"printed")
    assert reader.read(end, 100).endswith(b"printed")
    first.discard()

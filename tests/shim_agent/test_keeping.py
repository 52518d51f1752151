"""What the agent was handed is the next one's, from the moment at which it came."""

from __future__ import annotations

import array
import asyncio
import json
import logging
import os
import socket
from collections.abc import Iterator

import pytest

from mooring.shim import vestibule
from mooring.shim.keeping import Keeping
from mooring.shim.vestibule import Key

from .fakes import CONTAINER, Manager

RUN = Key(CONTAINER, 1)


class Pipe:
    """One that a shim has handed over."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.named = {"stdout": self.writing}
        self.inodes = {"stdout": os.fstat(self.writing).st_ino}

    def is_held(self) -> bool:
        """Whether anybody has its other end, when we have let go of it."""
        os.close(self.writing)
        try:
            return os.read(self.reading, 1) != b""
        except BlockingIOError:
            return True


@pytest.fixture
def manager() -> Iterator[Manager]:
    made = Manager()
    yield made
    made.close()


@pytest.fixture
def keeping(manager: Manager) -> Iterator[Keeping]:
    """That of an agent which gets no further than the test."""
    made = Keeping(manager)
    yield made
    kill(made)


def kill(keeping: Keeping) -> None:
    """What is open in its process is closed, and nothing else is done."""
    keeping._vestibule.close()
    keeping._porch.close()


async def test_what_has_just_come_is_found_and_then_stored(
    keeping: Keeping, manager: Manager
) -> None:
    pipe = Pipe()
    keeping.soon(RUN, pipe.named, lambda: None)
    assert manager.found(RUN) == pipe.inodes
    name = f"{CONTAINER[:12]}.1"
    assert manager.kept.keys() == {name, vestibule.NAME, vestibule.PORCH}
    assert manager.found(RUN) == pipe.inodes


async def test_a_hello_that_nobody_has_looked_at_is_found(
    keeping: Keeping, manager: Manager
) -> None:
    pipe = Pipe()
    hello = {"event": "hello", "version": 1, "id": CONTAINER, "run": 1, "names": ["stdout"]}
    rights = array.array("i", [pipe.writing]).tobytes()
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
    keeping.came(memoryview(json.dumps(hello).encode()), ancillary)
    assert manager.found(RUN) == pipe.inodes


async def test_it_is_found_again_though_who_found_it_was_killed_too(
    keeping: Keeping, manager: Manager
) -> None:
    pipes = Pipe(), Pipe()
    for number, pipe in enumerate(pipes):
        keeping.soon(Key(CONTAINER, number), pipe.named, lambda: None)
    (outlet,) = manager.kept[vestibule.NAME]
    found = vestibule.left(os.dup(outlet))
    for descriptor in next(found)[1].values():
        os.close(descriptor)
    assert manager.found(Key(CONTAINER, 0)) == pipes[0].inodes


async def test_the_last_that_came_counts_whatever_is_stored(
    keeping: Keeping, manager: Manager
) -> None:
    stored, older, newer = Pipe(), Pipe(), Pipe()
    keeping.keep(RUN, stored.named, "")
    keeping.soon(RUN, older.named, lambda: None)
    keeping.soon(RUN, newer.named, lambda: None)
    kill(keeping)
    assert manager.found(RUN) == newer.inodes
    assert not stored.is_held() and not older.is_held()


async def test_between_what_is_stored_and_what_takes_its_place_there_is_no_gap(
    keeping: Keeping, manager: Manager
) -> None:
    before, after = Pipe(), Pipe()
    name = keeping.keep(RUN, before.named, "")
    keeping.soon(RUN, after.named, lambda: None)
    keeping.drop(name)
    assert manager.found(RUN) == after.inodes


async def test_once_it_is_stored_nothing_else_holds_it(keeping: Keeping, manager: Manager) -> None:
    pipe, names = Pipe(), list[str]()
    keeping.soon(RUN, pipe.named, lambda: names.append(keeping.keep(RUN, pipe.named, "")))
    keeping.settle()
    manager.unstore(names[0])
    assert not pipe.is_held()


async def test_more_than_there_is_room_for_is_stored_at_once(
    keeping: Keeping, manager: Manager
) -> None:
    pipe = Pipe()
    keys = [Key(CONTAINER, number) for number in range(1000)]

    def keep(key: Key) -> None:
        keeping.keep(key, pipe.named, "")

    for key in keys:
        keeping.soon(key, pipe.named, lambda key=key: keep(key))  # type: ignore[misc]
    assert 1 < len(manager.kept) < len(keys)
    again = Keeping(manager)
    found = [again.take(key)[1] for key in keys]
    again.close()
    for named in found:
        os.close(named["stdout"])


async def test_what_another_version_left_is_passed_over(
    manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    inlet, outlet = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    odd, pipe = Pipe(), Pipe()
    with inlet, outlet:
        for packet in (b"{}", b"[1]", b"3", b"\xff", b'["a",1,"","stdout","stderr"]'):
            socket.send_fds(inlet, [packet], [odd.writing])
        vestibule.send(inlet, RUN, pipe.named)
        manager.store(vestibule.NAME, outlet.fileno(), poll=False)
    with caplog.at_level(logging.WARNING):
        assert manager.found(RUN) == pipe.inodes
    assert len(caplog.messages) == 5
    assert not odd.is_held()


EXEC = Key(CONTAINER, 1, "ab" * 32)
OTHER = Key(CONTAINER, 2, "cd" * 32)


def leave(keeping: Keeping, key: Key, pipe: Pipe) -> None:
    """What a shim does with the porch that it was given."""
    with socket.socket(fileno=os.dup(keeping.porch)) as porch:
        vestibule.send(porch, key, pipe.named)


async def test_what_a_shim_has_left_is_found_though_nobody_was_told(
    keeping: Keeping, manager: Manager
) -> None:
    pipe = Pipe()
    leave(keeping, EXEC, pipe)
    kill(keeping)
    assert manager.found(EXEC) == pipe.inodes


async def test_what_a_shim_has_left_counts_less_than_what_an_agent_knows(
    keeping: Keeping, manager: Manager
) -> None:
    left, known = Pipe(), Pipe()
    leave(keeping, EXEC, left)
    keeping.soon(EXEC, known.named, lambda: None)
    kill(keeping)
    assert manager.found(EXEC) == known.inodes
    assert not left.is_held()


async def test_what_a_shim_has_told_of_is_taken_from_the_porch_and_nothing_else(
    keeping: Keeping, manager: Manager
) -> None:
    first, second = Pipe(), Pipe()
    leave(keeping, EXEC, first)
    leave(keeping, OTHER, second)
    keeping.soon(EXEC, first.named, lambda: None)
    keeping.settle()
    assert not first.is_held()
    ((key, named),) = keeping.left_of(Key(CONTAINER, 2))
    assert key == OTHER
    os.close(named["stdout"])
    assert keeping.left_of(Key(CONTAINER, 2)) == []
    assert not second.is_held()


async def turns(count: int) -> None:
    """Let so many turns of the loop pass."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_is_over_soon_is_never_stored_by_its_own_name(
    keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each store wakes the process manager, while others start."""
    monkeypatch.setattr("mooring.shim.keeping._LATER", 3600)
    pipe, kept = Pipe(), list[str]()
    keeping.soon(RUN, pipe.named, lambda: kept.append("first"))
    await turns(10)
    assert kept == []
    # But what nobody may hold any more is let go at once.
    keeping.soon(RUN, pipe.named, lambda: kept.append("less"), less=True)
    await turns(10)
    assert kept == ["less"]

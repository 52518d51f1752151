"""Which runs are made before their start, for how long, and what they are good for."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import pytest

from mooring.kit.models.container import ContainerRecord
from mooring.kit.models.host import HostStart
from mooring.kit.models.image import ImageRecord
from mooring.runtime import early
from mooring.runtime.early import MISSES, MOST, Early, same, worthwhile
from mooring.runtime.locks import KeyedLocks


def record(id_: str = "a", *, age: float = 0.0, **fields: Any) -> ContainerRecord:
    created = time.time_ns() - int(age * 1e9)
    return ContainerRecord.model_validate(
        {"id": id_, "name": "web", "node": "n", "created_ns": created, "image": "bb", **fields}
    )


def request(*args: Any, run: int = 1, **fields: Any) -> HostStart:
    return HostStart(record=record(*args, **fields), image=ImageRecord(id="i"), run=run)


@dataclass
class Made:
    """What would be a run."""

    request: HostStart


class Runs:
    """Runs that wait, and those that were taken back."""

    def __init__(self) -> None:
        self.locks = KeyedLocks()
        self.undone: list[str] = []
        self.early: Early[Made] = Early(self.locks, self._undo)

    async def _undo(self, made: Made) -> None:
        self.undone.append(made.request.record.id)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),
        ({"host_config": {"network_mode": "none"}}, True),
        ({"host_config": {"network_mode": "bridge", "tmpfs": {"/t": ""}}}, True),
        ({"host_config": {"network_mode": "host"}}, False),
        ({"host_config": {"network_mode": "mine"}}, False),
        ({"host_config": {"network_mode": "container:b"}}, False),
        ({"host_config": {"pid_mode": "container:b"}}, False),
        ({"host_config": {"ipc_mode": "container:b"}}, False),
        ({"host_config": {"ipc_mode": "shareable"}}, False),
        ({"host_config": {"links": ["b:c"]}}, False),
        ({"host_config": {"port_bindings": {"80/tcp": []}}}, False),
        ({"networking": {"bridge": {}, "mine": {}}}, False),
        ({"networking": {"bridge": {"mac_address": "02:42:00:00:00:01"}}}, False),
        ({"config": {"tty": True}}, False),
        ({"mounts": [{"type": "bind", "source": "/x", "destination": "/y"}]}, False),
    ],
)
def test_only_what_nobody_could_miss_or_change_is_made(
    fields: dict[str, Any], expected: bool
) -> None:
    assert worthwhile(record(**fields)) is expected


def test_a_start_is_the_same_if_nothing_of_the_container_was_changed() -> None:
    first = request()
    assert same(first, request(state="starting", command_id="x", run=1))
    assert not same(first, request(run=2))
    assert not same(first, request(config={"hostname": "other"}))
    assert not same(first, request(host_config={"memory": 1 << 26}))
    assert not same(first, first.model_copy(update={"record": record(name="other")}))


async def test_a_start_takes_what_was_made_for_it_and_nothing_else() -> None:
    runs = Runs()
    runs.early.add(made := Made(request()))
    runs.early.add(Made(request("b")))
    assert await runs.early.take(request()) is made
    assert await runs.early.take(request()) is None
    assert await runs.early.take(request("b", config={"user": "x"})) is None
    assert runs.undone == ["b"]


async def test_whoever_else_holds_the_container_finds_nothing_of_it() -> None:
    runs = Runs()
    runs.early.add(Made(request()))
    async with runs.locks.hold("a", starting=True):
        assert runs.undone == []
    async with runs.locks.hold("a"):
        assert runs.undone == ["a"]


async def test_it_waits_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "KEPT", 0.0)
    runs = Runs()
    runs.early.add(Made(request()))
    async with asyncio.timeout(5):
        while not runs.undone:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert await runs.early.take(request()) is None


async def test_creates_without_starts_end_it_until_a_start_would_have_had_one() -> None:
    runs = Runs()
    for number in range(MISSES):
        assert runs.early.wanted(record())
        runs.early.add(Made(request(str(number))))
        await runs.early.drop(str(number))
    assert not runs.early.wanted(record())
    await runs.early.take(request("old", age=60))
    assert not runs.early.wanted(record())
    await runs.early.take(request("new"))
    assert runs.early.wanted(record())


async def test_no_more_than_so_many_wait() -> None:
    runs = Runs()
    for number in range(MOST):
        assert runs.early.wanted(record())
        runs.early.add(Made(request(str(number))))
    assert not runs.early.wanted(record())
    await runs.early.close()
    assert len(runs.undone) == MOST

"""Which containers become units of systemd, and what is said of them. (How: tests/systemd.)"""

from __future__ import annotations

import asyncio

import pytest

from mooring.kit.errors import NotFound
from mooring.shim import units
from mooring.shim.agent import Agent
from mooring.shim.units import ContainerUnits, unit_of

from .conftest import Shims, until
from .fakes import CONTAINER


class FakeNames:
    def __init__(self, name: str = "web") -> None:
        self.known = name

    async def name(self, id_: str) -> str:
        if not self.known:
            raise NotFound(f"no {id_}")
        return self.known


class Manager:
    """systemd's manager; it complains as often as it is told to."""

    def __init__(self, complaints: int = 0) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.complaints = complaints

    async def call(self, method: str, signature: str, *arguments: str) -> str:
        self.calls.append((method, *arguments))
        self.complaints -= 1
        return "Unit was already loaded" if self.complaints >= 0 else ""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "AFTER_SECONDS", 0.0)
    monkeypatch.setattr(units, "AGAIN_SECONDS", 0.0)


def made_by(agent: Agent, manager: Manager, name: str = "web") -> ContainerUnits:
    """What an agent on a systemd host would have."""
    made = ContainerUnits("c.slice", ["A=b"], agent.containers, FakeNames(name), agent._work)
    made.call = manager.call
    agent._units = made
    return made


async def test_a_container_that_goes_on_is_made_a_unit(agent: Agent, shim: Shims) -> None:
    manager = Manager()
    made_by(agent, manager)
    shim().start()
    await until(lambda: bool(manager.calls))
    method, unit, mode, count, *properties = manager.calls[0]
    assert (method, unit, mode) == ("StartTransientUnit", unit_of(CONTAINER), "fail")
    assert properties[:6] == ["Description", "s", "web", "Slice", "s", "c.slice"]
    known = {"s", "b", "t", "as", "a(sasb)"}
    signatures = [one for one in properties if one in known]
    assert len(signatures) == int(count)


async def test_a_container_that_was_over_before_is_none(
    agent: Agent, shim: Shims, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "AFTER_SECONDS", 0.05)
    manager = Manager()
    made_by(agent, manager)
    shim().start().exit(0)
    runs = agent.containers.get(CONTAINER).runs
    await until(lambda: 1 in runs and runs[1].exit is not None)
    await asyncio.sleep(0.1)
    assert not manager.calls


async def test_a_unit_that_is_still_about_to_end_is_waited_for(agent: Agent, shim: Shims) -> None:
    manager = Manager(complaints=2)
    made_by(agent, manager)
    shim().start()
    await until(lambda: len(manager.calls) == 3)


async def test_a_container_that_is_never_made_a_unit_is_logged(
    agent: Agent, shim: Shims, caplog: pytest.LogCaptureFixture
) -> None:
    made_by(agent, Manager(), name="")
    shim().start()
    words = f"container {CONTAINER} is no unit of systemd: no {CONTAINER}"
    await until(lambda: words in caplog.messages)

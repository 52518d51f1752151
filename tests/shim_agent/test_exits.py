"""Exits: told once, crossed off afterwards, whoever was killed in between."""

from __future__ import annotations

import os
import select

import pytest

from mooring.kit import subjects
from mooring.kit.models.host import ContainerExited, ContainerOom
from mooring.shim import memory
from mooring.shim.agent import Agent

from .conftest import Facts, Running, Shims, until
from .fakes import CONTAINER


async def test_an_exit_is_told_and_then_crossed_off(
    agent: Agent, shim: Shims, facts: Facts
) -> None:
    one = shim().start()
    one.exit(3)
    fact = await facts.next(subjects.FACT_EXITED, ContainerExited)
    assert (fact.id, fact.run, fact.exit_code, fact.restarting) == (CONTAINER, 1, 3, False)
    await until((one.directory / "exit.acked").exists)
    assert not (one.directory / "exit.json").exists()


async def test_an_exit_that_no_agent_saw_is_told_by_the_next(
    run_agent: Running, shim: Shims, facts: Facts
) -> None:
    one = shim().start(hello=False)
    one.exit(0)
    async with run_agent():
        fact = await facts.next(subjects.FACT_EXITED, ContainerExited)
        assert fact.exit_code == 0
        await until((one.directory / "exit.acked").exists)
    async with run_agent():
        pass
    assert len(facts.all) == 1


async def test_an_exit_told_twice_is_stored_once(
    run_agent: Running, shim: Shims, facts: Facts
) -> None:
    one = shim().start(hello=False)
    one.exit(0)
    async with run_agent():
        await until((one.directory / "exit.acked").exists)
    # As if the agent had been killed between the acknowledgement and the renaming.
    (one.directory / "exit.acked").rename(one.directory / "exit.json")
    async with run_agent():
        await until((one.directory / "exit.acked").exists)
    await facts.next(subjects.FACT_EXITED, ContainerExited)
    assert len(facts.all) == 1


async def test_a_running_container_is_found_again(
    run_agent: Running, shim: Shims, facts: Facts
) -> None:
    one = shim().start(hello=False)
    async with run_agent() as agent:
        run = agent.containers.get(CONTAINER).runs[1]
        await until(lambda: run.channel is not None)
        one.exit(7)
        fact = await facts.next(subjects.FACT_EXITED, ContainerExited)
    assert fact.exit_code == 7


async def test_a_broken_connection_is_made_again(agent: Agent, shim: Shims, facts: Facts) -> None:
    one = shim().start()
    run = agent.containers.get(CONTAINER).runs
    await until(lambda: 1 in run and run[1].channel is not None)
    first = run[1].channel
    one.vanish()
    await until(lambda: run[1].channel not in (None, first))
    one.exit(1)
    assert (await facts.next(subjects.FACT_EXITED, ContainerExited)).exit_code == 1


async def test_an_exit_record_without_an_announcement_is_found(
    agent: Agent, shim: Shims, facts: Facts
) -> None:
    one = shim().start()
    one.exit(9, announce=False)
    assert (await facts.next(subjects.FACT_EXITED, ContainerExited)).exit_code == 9


class Cgroup:
    """A cgroup whose kernel is the test."""

    OOM_EVENT = select.EPOLLIN

    def __init__(self) -> None:
        self.kills = 0
        self.descriptor = -1

    def watch_oom(self) -> int:
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return self.descriptor

    def take_oom(self, descriptor: int) -> int:
        return os.eventfd_read(descriptor)

    def oom_kills(self) -> int:
        return self.kills

    def kill(self) -> None:
        self.kills += 1
        os.eventfd_write(self.descriptor, 1)


@pytest.fixture
def cgroup(monkeypatch: pytest.MonkeyPatch) -> Cgroup:
    made = Cgroup()
    monkeypatch.setattr("mooring.runtime.oci.cgroups.attach", lambda path: made)
    monkeypatch.setattr(memory, "AGAIN_SECONDS", 0.01)
    return made


async def test_want_of_memory_is_told_each_time(
    agent: Agent, shim: Shims, facts: Facts, cgroup: Cgroup
) -> None:
    one = shim().start()
    await until(lambda: cgroup.descriptor >= 0)
    for kills in (1, 2):
        cgroup.kill()
        fact = await facts.next(subjects.FACT_OOM, ContainerOom)
        assert (fact.id, fact.run, fact.kills) == (CONTAINER, 1, kills)
    one.exit(0)
    await facts.next(subjects.FACT_EXITED, ContainerExited)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(cgroup.descriptor)


async def test_want_of_memory_before_an_agent_looked_is_told(
    run_agent: Running, shim: Shims, facts: Facts, cgroup: Cgroup
) -> None:
    cgroup.kills = 3
    shim().start(hello=False)
    async with run_agent():
        assert (await facts.next(subjects.FACT_OOM, ContainerOom)).kills == 3

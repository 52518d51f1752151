"""The agent as a process of its own, killed: whatever it was about is finished by the next."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.errors import Unavailable
from mooring.kit.models.base import Done, Request
from mooring.kit.models.exec import ExecConfig, ExecStarted
from mooring.kit.models.host import (
    ContainerExited,
    ContainerStarted,
    ExecExited,
    HostExec,
    HostRestart,
    HostStarted,
    HostStop,
    OpenStream,
    Report,
)
from tests.forks import Forked, Forker

from .conftest import Facts, Shims, until
from .fakes import CONTAINER, SIGTERM, write_policy
from .test_output import opened

pytestmark = pytest.mark.fault

EXEC = "e" * 64


class AgentProcess:
    """`mooring-shim-agent`, with fault points."""

    def __init__(self, settings: Settings, bus: Bus, forks: Forker) -> None:
        self._settings = settings
        self._bus = bus
        self._forks = forks
        self._process: Forked | None = None

    async def start(self) -> None:
        """Start it and wait until it answers with a complete report."""
        changed = {"MOORING_FAULTS": "true", "MOORING_LOG_LEVEL": "warning"}
        self._process = await self._forks.start("shim-agent", self._settings, **changed)

    async def answers(self) -> Report:
        """Its first complete report."""
        subject = subjects.agent(self._settings.node_id, subjects.AGENT_REPORT)
        while True:
            report = await self._bus.request(subject, Request(), Report)
            if report.complete:
                return report

    async def kill(self) -> None:
        """SIGKILL it."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def died(self) -> None:
        """Wait for it to reach the fault point that was armed."""
        assert self._process is not None
        async with asyncio.timeout(20):
            assert await self._process.wait() == -9

    def arm(self, point: str) -> None:
        """It is to die at this point."""
        faults = self._settings.run_dir / "faults"
        faults.mkdir(exist_ok=True)
        (faults / point).touch()


@pytest.fixture
async def process(settings: Settings, bus: Bus, forks: Forker) -> AsyncIterator[AgentProcess]:
    """An agent that runs, and is killed at the end."""
    made = AgentProcess(settings, bus, forks)
    await made.start()
    await made.answers()
    yield made
    await made.kill()


@pytest.mark.parametrize(
    "point", ["agent.exit.decided", "agent.exit.published", "agent.exit.acked"]
)
async def test_an_exit_is_told_exactly_once_wherever_the_agent_dies(
    process: AgentProcess, shim: Shims, facts: Facts, point: str
) -> None:
    process.arm(point)
    one = shim().start()
    one.exit(42)
    await process.died()
    await process.start()
    await process.answers()
    await until((one.directory / "exit.acked").exists)
    assert (await facts.next(subjects.FACT_EXITED, ContainerExited)).exit_code == 42
    assert len(facts.all) == 1


@pytest.mark.parametrize(
    "point",
    [
        "agent.exit.published",
        "agent.exit.acked",
        "agent.restart.due",
        "agent.restart.started",
        "agent.restart.recorded",
        "agent.restart.published",
    ],
)
async def test_a_restart_happens_exactly_once_wherever_the_agent_dies(
    process: AgentProcess,
    shim: Shims,
    facts: Facts,
    settings: Settings,
    bus: Bus,
    point: str,
) -> None:
    started: list[int] = []

    async def restart(request: HostRestart) -> HostStarted:
        if request.run not in started:
            started.append(request.run)
            shim(run=request.run).start(hello=False)
        return HostStarted(pid=1, started_ns=time.time_ns())

    subject = subjects.runtime(settings.node_id, subjects.RUNTIME_RESTART)
    await bus.serve(subject, HostRestart, restart)
    write_policy(settings, name="always")
    process.arm(point)
    shim().start().exit(1)
    await process.died()
    await process.start()
    fact = await facts.next(subjects.FACT_EXITED, ContainerExited)
    assert (fact.run, fact.restarting) == (1, True)
    assert (await facts.next(subjects.FACT_STARTED, ContainerStarted)).run == 2
    await process.answers()
    assert started == [2]
    assert len(facts.all) == 2


async def stop_over_its_death(
    process: AgentProcess, settings: Settings, bus: Bus, request: HostStop
) -> None:
    """Ask an agent that dies of it, and start the next one."""
    subject = subjects.agent(settings.node_id, subjects.AGENT_STOP)
    stopping = asyncio.ensure_future(bus.request(subject, request, Done))
    await process.died()
    await process.start()
    with contextlib.suppress(Unavailable):
        await stopping


@pytest.mark.parametrize("point", ["agent.stop.recorded", "agent.stop.signalled"])
async def test_a_stop_is_finished_wherever_the_agent_dies(
    process: AgentProcess, shim: Shims, facts: Facts, settings: Settings, bus: Bus, point: str
) -> None:
    one = shim().start()
    process.arm(point)
    await stop_over_its_death(process, settings, bus, HostStop(id=CONTAINER))
    await until((one.directory / "exit.acked").exists)
    assert (await facts.next(subjects.FACT_EXITED, ContainerExited)).exit_code == 143


async def test_a_stop_that_has_come_to_sigkill_is_finished_when_the_agent_dies(
    process: AgentProcess, shim: Shims, facts: Facts, settings: Settings, bus: Bus
) -> None:
    one = shim().start()
    del one.on_signal[SIGTERM]
    process.arm("agent.stop.killed")
    await stop_over_its_death(process, settings, bus, HostStop(id=CONTAINER, timeout=0))
    await until((one.directory / "exit.acked").exists)
    assert (await facts.next(subjects.FACT_EXITED, ContainerExited)).exit_code == 137


@pytest.mark.parametrize("point", ["agent.exec.started", "agent.exec.published"])
async def test_an_exec_is_started_and_told_once_wherever_the_agent_dies(
    process: AgentProcess, shim: Shims, facts: Facts, settings: Settings, bus: Bus, point: str
) -> None:
    one = shim().start()
    process.arm(point)
    subject = subjects.agent(settings.node_id, subjects.AGENT_EXEC_START)
    request = HostExec(id=CONTAINER, run=1, exec_id=EXEC, config=ExecConfig(cmd=["true"]))
    starting = asyncio.ensure_future(bus.request(subject, request, ExecStarted))
    if point == "agent.exec.published":
        assert (await starting).pid
        one.exec_exit(EXEC, 3)
    await process.died()
    await process.start()
    await process.answers()
    if point == "agent.exec.started":
        assert (await starting).pid
        one.exec_exit(EXEC, 3)
    fact = await facts.next(subjects.FACT_EXEC_EXITED, ExecExited)
    assert (fact.id, fact.exit_code) == (EXEC, 3)
    await until((one.directory / f"execs/{EXEC}/exit.acked").exists)
    assert len(facts.all) == 1


async def test_what_a_boot_ended_is_told_and_started_once_when_the_agent_dies(
    process: AgentProcess, facts: Facts, settings: Settings, bus: Bus
) -> None:
    asked: list[int] = []

    async def restart(request: HostRestart) -> HostStarted:
        asked.append(request.run)
        return HostStarted(pid=1, started_ns=time.time_ns())

    await process.kill()
    (settings.run_dir / "agent.json").write_text('{"boot_id":"another"}')
    write_policy(settings, name="always", run=4)
    subject = subjects.runtime(settings.node_id, subjects.RUNTIME_RESTART)
    await bus.serve(subject, HostRestart, restart)
    process.arm("agent.boot.decided")
    await process.start()
    await process.died()
    await process.start()
    fact = await facts.next(subjects.FACT_EXITED, ContainerExited)
    assert (fact.run, fact.restarting) == (4, True)
    assert (await facts.next(subjects.FACT_STARTED, ContainerStarted)).run == 5
    assert set(asked) == {5}
    assert len(facts.all) == 2


async def test_no_byte_is_lost_or_doubled_when_the_agent_is_killed_under_a_reader(
    process: AgentProcess, shim: Shims, settings: Settings, bus: Bus
) -> None:
    request = OpenStream(id=CONTAINER, at_run=1, until_run=1, follow=True)
    async with opened(bus, settings, request) as reading:
        one = shim().start()
        expected = b""
        for number in range(300):
            line = b"%d\n" % number
            expected += line
            one.print(line)
            if number % 100 == 50:
                await reading.until(b"%d\n" % (number - 10))
                await process.kill()
                await process.start()
        one.exit(0)
        assert await reading.rest() == expected

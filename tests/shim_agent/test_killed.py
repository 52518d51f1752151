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
from mooring.kit.models.host import (
    ContainerExited,
    ContainerStarted,
    HostRestart,
    HostStarted,
    HostStop,
    OpenStream,
    Report,
)
from tests.forks import Forked, Forker

from .conftest import Facts, Shims, until
from .fakes import CONTAINER, write_policy
from .test_output import opened

pytestmark = pytest.mark.fault


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


@pytest.mark.parametrize("point", ["agent.stop.recorded", "agent.stop.signalled"])
async def test_a_stop_is_finished_wherever_the_agent_dies(
    process: AgentProcess, shim: Shims, facts: Facts, settings: Settings, bus: Bus, point: str
) -> None:
    one = shim().start()
    process.arm(point)
    subject = subjects.agent(settings.node_id, subjects.AGENT_STOP)
    stopping = asyncio.ensure_future(bus.request(subject, HostStop(id=CONTAINER), Done))
    await process.died()
    await process.start()
    with contextlib.suppress(Unavailable):
        await stopping
    await until((one.directory / "exit.acked").exists)
    assert (await facts.next(subjects.FACT_EXITED, ContainerExited)).exit_code == 143


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

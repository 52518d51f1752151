"""Restart policies: decided here, with Docker's back-off, and not forgotten by a kill."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import pytest

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.models.base import Done
from mooring.kit.models.container import RestartPolicy
from mooring.kit.models.host import (
    ContainerExited,
    ContainerStarted,
    Fact,
    HostPolicy,
    HostRestart,
    HostStarted,
    HostStop,
)
from mooring.shim.agent import Agent
from mooring.shim.facts import Facts as Telling
from mooring.shim.policies import LONGEST_DELAY_MS, Policy
from mooring.shim.rundir import ExitRecord

from .conftest import Facts, Running, Shims, until
from .fakes import CONTAINER, FakeShim, write_policy

SECOND = 1_000_000_000


def exited(run: int = 1, code: int | None = 1, lasted: int = 0) -> ExitRecord:
    return ExitRecord(run=run, started_ns=SECOND, finished_ns=SECOND + lasted, exit_code=code)


@pytest.mark.parametrize(
    ("policy", "code", "restarts"),
    [
        (Policy("no"), 1, False),
        (Policy(""), 0, False),
        (Policy("always"), 0, True),
        (Policy("always", stopped=True), 1, False),
        (Policy("unless-stopped"), 0, True),
        (Policy("unless-stopped", stopped=True), 0, False),
        (Policy("on-failure"), 0, False),
        (Policy("on-failure"), 1, True),
        (Policy("on-failure"), None, True),
        (Policy("on-failure", max=2, count=1), 1, True),
        (Policy("on-failure", max=2, count=2), 1, False),
    ],
)
def test_which_exits_are_followed_by_a_start(
    policy: Policy, code: int | None, restarts: bool
) -> None:
    assert policy.after(exited(code=code), 0).pending is restarts


def test_the_delay_doubles_up_to_a_minute() -> None:
    policy = Policy("always", run=1)
    delays = []
    for run in range(1, 13):
        policy = policy.after(exited(run), 0)
        delays.append(policy.delay_ms)
        assert policy.next_ns == SECOND + policy.delay_ms * 1_000_000
    assert delays[:4] == [100, 200, 400, 800]
    assert delays[-1] == LONGEST_DELAY_MS
    assert policy.count == 12


def test_a_run_of_ten_seconds_begins_the_delay_anew() -> None:
    policy = Policy("always", run=1).after(exited(1), 0).after(exited(2), 0)
    assert policy.after(exited(3, lasted=10 * SECOND), 0).delay_ms == 100


def test_the_same_exit_is_decided_once() -> None:
    policy = Policy("always", run=1).after(exited(1), 0)
    assert policy.after(exited(1), 5 * SECOND) == policy


def test_after_a_boot_always_starts_what_was_stopped_and_unless_stopped_does_not() -> None:
    assert Policy("always", stopped=True, run=3).after_boot(SECOND).pending
    assert not Policy("unless-stopped", stopped=True, run=3).after_boot(SECOND).pending
    assert not Policy("on-failure", run=3, decided=3).after_boot(SECOND).pending


class Worker:
    """Starts runs as the runtime worker does: with a shim that says hello."""

    def __init__(self, bus: Bus, settings: Settings, shim: Shims) -> None:
        self.shim = shim
        self.started: list[FakeShim] = []
        self.answers: list[HostStarted] = []
        self.on_start: Callable[[FakeShim], object] = lambda one: None

    async def restart(self, request: HostRestart) -> HostStarted:
        if self.answers:
            return self.answers.pop(0)
        if not any(one.run == request.run for one in self.started):
            self.started.append(self.shim(run=request.run).start())
            self.on_start(self.started[-1])
        return HostStarted(pid=self.started[-1].init.pid, started_ns=time.time_ns())


@pytest.fixture
async def worker(bus: Bus, settings: Settings, shim: Shims) -> Worker:
    made = Worker(bus, settings, shim)
    subject = subjects.runtime(settings.node_id, subjects.RUNTIME_RESTART)
    await bus.serve(subject, HostRestart, made.restart)
    return made


async def test_an_exit_is_followed_by_the_next_run(
    agent: Agent, worker: Worker, shim: Shims, facts: Facts, settings: Settings
) -> None:
    path = write_policy(settings, name="always")
    shim().start().exit(1)
    fact = await facts.next(subjects.FACT_EXITED, ContainerExited)
    assert (fact.restarting, fact.restart_count) == (True, 1)
    started = await facts.next(subjects.FACT_STARTED, ContainerStarted)
    assert (started.run, started.restart_count) == (2, 1)
    # Written once the stream has the fact: the test may hear of that first.
    await until(lambda: json.loads(path.read_text())["run"] == 2)


async def test_facts_keep_their_order_when_a_run_is_over_at_once(
    agent: Agent, worker: Worker, shim: Shims, facts: Facts, settings: Settings
) -> None:
    write_policy(settings, name="on-failure", max=1)
    worker.on_start = lambda one: one.exit(1)
    shim().start().exit(1)
    await facts.next(subjects.FACT_EXITED, ContainerExited)
    assert (await facts.next(subjects.FACT_STARTED, ContainerStarted)).run == 2
    last = await facts.next(subjects.FACT_EXITED, ContainerExited)
    assert (last.run, last.restarting) == (2, False)


async def test_a_restart_survives_the_agent(
    run_agent: Running, worker: Worker, shim: Shims, facts: Facts, settings: Settings
) -> None:
    path = write_policy(settings, name="always", delay_ms=30_000, run=1)
    one = shim().start(hello=False)
    async with run_agent():
        one.exit(1)
        await facts.next(subjects.FACT_EXITED, ContainerExited)
        await until((one.directory / "exit.acked").exists)
    # The minute of the back-off passes while no agent runs.
    fields = json.loads(path.read_text())
    assert fields["delay_ms"] == 60_000
    path.write_text(json.dumps({**fields, "next_ns": time.time_ns()}))
    assert not worker.started
    async with run_agent():
        assert (await facts.next(subjects.FACT_STARTED, ContainerStarted)).run == 2
    assert len(facts.all) == 2


async def test_stop_calls_a_restart_off(
    agent: Agent, worker: Worker, shim: Shims, facts: Facts, settings: Settings, bus: Bus
) -> None:
    path = write_policy(settings, name="always", delay_ms=30_000)
    shim().start().exit(1)
    await facts.next(subjects.FACT_EXITED, ContainerExited)
    await until(lambda: agent.containers.get(CONTAINER).restart is not None)
    subject = subjects.agent(settings.node_id, subjects.AGENT_STOP)
    await bus.request(subject, HostStop(id=CONTAINER), Done)
    assert agent.containers.get(CONTAINER).restart is None
    assert json.loads(path.read_text())["stopped"]
    assert not worker.started


async def test_a_stop_while_the_exit_is_being_told_leaves_no_restart(
    agent: Agent,
    worker: Worker,
    shim: Shims,
    settings: Settings,
    bus: Bus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, tell = asyncio.Event(), Telling.tell

    async def tell_late(self: Telling, kind: str, fact: Fact, msg_id: str) -> None:
        await gate.wait()
        await tell(self, kind, fact, msg_id)

    monkeypatch.setattr(Telling, "tell", tell_late)
    path = write_policy(settings, name="always")
    shim().start().exit(1)
    await until(lambda: json.loads(path.read_text()).get("decided") == 1)
    subject = subjects.agent(settings.node_id, subjects.AGENT_STOP)
    stopping = asyncio.create_task(bus.request(subject, HostStop(id=CONTAINER), Done))
    await until(lambda: bool(json.loads(path.read_text())["stopped"]))
    gate.set()
    await stopping
    assert agent.containers.get(CONTAINER).restart is None


async def test_a_policy_that_ends_restarts_calls_them_off(
    agent: Agent, worker: Worker, shim: Shims, facts: Facts, settings: Settings, bus: Bus
) -> None:
    write_policy(settings, name="always", delay_ms=30_000)
    shim().start().exit(1)
    await facts.next(subjects.FACT_EXITED, ContainerExited)
    subject = subjects.agent(settings.node_id, subjects.AGENT_POLICY)
    request = HostPolicy(id=CONTAINER, policy=RestartPolicy(name="no"), stopped=True)
    await bus.request(subject, request, Done)
    await until(lambda: agent.containers.get(CONTAINER).restart is None)


async def test_a_program_that_is_gone_is_told_and_tried_again(
    agent: Agent, worker: Worker, shim: Shims, facts: Facts, settings: Settings
) -> None:
    write_policy(settings, name="always")
    worker.answers = [HostStarted(error="exec: not found", exit_code=127)]
    shim().start().exit(1)
    await facts.next(subjects.FACT_EXITED, ContainerExited)
    failed = await facts.next(subjects.FACT_EXITED, ContainerExited)
    assert (failed.run, failed.exit_code, failed.restarting) == (2, 127, True)
    assert (await facts.next(subjects.FACT_STARTED, ContainerStarted)).run == 3


async def test_what_a_boot_ended_is_told_and_started_again(
    run_agent: Running, worker: Worker, facts: Facts, settings: Settings
) -> None:
    write_policy(settings, name="unless-stopped", run=5)
    (settings.run_dir / "agent.json").write_text('{"boot_id":"another"}')
    async with run_agent():
        fact = await facts.next(subjects.FACT_EXITED, ContainerExited)
        assert (fact.run, fact.exit_code, fact.restarting) == (5, None, True)
        assert (await facts.next(subjects.FACT_STARTED, ContainerStarted)).run == 6


async def test_without_a_boot_nothing_that_is_not_there_is_started(
    run_agent: Running, worker: Worker, facts: Facts, settings: Settings
) -> None:
    async with run_agent():
        pass
    write_policy(settings, name="always", run=5)
    async with run_agent() as agent:
        await asyncio.sleep(0)
        assert CONTAINER not in agent.containers
    assert not facts.all

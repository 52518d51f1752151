"""What hosts know better, and what was left undone."""

from __future__ import annotations

import asyncio
import time

import pytest

from mooring.kit import subjects
from mooring.kit.models.container import ContainerRecord, State
from mooring.kit.models.host import ContainerExited, HostStop, HostStopped, RunTruth
from mooring.lifecycle.differences import Action, difference
from tests.fakes import FakeHost

from .conftest import Client, Replica


def record(state: State, *, run: int = 1, pid: int = 0, finished: int = 0) -> ContainerRecord:
    """A container; one that has finished had started at 1."""
    return ContainerRecord(
        id="c" * 64, name="web", node="node1", created_ns=1, image="bb",
        state=state, run=run, pid=pid, started_ns=1, finished_ns=finished,
    )  # fmt: skip


def truth(run: int = 1, *, running: bool = False, paused: bool = False) -> RunTruth:
    """What the host says."""
    return RunTruth(id="c" * 64, run=run, running=running, paused=paused, started_ns=9)


RUNNING, PAUSED, EXITED = State.RUNNING, State.PAUSED, State.EXITED


@pytest.mark.parametrize(
    ("known", "said", "action"),
    [
        (record(RUNNING, pid=7), truth(running=True), Action.NONE),
        (record(RUNNING, pid=7), truth(), Action.EXITED),
        (record(RUNNING, pid=7), None, Action.LOST),
        (record(RUNNING, pid=7), truth(2, running=True), Action.STARTED),
        (record(RUNNING, pid=7), truth(running=True, paused=True), Action.PAUSED),
        (record(PAUSED, pid=7), truth(running=True), Action.UNPAUSED),
        (record(State.STARTING), None, Action.NONE),
        (record(State.STARTING), truth(running=True), Action.STARTED),
        (record(State.STOPPING, pid=7), None, Action.LOST),
        (record(State.STOPPING, pid=7), truth(running=True), Action.NONE),
        (record(State.REMOVING, pid=7), truth(), Action.EXITED),
        (record(EXITED, finished=20), truth(), Action.RELEASE),
        (record(EXITED, finished=20), None, Action.NONE),
        (record(State.CREATED, run=0), None, Action.NONE),
        (record(State.CREATED), truth(running=True), Action.STARTED),
        (record(State.CREATED, run=2), truth(1, running=True), Action.KILL),
        (record(State.REMOVED), truth(running=True), Action.KILL),
        (record(State.REMOVED), truth(), Action.NONE),
    ],
)
def test_what_a_report_says_against_a_record(
    known: ContainerRecord, said: RunTruth | None, action: Action
) -> None:
    if action is Action.STARTED and known.state is State.STARTING:
        # A start under way is finished by asking the worker again, not by a report.
        action = Action.NONE
    assert difference(known, said) is action


async def test_an_exit_without_a_fact_is_found(
    client: Client, host: FakeHost, lifecycle: Replica
) -> None:
    container = await client.create("web")
    await client.start("web")
    host.vanish(container, 9)
    await lifecycle.reconciler.look()
    assert (await client.record(container)).state is RUNNING
    await lifecycle.reconciler.look()
    found = await client.record(container)
    assert (found.state, found.exit_code) == (EXITED, 9)
    assert await client.actions(3) == ["create", "start", "die"]


async def test_a_container_that_its_host_has_lost_is_recorded_as_lost(
    client: Client, host: FakeHost, lifecycle: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mooring.lifecycle.reconcile._LOST_AFTER", 0.0)
    container = await client.create("web")
    await client.start("web")
    del host.runs[container]
    await lifecycle.reconciler.look()
    await lifecycle.reconciler.look()
    found = await client.record(container)
    assert (found.state, found.exit_code) == (EXITED, 255)
    assert found.error == "exit status lost with the host"


async def test_a_tombstone_is_purged_when_it_has_served(
    client: Client, lifecycle: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mooring.lifecycle.states.TOMBSTONE_AGE", 0)
    container = await client.create("web")
    await client.remove("web")
    await client.events(2)
    await lifecycle.engine.tasks.close()
    await lifecycle.reconciler.look(ask_hosts=False)
    bucket = await client.bus.bucket(subjects.BUCKET_CONTAINERS, ContainerRecord)
    mirror = await bucket.mirror()
    assert await mirror.until(container, lambda entry: entry is None, 10) is None


async def test_stored_events_leave_the_outbox(
    client: Client, lifecycle: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mooring.lifecycle.outboxes._FOREIGN_AFTER", 0)
    monkeypatch.setattr("mooring.lifecycle.outboxes._EMPTY_AFTER", 0)
    container = await client.create("web")
    await client.events(1)
    await lifecycle.engine.events.close()
    await lifecycle.reconciler.look(ask_hosts=False)
    assert (await client.record(container)).outbox == []


async def test_a_fact_about_an_old_run_changes_nothing(
    client: Client, host: FakeHost, lifecycle: Replica
) -> None:
    container = await client.create("web")
    for _ in range(2):
        await client.start("web")
        await client.stop("web")
    old = ContainerExited(
        node="node1", time_ns=time.time_ns(), id=container, run=1, exit_code=77,
        started_ns=1, finished_ns=2,
    )  # fmt: skip
    subject = subjects.fact("node1", subjects.FACT_EXITED)
    await client.bus.publish_durable(subject, old, msg_id="again")
    await client.start("web")
    assert (await client.record(container)).exit_code == 0
    assert (await client.actions(10))[-1] == "start"


async def test_the_end_of_a_run_waits_for_the_end_of_the_one_before(
    client: Client, host: FakeHost, lifecycle: Replica
) -> None:
    """Facts that were delivered again come behind later ones: a `die` had been lost."""
    container = await client.create("web")
    await client.start("web")
    subject = subjects.fact("node1", subjects.FACT_EXITED)
    for run in (2, 1):
        now = time.time_ns()
        fact = ContainerExited(
            node="node1", time_ns=now, id=container, run=run, exit_code=run,
            started_ns=now, finished_ns=now, restarting=run == 1,
        )  # fmt: skip
        await client.bus.publish_durable(subject, fact, msg_id=f"end of {run}")
    assert await client.actions(5) == ["create", "start", "die", "start", "die"]
    found = await client.record(container)
    assert (found.state, found.run, found.exit_code) == (EXITED, 2, 2)


async def test_a_stop_waits_for_what_is_told_of_the_runs_before_the_last(
    client: Client, host: FakeHost, lifecycle: Replica
) -> None:
    """The host tells of the last run only: each of those before has a `die` of its own."""
    container = await client.create("web", restart_policy={"name": "always"})
    await client.start("web")
    await host.exit(container, 5, restarting=True)
    await client.until(container, State.RESTARTING)
    host.runs[container].run = 3
    before = host.reports
    stopping = asyncio.create_task(client.stop("web"))
    async with asyncio.timeout(20):
        while host.reports == before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    for run in (2, 3):
        now = time.time_ns()
        fact = ContainerExited(
            node="node1", time_ns=now, id=container, run=run, exit_code=5,
            started_ns=now, finished_ns=now, restarting=run == 2,
        )  # fmt: skip
        subject = subjects.fact("node1", subjects.FACT_EXITED)
        await client.bus.publish_durable(subject, fact, msg_id=f"end of {run}")
    await stopping
    told = ["create", *["start", "die"] * 3, "stop"]
    assert await client.actions(len(told)) == told


async def test_a_stop_that_is_told_late_of_an_end_with_a_restart_to_follow_is_over(
    client: Client, host: FakeHost, lifecycle: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ended before the stop came to the host, which called its restart off."""
    container = await client.create("web", restart_policy={"name": "always"})
    await client.start("web")
    told = []

    async def stop(request: HostStop) -> HostStopped:
        told.append(asyncio.create_task(host.exit(container, 5, restarting=True)))
        return HostStopped(run=1)

    await host.bus.drain()
    monkeypatch.setattr(host, "stop", stop)
    await host.serve()
    await client.stop("web")
    found = await client.until(container, State.EXITED)
    assert (found.run, found.exit_code) == (1, 5)
    await told[0]


async def test_a_later_run_in_a_report_waits_for_what_the_facts_say_of_the_one_before(
    client: Client, host: FakeHost, lifecycle: Replica
) -> None:
    container = await client.create("web")
    await client.start("web")
    host.runs[container].run = 2
    for _ in range(3):
        await lifecycle.reconciler.look()
    assert (await client.record(container)).run == 1

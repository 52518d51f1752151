"""Execs: their states, refusals and events."""

from __future__ import annotations

import pytest

from mooring.kit import subjects
from mooring.kit.errors import Conflict, InvalidParameter, NotFound
from mooring.kit.models.exec import (
    CreateExec,
    ExecConfig,
    ExecCreated,
    ExecRecord,
    ExecStarted,
    ExecState,
    StartExec,
)
from tests.fakes import FakeHost

from .conftest import Client, Replica


async def create(client: Client, *command: str) -> str:
    """Register a command in the container web."""
    request = CreateExec(container="web", config=ExecConfig(cmd=list(command)))
    return (await client.bus.request(subjects.EXEC_CREATE, request, ExecCreated)).exec_id


async def start(client: Client, exec_id: str) -> ExecStarted:
    """Start it."""
    request = StartExec(exec_id=exec_id)
    return await client.bus.request(subjects.EXEC_START, request, ExecStarted)


async def until_exited(client: Client, exec_id: str) -> ExecRecord:
    """Its record once it has ended."""
    bucket = await client.bus.bucket(subjects.BUCKET_EXECS, ExecRecord)
    entry = await (await bucket.mirror()).until(
        exec_id, lambda e: e is not None and e.record.state is ExecState.EXITED, 10
    )
    assert entry is not None
    return entry.record


async def test_an_exec_lives_and_its_events_come_in_order(client: Client, host: FakeHost) -> None:
    container = await client.create("web")
    await client.start("web")
    exec_id = await create(client, "ls", "-l")
    started = await start(client, exec_id)
    assert started.pid > 0
    await host.exec_exit(exec_id, container, 4)
    record = await until_exited(client, exec_id)
    assert (record.exit_code, record.pid) == (4, started.pid)
    events = (await client.events(5))[2:]
    assert [e.action for e in events] == ["exec_create: ls -l", "exec_start: ls -l", "exec_die"]
    assert {e.attributes["execID"] for e in events} == {exec_id}
    assert events[2].attributes["exitCode"] == "4"
    assert events[0].attributes["name"] == "web"


async def test_its_host_is_told_of_it_before_it_is_started(client: Client, host: FakeHost) -> None:
    container = await client.create("web")
    await client.start("web")
    request = CreateExec(container="web", config=ExecConfig(cmd=["sh"], tty=True))
    await client.bus.request(subjects.EXEC_CREATE, request, ExecCreated)
    exec_id = await create(client, "ls")
    await start(client, exec_id)
    # One with a terminal needs more than what can wait.
    (prepared,) = host.prepared_execs
    assert (prepared.id, prepared.run, prepared.exec_id) == (container, 1, exec_id)
    assert prepared.config.cmd == ["ls"]


async def test_an_exec_needs_a_running_container(client: Client) -> None:
    container = await client.create("web")
    with pytest.raises(Conflict, match=f"container {container} is not running"):
        await create(client, "ls")
    await client.start("web")
    await client.ask(subjects.CONTAINER_PAUSE, "web")
    with pytest.raises(Conflict, match="is paused, unpause the container before exec"):
        await create(client, "ls")
    with pytest.raises(InvalidParameter, match="No exec command specified"):
        await create(client)


async def test_an_exec_runs_once(client: Client, host: FakeHost) -> None:
    container = await client.create("web")
    await client.start("web")
    exec_id = await create(client, "ls")
    await start(client, exec_id)
    with pytest.raises(Conflict, match="is already running"):
        await start(client, exec_id)
    await host.exec_exit(exec_id, container, 0)
    await until_exited(client, exec_id)
    with pytest.raises(Conflict, match="has already run"):
        await start(client, exec_id)
    with pytest.raises(NotFound, match="No such exec instance: nope"):
        await start(client, "nope")


async def test_a_program_that_is_not_there_ends_the_exec(client: Client) -> None:
    await client.create("web")
    await client.start("web")
    exec_id = await create(client, "missing")
    started = await start(client, exec_id)
    assert (started.exit_code, started.pid) == (127, 0)
    assert "executable file not found" in started.error
    assert (await until_exited(client, exec_id)).exit_code == 127


async def test_execs_go_with_their_container(client: Client, lifecycle: Replica) -> None:
    await client.create("web")
    await client.start("web")
    exec_id = await create(client, "ls")
    await client.remove("web", force=True)
    await lifecycle.engine.execs.until(exec_id, lambda record: record is None, 10)


async def test_old_execs_are_forgotten(
    client: Client, lifecycle: Replica, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mooring.lifecycle.execs.KEPT", 2)
    await client.create("web")
    await client.start("web")
    first = await create(client, "missing")
    await start(client, first)
    await until_exited(client, first)
    for _ in range(3):
        await create(client, "ls")
    assert lifecycle.engine.execs.get(first) is None

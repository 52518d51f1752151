"""Commands against a replica, a real nats-server and a fake host."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from mooring.kit import subjects
from mooring.kit.errors import (
    Conflict,
    EngineError,
    InvalidParameter,
    NotFound,
    NotModified,
)
from mooring.kit.models.base import Done
from mooring.kit.models.container import (
    ContainerConfig,
    ContainerCreated,
    CreateContainer,
    KillContainer,
    NoteContainer,
    PruneContainers,
    Pruned,
    RenameContainer,
    State,
    StopContainer,
)
from mooring.kit.models.host import HostStarted
from tests.fakes import FakeHost, FakeRun

from .conftest import Client, Replica


async def test_a_container_lives_and_its_events_come_in_order(
    client: Client, host: FakeHost
) -> None:
    container = await client.create("web")
    await client.start("web")
    await host.exit(container, 3)
    record = await client.until(container, State.EXITED)
    assert (record.exit_code, record.pid, record.run) == (3, 0, 1)
    await client.remove("web")
    assert await client.actions(4) == ["create", "start", "die", "destroy"]
    assert (await client.events(3))[2].attributes["exitCode"] == "3"
    assert container in host.removed
    assert (await client.record(container)).state is State.REMOVED


async def test_events_carry_image_name_and_labels(client: Client) -> None:
    container = await client.create("web")
    [event] = await client.events(1)
    assert event.id == f"{container}.1"
    assert event.attributes == {"image": "bb", "name": "web", "role": "test", "made": "here"}


async def test_a_repeated_create_answers_the_same_container(client: Client) -> None:
    first = await client.create("web", request_id="r1")
    assert await client.create("web", request_id="r1") == first


async def test_a_name_is_taken_once(client: Client) -> None:
    container = await client.create("web")
    with pytest.raises(Conflict) as error:
        await client.create("/web")
    assert error.value.message == (
        f'Conflict. The container name "/web" is already in use by container "{container}". '
        "You have to remove (or rename) that container to be able to reuse that name."
    )


async def test_a_name_is_free_again_after_the_removal(client: Client) -> None:
    first = await client.create("web")
    await client.remove(first)
    assert await client.create("web") != first


async def test_an_unknown_image_is_named_with_its_tag(client: Client) -> None:
    request = CreateContainer(config=ContainerConfig(image="nope"))
    with pytest.raises(NotFound, match=r"^No such image: nope:latest$"):
        await client.bus.request(subjects.CONTAINER_CREATE, request, ContainerCreated)


@pytest.mark.parametrize("name", ["-web", "a", "w b", "ä1"])
async def test_an_invalid_name_is_refused(client: Client, name: str) -> None:
    with pytest.raises(InvalidParameter, match="Invalid container name"):
        await client.create(name)


async def test_starting_what_runs_changes_nothing(client: Client, host: FakeHost) -> None:
    await client.create("web")
    await client.start("web", request_id="s1")
    await client.start("web", request_id="s1")
    with pytest.raises(NotModified):
        await client.start("web")
    assert len(host.starts) == 1


async def test_a_refused_start_puts_the_state_back(client: Client, host: FakeHost) -> None:
    container = await client.create("web")
    host.refusal = EngineError("cannot mount the root filesystem")
    with pytest.raises(EngineError, match="root filesystem"):
        await client.start("web")
    record = await client.record(container)
    assert (record.state, record.exit_code) == (State.CREATED, 128)
    assert record.error == "cannot mount the root filesystem"
    host.refusal = None
    await client.start("web")
    assert (await client.record(container)).state is State.RUNNING


async def test_a_program_that_is_not_there_is_exit_code_127(client: Client, host: FakeHost) -> None:
    container = await client.create("web")
    host.failure = HostStarted(error='exec: "x": executable file not found', exit_code=127)
    with pytest.raises(InvalidParameter, match="executable file not found"):
        await client.start("web", request_id="s1")
    assert (await client.record(container)).exit_code == 127
    with pytest.raises(InvalidParameter, match="executable file not found"):
        await client.start("web", request_id="s1")


async def test_a_failed_start_removes_an_auto_remove_container(
    client: Client, host: FakeHost
) -> None:
    container = await client.create("web", auto_remove=True)
    host.failure = HostStarted(error="no", exit_code=126)
    with pytest.raises(InvalidParameter):
        await client.start("web")
    await client.until(container, State.REMOVED)
    assert await client.actions(2) == ["create", "destroy"]


async def test_stop_answers_when_it_has_exited(client: Client, host: FakeHost) -> None:
    container = await client.create("web")
    await client.start("web")
    await client.stop("web")
    record = await client.record(container)
    assert (record.state, record.exit_code) == (State.EXITED, 143)
    assert record.stopped_by_user
    assert await client.actions(5) == ["create", "start", "kill", "die", "stop"]
    with pytest.raises(NotModified):
        await client.stop("web")


async def test_stop_kills_what_ignores_the_signal(client: Client, host: FakeHost) -> None:
    host.ignores_signals = True
    await client.create("web")
    await client.start("web")
    await client.stop("web", 0)
    events = await client.events(6)
    assert [(e.action, e.attributes.get("signal")) for e in events[2:]] == [
        ("kill", "15"),
        ("kill", "9"),
        ("die", None),
        ("stop", None),
    ]


async def test_stop_sends_the_signal_of_the_request(client: Client, host: FakeHost) -> None:
    container = await client.create("web")
    await client.start("web")
    await client.stop("web", signal="SIGUSR1")
    assert host.signals == [(container, 10)]
    with pytest.raises(InvalidParameter, match="Invalid signal: SIGX"):
        await client.stop("web", signal="SIGX")


async def test_kill_waits_for_the_exit(client: Client) -> None:
    container = await client.create("web")
    await client.start("web")
    await client.bus.request(subjects.CONTAINER_KILL, KillContainer(container="web"), Done)
    record = await client.record(container)
    assert (record.state, record.exit_code) == (State.EXITED, 137)
    with pytest.raises(
        Conflict, match=f"cannot kill container: web: container {container} is not running"
    ):
        await client.bus.request(subjects.CONTAINER_KILL, KillContainer(container="web"), Done)


async def test_restart_stops_and_starts(client: Client, host: FakeHost) -> None:
    container = await client.create("web")
    for _ in range(2):
        request = StopContainer(container="web")
        await client.bus.request(subjects.CONTAINER_RESTART, request, Done)
    assert (await client.record(container)).run == 2
    assert await client.actions(8) == [
        "create", "start", "restart", "kill", "die", "stop", "start", "restart",
    ]  # fmt: skip


async def test_restarts_at_the_same_time_all_succeed(client: Client, host: FakeHost) -> None:
    """None of them finds that the container runs already: that is what it was to do."""
    container = await client.create("web")
    await client.start("web")
    requests = [StopContainer(container="web") for _ in range(4)]
    async with asyncio.timeout(30):
        await asyncio.gather(
            *(client.bus.request(subjects.CONTAINER_RESTART, each, Done) for each in requests)
        )
    assert (await client.record(container)).state is State.RUNNING


async def test_pause_and_unpause(client: Client) -> None:
    container = await client.create("web")
    with pytest.raises(Conflict, match="is not running"):
        await client.ask(subjects.CONTAINER_PAUSE, "web")
    await client.start("web")
    await client.ask(subjects.CONTAINER_PAUSE, "web")
    assert (await client.record(container)).state is State.PAUSED
    with pytest.raises(Conflict, match="is already paused"):
        await client.ask(subjects.CONTAINER_PAUSE, "web")
    with pytest.raises(Conflict, match="cannot start a paused container, try unpause instead"):
        await client.start("web")
    await client.ask(subjects.CONTAINER_UNPAUSE, "web")
    with pytest.raises(EngineError, match="is not paused"):
        await client.ask(subjects.CONTAINER_UNPAUSE, "web")
    assert await client.actions(4) == ["create", "start", "pause", "unpause"]


async def test_a_paused_container_can_be_stopped(client: Client, host: FakeHost) -> None:
    container = await client.create("web")
    await client.start("web")
    await client.ask(subjects.CONTAINER_PAUSE, "web")
    await client.stop("web")
    assert (await client.record(container)).state is State.EXITED


async def test_rename_moves_the_claim(client: Client) -> None:
    container = await client.create("old")
    rename = RenameContainer(container="old", name="new")
    await client.bus.request(subjects.CONTAINER_RENAME, rename, Done)
    assert (await client.record(container)).name == "new"
    assert await client.create("old") != container
    with pytest.raises(Conflict, match=r'name "/new" is already in use'):
        await client.create("new")
    assert (await client.events(2))[1].attributes["oldName"] == "/old"


async def test_rename_to_a_taken_name_is_refused(client: Client) -> None:
    await client.create("one")
    await client.create("two")
    rename = RenameContainer(container="one", name="two")
    with pytest.raises(Conflict, match="already in use"):
        await client.bus.request(subjects.CONTAINER_RENAME, rename, Done)


async def test_a_running_container_is_removed_by_force_only(client: Client) -> None:
    await client.create("web")
    await client.start("web")
    with pytest.raises(Conflict) as error:
        await client.remove("web")
    assert error.value.message == (
        'cannot remove container "/web": container is running: '
        "stop the container before removing or force remove"
    )
    await client.remove("web", force=True)
    assert await client.actions(5) == ["create", "start", "kill", "die", "destroy"]


async def test_a_repeated_removal_is_a_success(client: Client) -> None:
    await client.create("web")
    await client.remove("web", request_id="r1")
    await client.remove("web", request_id="r1")
    with pytest.raises(NotFound, match=r"^No such container: web$"):
        await client.remove("web")


async def test_an_auto_remove_container_goes_when_it_exits(client: Client, host: FakeHost) -> None:
    container = await client.create("web", auto_remove=True)
    await client.start("web")
    await host.exit(container, 7)
    record = await client.until(container, State.REMOVED)
    assert record.exit_code == 7
    assert await client.actions(4) == ["create", "start", "die", "destroy"]


async def test_a_container_that_exits_at_once_has_started(client: Client, host: FakeHost) -> None:
    host.exits_at_once = True
    container = await client.create("web")
    await client.start("web")
    await client.until(container, State.EXITED)
    assert await client.actions(3) == ["create", "start", "die"]


async def test_an_oom_is_told_before_the_death(client: Client, host: FakeHost) -> None:
    container = await client.create("web")
    await client.start("web")
    await host.exit(container, 137, oom=True)
    assert (await client.until(container, State.EXITED)).oom_killed
    assert await client.actions(4) == ["create", "start", "oom", "die"]


async def test_the_host_restarts_by_policy(client: Client, host: FakeHost) -> None:
    container = await client.create("web", restart_policy={"name": "always"})
    await client.start("web")
    await host.exit(container, 1, restarting=True)
    await host.restart(container)
    record = await client.until(container, State.RUNNING)
    while record.run != 2:
        await asyncio.sleep(0.01)
        record = await client.record(container)
    assert (record.state, record.restart_count) == (State.RUNNING, 1)
    assert await client.actions(4) == ["create", "start", "die", "start"]


async def test_a_stop_waits_for_what_is_told_of_a_run_that_the_host_began(
    client: Client, host: FakeHost
) -> None:
    """Its policy was faster than the stop: that run begins and ends before the container stops."""
    container = await client.create("web", restart_policy={"name": "always"})
    await client.start("web")
    await host.exit(container, 1, restarting=True)
    await client.until(container, State.RESTARTING)
    first = host.runs[container]
    host.runs[container] = replace(first, run=2)
    stopping = asyncio.create_task(client.stop("web"))
    await client.until(container, State.STOPPING)
    done, _ = await asyncio.wait({stopping}, timeout=0.3)
    assert not done
    host.runs[container] = first
    await host.restart(container)
    await host.exit(container, 1)
    await stopping
    assert await client.actions(6) == ["create", "start", "die", "start", "die", "stop"]


async def test_a_kill_that_is_asked_for_again_is_answered_as_done(
    client: Client, host: FakeHost
) -> None:
    """The agent was killed right behind the signal: the next one finds nothing to send it to."""
    container = await client.create("web")
    await client.start("web")
    host.vanish(container, 137)
    await client.bus.request(subjects.CONTAINER_KILL, KillContainer(container="web"), Done)
    assert (await client.record(container)).exit_code == 137


async def test_a_start_that_is_asked_for_again_after_its_run_was_cleared_away_is_done(
    client: Client, host: FakeHost
) -> None:
    """Its exit is on its way, with a replica that died: the host has nothing of it any more."""
    container = await client.create("web")
    host.failure = HostStarted(over=True)
    starting = asyncio.create_task(client.start("web"))
    await client.until(container, State.STARTING)
    host.runs[container] = FakeRun(container, 1, 4711, time.time_ns())
    await host.exit(container, 5)
    await starting
    assert (await client.until(container, State.EXITED)).exit_code == 5
    assert await client.actions(3) == ["create", "start", "die"]


async def test_what_is_told_of_runs_that_a_policy_began_is_recorded_in_their_order(
    client: Client, host: FakeHost
) -> None:
    """Those of the second run were with a replica that died, and come last."""
    container = await client.create("web", restart_policy={"name": "always"})
    await client.start("web")
    await host.exit(container, 1, restarting=True)
    second = replace(host.runs[container], run=2)
    host.runs[container] = second
    await host.restart(container)
    await host.exit(container, 3, restarting=True)
    host.runs[container] = replace(second, running=True, started_ns=second.finished_ns)
    await host.exit(container, 2, restarting=True)
    events = [e for e in await client.events(7) if e.actor == container]
    assert [e.action for e in events] == ["create", *["start", "die"] * 3]
    assert [e.attributes["exitCode"] for e in events if e.action == "die"] == ["1", "2", "3"]


async def test_a_container_is_found_by_name_prefix_and_id(client: Client) -> None:
    container = await client.create("web")
    for text in ("web", "/web", container, container[:12]):
        await client.ask(subjects.CONTAINER_RESTART, text)
    with pytest.raises(NotFound, match=r"^No such container: nope$"):
        await client.start("nope")


async def test_a_note_is_an_event(client: Client) -> None:
    container = await client.create("web")
    note = NoteContainer(container="web", action="resize", attributes={"height": "1"})
    await client.bus.request(subjects.CONTAINER_NOTE, note, Done)
    event = (await client.events(2))[1]
    assert (event.action, event.actor) == ("resize", container)
    assert event.attributes["height"] == "1"


async def test_prune_removes_what_is_stopped(client: Client, lifecycle: Replica) -> None:
    stopped = await client.create("stopped")
    await client.create("running")
    await client.start("running")
    request = PruneContainers(labels=["role=test"], labels_not=["keep"])
    pruned = await client.bus.request(subjects.CONTAINER_PRUNE, request, Pruned)
    assert pruned.deleted == [stopped]
    assert pruned.space_reclaimed == 4096
    assert (await client.events(5))[4].attributes == {"reclaimed": "4096"}


async def test_a_removal_right_after_the_exit_is_its_release_too(
    client: Client, host: FakeHost
) -> None:
    container = await client.create("web")
    await client.start("web")
    await client.stop("web")
    await client.remove("web")
    assert container in host.removed

    other = await client.create("other")
    await client.start("other")
    await client.stop("other")
    async with asyncio.timeout(10):
        while (other, 1) not in host.released:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (container, 1) not in host.released

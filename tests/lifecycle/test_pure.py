"""Tables for the decisions that need nothing but values."""

from __future__ import annotations

from itertools import islice

import pytest

from mooring.kit.errors import Conflict, EngineError, InvalidParameter, NotModified, Unavailable
from mooring.kit.models.container import (
    ContainerConfig,
    ContainerRecord,
    Health,
    HealthConfig,
    HostConfig,
    State,
)
from mooring.kit.models.host import HostStarted, NodeRecord
from mooring.lifecycle import exits, states
from mooring.lifecycle.exits import Exit
from mooring.lifecycle.merge import command_line, merge
from mooring.lifecycle.naming import candidates, check_name
from mooring.lifecycle.placement import choose
from mooring.lifecycle.states import SECOND, Claim

from .conftest import image

CLAIM = Claim("me", "command", 1000 * SECOND)


def record(state: State, *, pid: int = 0, run: int = 1, **host: object) -> ContainerRecord:
    """A container."""
    return ContainerRecord(
        id="c" * 64, name="web", node="node1", created_ns=1, image="bb", state=state,
        pid=pid, run=run, host_config=HostConfig.model_validate(host),
    )  # fmt: skip


def actions(changed: ContainerRecord) -> list[str]:
    """Its new events."""
    return [event.action for event in changed.outbox]


@pytest.mark.parametrize(
    ("state", "refusal"),
    [
        (State.CREATED, None),
        (State.EXITED, None),
        (State.RUNNING, NotModified),
        (State.RESTARTING, NotModified),
        (State.STOPPING, NotModified),
        (State.PAUSED, Conflict),
        (State.REMOVING, Conflict),
        (State.DEAD, Conflict),
        (State.REMOVED, Conflict),
    ],
)
def test_what_can_be_started(state: State, refusal: type[EngineError] | None) -> None:
    if refusal is None:
        claimed = states.claim_start(record(state), CLAIM)
        assert (claimed.state, claimed.run, claimed.owner) == (State.STARTING, 2, "me")
        assert claimed.resume_state is state
    else:
        with pytest.raises(refusal):
            states.claim_start(record(state), CLAIM)


@pytest.mark.parametrize(
    ("state", "pid", "words"),
    [
        (State.RUNNING, 7, "container is running: stop the container before removing"),
        (State.STARTING, 0, "container is running"),
        (State.RESTARTING, 0, "container is restarting"),
        (State.PAUSED, 7, "container is paused and must be unpaused first"),
        (State.REMOVING, 0, f"removal of container {'c' * 64} is already in progress"),
    ],
)
def test_what_cannot_be_removed(state: State, pid: int, words: str) -> None:
    with pytest.raises(Conflict, match=words):
        states.claim_remove(record(state, pid=pid), CLAIM, force=False)


def test_a_stop_that_took_too_long_tells_of_the_kill() -> None:
    stopping = states.claim_stop(record(State.RUNNING, pid=7), CLAIM, 15, 10)
    late = Exit(1, 137, 1, CLAIM.now + 11 * SECOND)
    assert actions(exits.exited(stopping, late, CLAIM)) == ["kill", "kill", "die", "stop"]
    early = Exit(1, 137, 1, CLAIM.now + 2 * SECOND)
    assert actions(exits.exited(stopping, early, CLAIM)) == ["kill", "die", "stop"]


def test_a_stop_without_limit_is_never_overdue() -> None:
    stopping = states.claim_stop(record(State.RUNNING, pid=7), CLAIM, 15, -1)
    assert stopping.deadline_ns == 0
    assert states.stop_seconds_left(stopping, CLAIM.now) == -1


def test_the_rest_of_a_stop_is_what_is_left_of_its_time() -> None:
    stopping = states.claim_stop(record(State.RUNNING, pid=7), CLAIM, 15, 10)
    assert states.stop_seconds_left(stopping, CLAIM.now) == 10
    assert states.stop_seconds_left(stopping, CLAIM.now + 4 * SECOND) == 6
    assert states.stop_seconds_left(stopping, CLAIM.now + 40 * SECOND) == 0


def test_an_exit_is_applied_once() -> None:
    running = record(State.RUNNING, pid=7)
    end = Exit(1, 3, 10, 20 * SECOND)
    ended = exits.exited(running, end, CLAIM)
    assert (ended.state, ended.exit_code) == (State.EXITED, 3)
    assert exits.exited(ended, end, CLAIM) is ended


def test_what_has_ended_is_not_healthy() -> None:
    running = record(State.RUNNING, pid=7)
    healthy = running.model_copy(update={"health": Health(status="healthy")})
    ended = exits.exited(healthy, Exit(1, 0, 10, 20), CLAIM)
    assert ended.health is not None
    assert (ended.health.status, actions(ended)) == ("unhealthy", ["die"])


def test_an_exit_that_is_lost_is_255_and_says_so() -> None:
    ended = exits.exited(record(State.RUNNING, pid=7), Exit(1, None, 0, 0), CLAIM)
    assert (ended.exit_code, ended.error) == (255, exits.UNKNOWN)


def test_a_restart_under_way_survives_the_exit_and_the_auto_removal() -> None:
    running = record(State.RUNNING, pid=7, auto_remove=True)
    stopping = states.claim_stop(running, CLAIM, 15, 10, restart=True)
    ended = exits.exited(stopping, Exit(1, 0, 1, 2), CLAIM)
    assert (ended.state, ended.owner, ended.restart_wanted) == (State.EXITED, "me", True)
    again = states.claim_start(ended, CLAIM)
    started = states.started(again, 2, HostStarted(pid=8), CLAIM.now)
    assert actions(started)[-2:] == ["start", "restart"]


def test_a_start_that_was_given_up_is_recorded_when_it_ends_after_all() -> None:
    claimed = states.claim_start(record(State.CREATED, run=0), CLAIM)
    given_up = states.start_given_up(claimed, 1, CLAIM)
    assert given_up.state is State.CREATED
    ended = exits.exited(given_up, Exit(1, 5, 10, 20), CLAIM)
    assert (ended.state, ended.exit_code) == (State.EXITED, 5)
    assert actions(ended) == ["start", "die"]


def test_a_refused_start_is_answered_again_as_it_was() -> None:
    claimed = states.claim_start(record(State.CREATED, run=0), CLAIM)
    refused = states.start_refused(claimed, 1, "not found", 127, CLAIM)
    assert isinstance(states.repeated_refusal(refused), InvalidParameter)
    assert states.claim_start(refused, CLAIM) is refused


def test_events_of_one_change_are_in_order_of_time() -> None:
    changed = states.advance(record(State.CREATED), 5, ("one", {}), ("two", {}))
    changed = states.advance(changed, 4, ("three", {}))
    times = [event.time_ns for event in changed.outbox]
    assert times == sorted(set(times))
    assert [e.id[-2:] for e in changed.outbox] == [".1", ".2", ".3"]


@pytest.mark.parametrize(
    ("entrypoint", "command", "line"),
    [
        (None, None, ["/entry", "a"]),
        (None, ["b"], ["/entry", "b"]),
        (["/mine"], None, ["/mine"]),
        (["/mine"], ["b"], ["/mine", "b"]),
        ([""], ["b"], ["b"]),
        ([], None, ["a"]),
    ],
)
def test_what_a_container_runs(
    entrypoint: list[str] | None, command: list[str] | None, line: list[str]
) -> None:
    config = ContainerConfig(entrypoint=entrypoint, cmd=command)
    path, arguments = command_line(merge(config, {"Entrypoint": ["/entry"], "Cmd": ["a"]}))
    assert [path, *arguments] == line


def test_no_command_is_refused() -> None:
    with pytest.raises(InvalidParameter, match=r"^no command specified$"):
        merge(ContainerConfig(), {})


def test_the_user_comes_before_the_image() -> None:
    mine = ContainerConfig(
        cmd=["x"], env=["A=1"], labels={"k": "mine"}, healthcheck=HealthConfig(interval=5)
    )
    merged = merge(
        mine,
        {
            "Env": ["A=2", "B=3"],
            "Labels": {"k": "theirs", "l": "theirs"},
            "User": "app",
            "WorkingDir": "/app",
            "ExposedPorts": {"80/tcp": {}},
            "Healthcheck": {"Test": ["CMD", "true"], "Interval": 7},
            "Volumes": None,
        },
    )
    assert merged.env == ["A=1", "B=3"]
    assert merged.labels == {"k": "mine", "l": "theirs"}
    assert (merged.user, merged.working_dir) == ("app", "/app")
    assert merged.exposed_ports == {"80/tcp": {}}
    assert merged.healthcheck == HealthConfig(test=["CMD", "true"], interval=5)


def test_random_names_are_valid_and_the_same_for_the_same_container() -> None:
    names = list(islice(candidates("seed"), 12))
    assert names == list(islice(candidates("seed"), 12))
    assert len(set(names)) == 12
    for name in names:
        check_name(name)


def test_a_container_goes_where_its_image_is_and_least_runs() -> None:
    nodes = [NodeRecord(id="node1"), NodeRecord(id="node2"), NodeRecord(id="node3")]
    record = image()
    record.nodes = ["node1", "node2"]
    assert choose(nodes, record, lambda: {"node1": 3, "node2": 1}) == "node2"
    with pytest.raises(Unavailable, match="no host has joined yet"):
        choose([], record, dict)

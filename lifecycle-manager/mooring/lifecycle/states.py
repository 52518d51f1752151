"""What may follow what: each function takes a record and returns its successor, or refuses.

    created ─→ starting ─→ running ⇄ paused      starting, stopping and removing are transitions:
       ↑          │          │  ↑                they name the replica that carries them out and
       └──────────┤          ↓  └─ restarting    a deadline, and each of them can be carried out
    exited ←──────┴─ stopping                    again from its beginning, by anybody.
       └─→ removing ─→ removed

A function that returns the record itself says that nothing has to change. Refusals are in
Docker's words. Nothing here waits or asks.
"""

from __future__ import annotations

from typing import NamedTuple

from mooring.kit.errors import Conflict, EngineError, InvalidParameter, NotFound, NotModified
from mooring.kit.models.container import ContainerRecord, Health, NetworkState, State
from mooring.kit.models.host import HostStarted

from .events import Happening, NetworkHappening, container_event, mounted

SECOND = 1_000_000_000
START_LIMIT = 60 * SECOND
STOP_SLACK = 15 * SECOND
"""What a stop may take beyond the container's own time."""
REMOVE_LIMIT = 60 * SECOND
TOMBSTONE_AGE = 60 * SECOND

FAILED_START = 128
"""Docker's exit code for a start that failed before there was a program."""
SIGKILL = 9

LIVE = frozenset({State.STARTING, State.RUNNING, State.PAUSED, State.RESTARTING, State.STOPPING})
"""The states in which a host may have something running."""
TRANSITIONS = frozenset({State.STARTING, State.STOPPING, State.REMOVING})


class Claim(NamedTuple):
    """Who makes a change, for which command, and when (Unix ns)."""

    owner: str
    command: str
    now: int


def advance(
    record: ContainerRecord, now: int, *happenings: Happening, **changes: object
) -> ContainerRecord:
    """The record with these changes, and these events added to its outbox."""
    changed = record.model_copy(update=changes)
    if happenings:
        first = record.event_serial + 1
        # Each later than the one before, so that whoever sorts by time keeps their order.
        time_ns = max(now, record.outbox[-1].time_ns + 1) if record.outbox else now
        events = [
            container_event(changed, happening, f"{record.id}.{first + i}", time_ns + i)
            for i, happening in enumerate(happenings)
        ]
        changed.outbox = [*record.outbox, *events]
        changed.event_serial = record.event_serial + len(events)
    return changed


AT_REST: dict[str, object] = {"owner": "", "deadline_ns": 0, "resume_state": None}


# --- start ---


def claim_start(record: ContainerRecord, claim: Claim) -> ContainerRecord:
    """To starting. The record itself if this command did it, or if it is starting already."""
    if record.state is State.STARTING or is_repeated(record, claim.command):
        return record
    match record.state:
        case State.CREATED | State.EXITED:
            return advance(
                record,
                claim.now,
                state=State.STARTING,
                owner=claim.owner,
                deadline_ns=claim.now + START_LIMIT,
                command_id=claim.command,
                resume_state=record.state,
                run=record.run + 1,
                stopped_by_user=False,
                error="",
            )
        case State.PAUSED:
            raise Conflict("cannot start a paused container, try unpause instead")
        case State.REMOVING | State.DEAD | State.REMOVED:
            raise Conflict("container is marked for removal and cannot be started")
        case _:
            raise NotModified(f"container {record.name} is already running")


def is_repeated(record: ContainerRecord, command: str) -> bool:
    """Whether this command made the record's last change and has nothing left to do."""
    return bool(command) and record.command_id == command and not record.restart_wanted


def started(record: ContainerRecord, run: int, host: HostStarted, now: int) -> ContainerRecord:
    """The host says that the run has begun."""
    if record.state is not State.STARTING or record.run != run:
        return record
    happenings: list[Happening] = [
        *connected(host.network),
        *mounted(record.mounts),
        ("start", {}),
    ]
    if record.restart_wanted:
        happenings.append(("restart", {}))
    return advance(
        record,
        now,
        *happenings,
        **AT_REST,
        **run_fields(record, run, host.pid, host.started_ns or now, host.network),
        restart_count=0,
        restart_wanted=False,
    )


def connected(network: NetworkState, action: str = "connect") -> list[Happening]:
    """The events of all networks of a run that begins, or (`disconnect`) ends."""
    return [
        NetworkHappening(action, name, point.network_id, point.driver)
        for name, point in network.endpoints.items()
    ]


def run_fields(
    record: ContainerRecord, run: int, pid: int, started_ns: int, network: NetworkState
) -> dict[str, object]:
    check = record.config.healthcheck
    checked = check is not None and check.test not in ([], ["NONE"])
    return {
        "state": State.RUNNING,
        "run": run,
        "pid": pid,
        "started_ns": started_ns,
        "network": network,
        "exit_code": 0,
        "oom_killed": False,
        "oom_kills": 0,
        "error": "",
        "health": Health() if checked else None,
    }


def start_refused(
    record: ContainerRecord, run: int, message: str, exit_code: int, claim: Claim
) -> ContainerRecord:
    """The host could not start it, and has undone what it did."""
    if record.state is not State.STARTING or record.run != run:
        return record
    refused = advance(
        record,
        claim.now,
        **{**AT_REST, "state": record.resume_state or State.CREATED},
        error=message,
        exit_code=exit_code or FAILED_START,
        restart_wanted=False,
    )
    return removed(refused, claim) if record.host_config.auto_remove else refused


def start_given_up(record: ContainerRecord, run: int, claim: Claim) -> ContainerRecord:
    """Nobody can say whether the run began. Should it have, the host's next report tells."""
    refused = start_refused(record, run, "the start was interrupted", FAILED_START, claim)
    # Not done, so whoever asks again with the same command gets a start.
    return refused if refused is record else refused.model_copy(update={"command_id": ""})


def repeated_refusal(record: ContainerRecord) -> EngineError | None:
    """What to answer when a start that had been refused is asked for again."""
    # One with --rm is removed by the refusal itself.
    at_rest = record.state in (State.CREATED, State.EXITED, State.REMOVED)
    if record.error and at_rest and record.pid == 0:
        if record.exit_code in (126, 127):
            return InvalidParameter(record.error)
        if record.exit_code == FAILED_START:
            return EngineError(record.error)
    return None


# --- stop, restart ---


def claim_stop(
    record: ContainerRecord, claim: Claim, signal: int, timeout: int, *, restart: bool = False
) -> ContainerRecord:
    """To stopping; timeout in seconds, -1 for ever. NotModified if it does not run."""
    if is_repeated(record, claim.command) or (
        record.command_id == claim.command and record.state is State.STOPPING
    ):
        return record
    if record.state not in LIVE or record.state is State.STARTING:
        raise NotModified(f"container {record.name} is not running")
    kill: list[Happening] = [("kill", {"signal": str(signal)})] if record.pid else []
    return advance(
        record,
        claim.now,
        *kill,
        state=State.STOPPING,
        owner=claim.owner,
        deadline_ns=0 if timeout < 0 else claim.now + timeout * SECOND + STOP_SLACK,
        command_id=claim.command,
        resume_state=record.resume_state if record.state is State.STOPPING else record.state,
        stopped_by_user=True,
        stop_signal=signal,
        restart_wanted=restart,
    )


def stop_seconds_left(record: ContainerRecord, now: int) -> int:
    """Seconds until a stopping container is to be killed; -1 for never."""
    if record.deadline_ns == 0:
        return -1
    return max(0, -((now + STOP_SLACK - record.deadline_ns) // SECOND))


def stop_refused(record: ContainerRecord, command: str) -> ContainerRecord:
    """The host did not stop it, and says so."""
    if record.state is not State.STOPPING or record.command_id != command:
        return record
    return advance(record, 0, **{**AT_REST, "state": record.resume_state}, restart_wanted=False)


def stopped_without_exit(record: ContainerRecord, now: int) -> ContainerRecord:
    """The host has ended the restarts of a container that was waiting for the next one."""
    if record.state is not State.STOPPING or record.pid:
        return record
    rest: dict[str, object] = {} if record.restart_wanted else AT_REST
    return advance(record, now, ("stop", {}), **{**rest, "state": State.EXITED})


def want_restart(record: ContainerRecord, claim: Claim) -> ContainerRecord:
    """A container that does not run is to be started, which counts as restarted."""
    if record.restart_wanted or record.state not in (State.CREATED, State.EXITED):
        return record
    return advance(
        record,
        claim.now,
        restart_wanted=True,
        owner=claim.owner,
        deadline_ns=claim.now + START_LIMIT,
        command_id=claim.command,
    )


# --- kill, pause ---


def claim_kill(
    record: ContainerRecord, claim: Claim, signal: int, ends_restarts: bool
) -> ContainerRecord:
    """Note a signal that is about to be sent. Conflict if nothing runs."""
    if record.command_id == claim.command:
        return record
    if not record.pid or record.state not in LIVE:
        raise Conflict(
            f"cannot kill container: {record.name}: container {record.id} is not running"
        )
    return advance(
        record,
        claim.now,
        ("kill", {"signal": str(signal)}),
        command_id=claim.command,
        stopped_by_user=record.stopped_by_user or ends_restarts,
    )


def check_running(record: ContainerRecord, what: str = "container") -> None:
    """Conflict unless the container runs and is not paused."""
    match record.state:
        case State.RUNNING | State.STOPPING if record.pid:
            return
        case State.PAUSED:
            raise Conflict(f"{what} {record.id} is already paused")
        case State.RESTARTING:
            raise Conflict(f"{what} {record.id} is restarting, wait until the container is running")
        case _:
            raise Conflict(f"{what} {record.id} is not running")


def paused(record: ContainerRecord, command: str, now: int) -> ContainerRecord:
    """The host has frozen it."""
    if record.state is not State.RUNNING:
        return record
    return advance(record, now, ("pause", {}), state=State.PAUSED, command_id=command)


def check_unpausable(record: ContainerRecord) -> None:
    """Docker's refusals: not running is a conflict, not paused an error of its own."""
    if record.state is State.PAUSED:
        return
    if record.state not in LIVE or not record.pid:
        raise Conflict(f"container {record.id} is not running")
    raise EngineError(f"Container {record.id} is not paused")


def unpaused(record: ContainerRecord, command: str, now: int) -> ContainerRecord:
    """The host has thawed it."""
    if record.state is not State.PAUSED:
        return record
    return advance(record, now, ("unpause", {}), state=State.RUNNING, command_id=command)


def thawed(record: ContainerRecord, now: int) -> ContainerRecord:
    """A signal has thawed it."""
    return unpaused(record, record.command_id, now)


# --- rename, remove ---


def renamed(
    record: ContainerRecord, claim: Claim, name: str, name_revision: int
) -> ContainerRecord:
    """Under its new name, which is claimed already.

    The networks of one that runs have yet to be told: see network_states.is_misnamed.
    """
    if record.state in (State.REMOVING, State.REMOVED):
        raise NotFound(f"No such container: {record.name}")
    return advance(
        record,
        claim.now,
        ("rename", {"oldName": f"/{record.name}"}),
        name=name,
        name_revision=name_revision,
        command_id=claim.command,
    )


def claim_remove(
    record: ContainerRecord, claim: Claim, *, force: bool, volumes: bool = False
) -> ContainerRecord:
    """To removed, or (by force only) to removing for what runs and has to be killed first.

    volumes: its anonymous volumes go as well.
    """
    if record.command_id == claim.command and record.state in (State.REMOVING, State.REMOVED):
        return record
    match record.state:
        case State.REMOVED:
            raise NotFound(f"No such container: {record.name}")
        case State.REMOVING:
            raise Conflict(f"removal of container {record.id} is already in progress")
        case State.PAUSED if not force:
            raise Conflict(
                f'cannot remove container "/{record.name}": '
                "container is paused and must be unpaused first"
            )
        case state if state in LIVE and not force:
            seen = "restarting" if state is State.RESTARTING else "running"
            raise Conflict(
                f'cannot remove container "/{record.name}": container is {seen}: '
                "stop the container before removing or force remove"
            )
    if volumes:
        record = record.model_copy(update={"remove_volumes": True})
    if record.state not in LIVE:
        return removed(record, claim)
    kill: list[Happening] = [("kill", {"signal": str(SIGKILL)})] if record.pid else []
    return advance(
        record,
        claim.now,
        *kill,
        state=State.REMOVING,
        owner=claim.owner,
        deadline_ns=claim.now + REMOVE_LIMIT,
        resume_state=record.state,
        command_id=claim.command,
    )


def removed(record: ContainerRecord, claim: Claim) -> ContainerRecord:
    """The tombstone: what those who wait for the removal ask for, and the last events.

    The host still has the container's files: the tombstone stays until it has not.
    """
    if record.state is State.REMOVED:
        return record
    last = advance(record, claim.now, ("destroy", {}))
    with_volumes = record.remove_volumes or record.host_config.auto_remove
    return ContainerRecord(
        id=record.id,
        name=record.name,
        node=record.node,
        created_ns=record.created_ns,
        image=record.image,
        image_id=record.image_id,
        state=State.REMOVED,
        run=record.run,
        started_ns=record.started_ns,
        finished_ns=record.finished_ns,
        exit_code=record.exit_code,
        oom_killed=record.oom_killed,
        error=record.error,
        owner=claim.owner,
        deadline_ns=claim.now + TOMBSTONE_AGE,
        command_id=claim.command or record.command_id,
        event_serial=last.event_serial,
        outbox=last.outbox,
        name_revision=record.name_revision,
        drop_volumes=[m.name for m in record.mounts if m.anonymous] if with_volumes else [],
    )

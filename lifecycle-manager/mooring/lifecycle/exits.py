"""How runs end, and begin without a command: what a fact or a host's report makes of a record."""

from __future__ import annotations

from typing import NamedTuple

from mooring.kit.models.container import ContainerRecord, Health, NetworkState, State

from .events import Happening, mounted, unmounted
from .states import (
    AT_REST,
    SECOND,
    SIGKILL,
    STOP_SLACK,
    Claim,
    advance,
    connected,
    removed,
    run_fields,
)


class Exit(NamedTuple):
    """How a run ended, whether a fact says so or a host's report."""

    run: int
    exit_code: int | None
    started_ns: int
    finished_ns: int
    oom_killed: bool = False
    error: str = ""
    restarting: bool = False
    restart_count: int = 0


LOST_EXIT_CODE = 255
LOST = "exit status lost with the host"
UNKNOWN = "exit status unknown: the shim was killed, and this kernel can't tell"
"""Before Linux 6.15 only its parent learns how a process ended."""


def is_news(record: ContainerRecord, run: int, started_ns: int) -> bool:
    """Whether the end of this run is not in the record yet."""
    if record.state is State.REMOVED or run < record.run:
        return False
    if run > record.run or record.pid:
        return True
    if record.state in (State.STARTING, State.RUNNING, State.PAUSED):
        return True
    # A start that was given up here, and happened nevertheless.
    return started_ns > record.finished_ns and started_ns > record.started_ns


def exited(record: ContainerRecord, exit: Exit, claim: Claim) -> ContainerRecord:
    """A run has ended."""
    if not is_news(record, exit.run, exit.started_ns):
        return record
    now = claim.now
    exit_code = LOST_EXIT_CODE if exit.exit_code is None else exit.exit_code
    happenings: list[Happening] = []
    if not record.pid or exit.run > record.run:
        # It came and went before anybody could say that it had started.
        happenings += [*mounted(record.mounts), ("start", {})]
        if record.restart_wanted and record.state is State.STARTING:
            happenings.append(("restart", {}))
    if exit.oom_killed and not (record.oom_killed and exit.run == record.run):
        happenings.append(("oom", {}))
    if _was_killed_late(record, exit_code, exit.finished_ns):
        happenings.append(("kill", {"signal": str(SIGKILL)}))
    started_ns = exit.started_ns or record.started_ns
    duration = max(0, exit.finished_ns - started_ns) // SECOND if started_ns else 0
    happenings.append(("die", {"exitCode": str(exit_code), "execDuration": str(duration)}))
    happenings += connected(record.network, "disconnect")
    happenings += unmounted(record.mounts)
    if record.state is State.STOPPING and not exit.restarting:
        happenings.append(("stop", {}))
    ended = advance(
        record,
        now,
        *happenings,
        run=exit.run,
        pid=0,
        started_ns=started_ns,
        finished_ns=exit.finished_ns or now,
        exit_code=exit_code,
        oom_killed=exit.oom_killed or (record.oom_killed and exit.run == record.run),
        error=exit.error or (UNKNOWN if exit.exit_code is None else ""),
        network=NetworkState(),
        health=_unwatched(record.health),
        restart_count=max(record.restart_count, exit.restart_count),
        **_after_exit(record, exit),
    )
    if ended.state is State.EXITED and ended.host_config.auto_remove and not ended.restart_wanted:
        return removed(ended, claim)
    return ended


def _after_exit(record: ContainerRecord, exit: Exit) -> dict[str, object]:
    if record.state is State.REMOVING:
        return {}
    if record.state is State.STOPPING and exit.restarting:
        # The host had decided before the stop reached it; the stop will end that.
        return {}
    if exit.restarting:
        return {**AT_REST, "state": State.RESTARTING}
    if record.restart_wanted and record.state is State.STOPPING:
        # Still a transition: whoever finds it abandoned here starts it.
        return {"state": State.EXITED}
    return {**AT_REST, "state": State.EXITED, "restart_wanted": False}


def _unwatched(health: Health | None) -> Health | None:
    """What Docker shows of a container whose health nobody watches any more."""
    return health and health.model_copy(update={"status": "unhealthy"})


def _was_killed_late(record: ContainerRecord, exit_code: int, finished_ns: int) -> bool:
    """Whether a stop had to resort to SIGKILL once the container's time was over."""
    return (
        record.state is State.STOPPING
        and exit_code == 128 + SIGKILL
        and record.stop_signal != SIGKILL
        and record.deadline_ns > 0
        and finished_ns >= record.deadline_ns - STOP_SLACK
    )


def started_by_host(
    record: ContainerRecord,
    run: int,
    pid: int,
    started_ns: int,
    restart_count: int,
    network: NetworkState,
    now: int,
) -> ContainerRecord:
    """The host has started a run by itself, or one that was given up here."""
    if record.state is State.REMOVED or run < record.run:
        return record
    if run == record.run and (
        record.state is not State.STARTING and not is_news(record, run, started_ns)
    ):
        return record
    if run == record.run and record.pid:
        return record
    changes = run_fields(record, run, pid, started_ns, network)
    if record.state in (State.STOPPING, State.REMOVING):
        changes["state"] = record.state
    else:
        changes.update(AT_REST)
    happenings: list[Happening] = [
        *connected(network),
        *mounted(record.mounts),
        ("start", {}),
    ]
    return advance(
        record,
        now,
        *happenings,
        **changes,
        restart_count=max(record.restart_count, restart_count),
    )

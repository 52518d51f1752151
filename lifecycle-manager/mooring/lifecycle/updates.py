"""Pure: what `docker update` makes of a container's HostConfig, and what it refuses."""

from __future__ import annotations

from typing import Any

from mooring.kit.errors import Conflict, InvalidParameter, NotFound
from mooring.kit.models.container import ContainerRecord, HostConfig, State
from mooring.kit.options import check_policy
from mooring.kit.resources import check_resources

from .states import Claim, advance

_VALUES = (
    "blkio_weight",
    "cpu_period",
    "cpu_quota",
    "cpu_shares",
    "cpuset_cpus",
    "cpuset_mems",
    "memory",
    "memory_reservation",
    "memory_swap",
    "nano_cpus",
    "pids_limit",
)


def merged(old: HostConfig, asked: HostConfig) -> HostConfig:
    """The host config with what was asked for; Conflict, InvalidParameter in Docker's words."""
    _check_cpus(old, asked)
    changes: dict[str, Any] = {
        name: value for name in _VALUES if (value := getattr(asked, name)) not in (None, 0, "")
    }
    if asked.pids_limit == 0:
        changes["pids_limit"] = 0
    if asked.memory:
        changes |= _swap(old, asked)
    if asked.restart_policy.name:
        if old.auto_remove:
            raise InvalidParameter(
                "Restart policy cannot be updated because AutoRemove is enabled for the container"
            )
        changes["restart_policy"] = asked.restart_policy
    new = old.model_copy(update=changes)
    check_policy(new)
    return new


def updated(
    record: ContainerRecord, claim: Claim, asked: HostConfig, cpus: int
) -> tuple[ContainerRecord, list[str]]:
    """The record with its new limits, and warnings. The record itself if this command did it."""
    check_updatable(record)
    if record.command_id == claim.command:
        return record, []
    new = merged(record.host_config, asked)
    warnings = check_resources(new, cpus)
    happening: tuple[str, dict[str, str]] = ("update", {})
    changed = advance(record, claim.now, happening, host_config=new, command_id=claim.command)
    return changed, warnings


def check_updatable(record: ContainerRecord) -> None:
    """NotFound, Conflict."""
    if record.state is State.REMOVED:
        raise NotFound(f"No such container: {record.name}")
    if record.state in (State.REMOVING, State.DEAD):
        raise Conflict(
            f"Cannot update container {record.id}: container is marked for removal and cannot be"
            ' "update"'
        )


def _check_cpus(old: HostConfig, asked: HostConfig) -> None:
    for option, value in (("Period", asked.cpu_period), ("Quota", asked.cpu_quota)):
        if value and old.nano_cpus:
            raise Conflict(
                f"Conflicting options: CPU {option} cannot be updated as NanoCPUs has already"
                " been set"
            )
    for option, value in (("Period", old.cpu_period), ("Quota", old.cpu_quota)):
        if value and asked.nano_cpus:
            raise Conflict(
                f"Conflicting options: NanoCPUs cannot be updated as CPU {option} has already"
                " been set"
            )


def _swap(old: HostConfig, asked: HostConfig) -> dict[str, int]:
    """Memory alone leaves memory and swap together where they are, which has to hold it."""
    if asked.memory_swap:
        return {}
    # As Docker: as much swap as memory, unless something was said.
    limit = old.memory_swap or 2 * old.memory
    if 0 < limit < asked.memory:
        raise Conflict(
            "Memory limit should be smaller than already set memoryswap limit, update the"
            " memoryswap at the same time"
        )
    return {"memory_swap": limit} if limit else {}

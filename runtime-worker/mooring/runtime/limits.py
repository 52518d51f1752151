"""Pure: limits of a container as OCI resources and rlimits, against what the host can give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mooring.kit.errors import InvalidParameter
from mooring.kit.models.container import BlkioDevice, HostConfig
from mooring.kit.resources import check_resources

INFINITY: Final = (1 << 64) - 1
"""RLIM_INFINITY as OCI writes it."""
CPU_PERIOD: Final = 100_000
"""Microseconds: the period that --cpus is a quota of."""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a host has to give. rlimits: name of the ulimit to the hard limit of this process."""

    cgroup_version: int
    capabilities: tuple[str, ...]
    cpus: int
    rlimits: Mapping[str, int] = field(default_factory=dict)
    """-1 is no limit."""
    blkio_weight: bool = True
    swap_limit: bool = True


def resources(
    host: HostConfig, facts: HostFacts, number: Callable[[str], tuple[int, int]]
) -> tuple[dict[str, Any], list[str]]:
    """`linux.resources` without devices, and warnings. number: (major, minor) of a device path."""
    # Checked at the create without knowing the host: now its number of CPUs is known.
    check_resources(host, facts.cpus)
    warnings: list[str] = []
    result: dict[str, Any] = {}
    if memory := _memory(host, facts, warnings):
        result["memory"] = memory
    if cpu := _cpu(host):
        result["cpu"] = cpu
    if host.pids_limit and host.pids_limit > 0:
        result["pids"] = {"limit": host.pids_limit}
    if block := _block_io(host, facts, number, warnings):
        result["blockIO"] = block
    return result, warnings


def _memory(host: HostConfig, facts: HostFacts, warnings: list[str]) -> dict[str, Any]:
    memory: dict[str, Any] = {}
    if host.memory:
        memory["limit"] = host.memory
        if facts.swap_limit:
            # As Docker: as much swap as memory, unless something is said.
            memory["swap"] = host.memory_swap or 2 * host.memory
        elif host.memory_swap > 0:
            warnings.append(
                "Your kernel does not support swap limit capabilities or the cgroup is not mounted."
                " Memory limited without swap."
            )
    if host.memory_reservation:
        memory["reservation"] = host.memory_reservation
    if host.memory_swappiness is not None and host.memory_swappiness >= 0:
        if facts.cgroup_version == 2:
            warnings.append(
                "Your kernel does not support memory swappiness capabilities or the cgroup is not"
                " mounted. Memory swappiness discarded."
            )
        else:
            memory["swappiness"] = host.memory_swappiness
    if host.oom_kill_disable:
        if facts.cgroup_version == 2:
            warnings.append("OomKillDisable is discarded: cgroup v2 has no such setting")
        else:
            memory["disableOOMKiller"] = True
    return memory


def _cpu(host: HostConfig) -> dict[str, Any]:
    cpu: dict[str, Any] = {}
    if host.cpu_shares:
        cpu["shares"] = host.cpu_shares
    if host.nano_cpus:
        cpu["period"] = CPU_PERIOD
        cpu["quota"] = host.nano_cpus * CPU_PERIOD // 1_000_000_000
    if host.cpu_period:
        cpu["period"] = host.cpu_period
    if host.cpu_quota:
        cpu["quota"] = host.cpu_quota
    if host.cpuset_cpus:
        cpu["cpus"] = host.cpuset_cpus
    if host.cpuset_mems:
        cpu["mems"] = host.cpuset_mems
    return cpu


def _block_io(
    host: HostConfig,
    facts: HostFacts,
    number: Callable[[str], tuple[int, int]],
    warnings: list[str],
) -> dict[str, Any]:
    def throttle(devices: list[BlkioDevice] | None) -> list[dict[str, int]]:
        found = []
        for device in devices or []:
            major, minor = number(device.path)
            found.append({"major": major, "minor": minor, "rate": device.rate})
        return found

    block: dict[str, Any] = {}
    if host.blkio_weight or host.blkio_weight_device:
        if facts.blkio_weight:
            if host.blkio_weight:
                block["weight"] = host.blkio_weight
            weights = []
            for device in host.blkio_weight_device or []:
                major, minor = number(device.path)
                weights.append({"major": major, "minor": minor, "weight": device.weight})
            if weights:
                block["weightDevice"] = weights
        else:
            warnings.append(
                "Your kernel does not support Block I/O weight or the cgroup is not mounted."
                " Weight discarded."
            )
    for key, devices in (
        ("throttleReadBpsDevice", host.blkio_device_read_bps),
        ("throttleWriteBpsDevice", host.blkio_device_write_bps),
        ("throttleReadIOPSDevice", host.blkio_device_read_iops),
        ("throttleWriteIOPSDevice", host.blkio_device_write_iops),
    ):
        if values := throttle(devices):
            block[key] = values
    return block


def rlimits(host: HostConfig, facts: HostFacts) -> list[dict[str, Any]]:
    """`process.rlimits`; InvalidParameter for more than this host's engine may grant."""
    result = []
    may_raise = "CAP_SYS_RESOURCE" in facts.capabilities
    for limit in host.ulimits or []:
        most = facts.rlimits.get(limit.name, -1)
        if not may_raise and most != -1 and (limit.hard == -1 or limit.hard > most):
            raise InvalidParameter(
                f"ulimit {limit.name}={limit.hard} is more than the engine may grant on this host:"
                f" its own hard limit is {most} and it has no CAP_SYS_RESOURCE"
            )
        result.append(
            {
                "type": f"RLIMIT_{limit.name.upper()}",
                "hard": INFINITY if limit.hard == -1 else limit.hard,
                "soft": INFINITY if limit.soft == -1 else limit.soft,
            }
        )
    return result

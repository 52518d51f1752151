"""Pure: limits on memory, CPU, processes and devices, checked before a host is asked."""

from __future__ import annotations

import re

from .errors import InvalidParameter
from .models.container import BlkioDevice, DeviceMapping, HostConfig

MINIMUM_MEMORY = 6 << 20
"""Bytes; a container with less cannot run its own set-up."""

_ULIMITS = frozenset(
    [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ]
)
_DEVICE_RULE = re.compile(r"([abc]) ((?:\d+|\*)):((?:\d+|\*)) ([rwm]{1,3})\Z")


def check_resources(host: HostConfig, cpus: int) -> list[str]:
    """Warnings for limits that will be adjusted; InvalidParameter for impossible ones."""
    warnings = _check_memory(host)
    _check_cpus(host, cpus)
    _check_processes(host)
    _check_devices(host)
    return warnings


def cpu_set(text: str) -> list[int]:
    """`0-2,7` as numbers; ValueError for anything else."""
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.match(r"(\d{1,5})(?:-(\d{1,5}))?\Z", part.strip())
        if match is None:
            raise ValueError(text)
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(text)
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def device_rule(text: str) -> dict[str, object]:
    """`c 1:3 rwm` as an OCI device rule that allows it."""
    match = _DEVICE_RULE.match(text)
    if match is None:
        raise InvalidParameter(f"invalid device cgroup rule format: '{text}'")
    rule: dict[str, object] = {"allow": True, "type": match[1], "access": match[4]}
    if match[2] != "*":
        rule["major"] = int(match[2])
    if match[3] != "*":
        rule["minor"] = int(match[3])
    return rule


def _check_memory(host: HostConfig) -> list[str]:
    warnings = []
    for option, value in (
        ("Memory", host.memory),
        ("MemoryReservation", host.memory_reservation),
    ):
        if value < 0:
            raise InvalidParameter(f"invalid {option}: {value}, it cannot be negative")
    if host.shm_size < 0:
        raise InvalidParameter("SHM size can not be less than 0")
    if 0 < host.memory < MINIMUM_MEMORY:
        raise InvalidParameter("Minimum memory limit allowed is 6MB")
    if host.memory_swap < -1:
        raise InvalidParameter(f"invalid MemorySwap: {host.memory_swap}")
    if host.memory == 0 and host.memory_swap > 0:
        raise InvalidParameter(
            "You should always set the Memory limit when using Memoryswap limit, see usage"
        )
    if 0 < host.memory_swap < host.memory:
        raise InvalidParameter(
            "Minimum memoryswap limit should be larger than memory limit, see usage"
        )
    swappiness = host.memory_swappiness
    if swappiness is not None and not -1 <= swappiness <= 100:
        raise InvalidParameter(
            f"Invalid value: {swappiness}, valid memory swappiness range is 0-100"
        )
    if 0 < host.memory_reservation < MINIMUM_MEMORY:
        raise InvalidParameter("Minimum memory reservation allowed is 6MB")
    if 0 < host.memory < host.memory_reservation:
        raise InvalidParameter(
            "Minimum memory limit can not be less than memory reservation limit, see usage"
        )
    if host.oom_kill_disable and host.memory == 0:
        warnings.append(
            "OOM killer is disabled for the container, but no memory limit is set, this can result"
            " in the system running out of resources."
        )
    return warnings


def _check_cpus(host: HostConfig, cpus: int) -> None:
    if host.nano_cpus:
        for option, value in (("Period", host.cpu_period), ("Quota", host.cpu_quota)):
            if value:
                raise InvalidParameter(
                    f"Conflicting options: Nano CPUs and CPU {option} cannot both be set"
                )
        if host.nano_cpus < 10_000_000 or (cpus and host.nano_cpus > cpus * 1_000_000_000):
            most = (
                f"{cpus}.00, as there are only {cpus} CPUs available"
                if cpus
                else "those of the host"
            )
            raise InvalidParameter(f"Range of CPUs is from 0.01 to {most}")
    if host.cpu_shares < 0:
        raise InvalidParameter(f"invalid CpuShares: {host.cpu_shares}, it cannot be negative")
    if host.cpu_period and not 1000 <= host.cpu_period <= 1_000_000:
        raise InvalidParameter(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"
        )
    if 0 < host.cpu_quota < 1000:
        raise InvalidParameter("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    for option, text in (("cpus", host.cpuset_cpus), ("mems", host.cpuset_mems)):
        if not text:
            continue
        try:
            numbers = cpu_set(text)
        except ValueError as exc:
            raise InvalidParameter(f"Invalid value {text} for cpuset {option}") from exc
        if option == "cpus" and cpus and numbers[-1] >= cpus:
            raise InvalidParameter(
                f"Requested CPUs are not available - requested {text}, available: 0-{cpus - 1}"
            )


def _check_processes(host: HostConfig) -> None:
    if host.pids_limit is not None and host.pids_limit < -1:
        raise InvalidParameter(f"invalid PidsLimit: {host.pids_limit}")
    if not -1000 <= host.oom_score_adj <= 1000:
        raise InvalidParameter(
            f"Invalid value {host.oom_score_adj}, range for oom score adj is [-1000, 1000]"
        )
    for limit in host.ulimits or []:
        if limit.name not in _ULIMITS:
            raise InvalidParameter(f"invalid ulimit type: {limit.name}")
        if limit.hard != -1 and (limit.soft > limit.hard or limit.soft == -1):
            raise InvalidParameter(
                f"ulimit soft limit must be less than or equal to hard limit: "
                f"{limit.soft} > {limit.hard}"
            )
    if host.blkio_weight and not 10 <= host.blkio_weight <= 1000:
        raise InvalidParameter("Range of blkio weight is from 10 to 1000")
    throttles: tuple[list[BlkioDevice] | None, ...] = (
        host.blkio_weight_device,
        host.blkio_device_read_bps,
        host.blkio_device_write_bps,
        host.blkio_device_read_iops,
        host.blkio_device_write_iops,
    )
    for devices in throttles:
        for device in devices or []:
            if not device.path.startswith("/dev/"):
                raise InvalidParameter(f"bad format for device path: {device.path}")
            if device.rate < 0 or device.weight < 0:
                raise InvalidParameter(f"invalid rate for device: {device.path}")


def device_permissions(device: DeviceMapping) -> str:
    """`rwm` or less; an empty text is Docker's default, all of them."""
    permissions = device.cgroup_permissions or "rwm"
    if not set(permissions) <= set("rwm") or len(set(permissions)) != len(permissions):
        raise InvalidParameter(f'invalid device mode: "{permissions}"')
    return permissions


def _check_devices(host: HostConfig) -> None:
    for device in host.devices or []:
        if not device.path_on_host.startswith("/"):
            raise InvalidParameter(
                f"bad device path: '{device.path_on_host}', it needs to be absolute"
            )
        device_permissions(device)
    for rule in host.device_cgroup_rules or []:
        device_rule(rule)

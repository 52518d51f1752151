"""One reading of what a container uses, nested as Docker's stats are."""

from __future__ import annotations

import os
import time
from typing import Any

from mooring.kit.models.host import HostContainer, StatsSample

from .runs import Containers
from .shims import Shims, container_of

_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_NETWORK_FIELDS = {
    "rx_bytes": 0,
    "rx_packets": 1,
    "rx_errors": 2,
    "rx_dropped": 3,
    "tx_bytes": 8,
    "tx_packets": 9,
    "tx_errors": 10,
    "tx_dropped": 11,
}
"""Columns of /proc/<pid>/net/dev."""


class Stats:
    """The handler behind `docker stats`."""

    def __init__(self, containers: Containers, shims: Shims) -> None:
        self._containers = containers
        self._shims = shims

    async def sample(self, request: HostContainer) -> StatsSample:
        """A reading; of a container that does not run, an empty one."""
        container = container_of(self._containers, self._shims, request.id)
        run = container.live if container is not None else None
        if run is None or run.record is None:
            return StatsSample(time_ns=time.time_ns())
        raw = (await (await run.reach()).request("stats"))["stats"]
        networks = parse_network(_read(f"/proc/{run.record.init.pid}/net/dev"))
        return StatsSample(
            running=True,
            time_ns=time.time_ns(),
            stats=nest(raw, networks, _read("/proc/stat"), _memory_total()),
        )


def nest(
    raw: dict[str, Any], networks: dict[str, dict[str, int]], host: str, memory_total: int
) -> dict[str, Any]:
    """The cgroup's numbers as Docker has them; `host`: /proc/stat, `memory_total`: bytes."""
    cpu, memory = raw.get("cpu") or {}, raw.get("memory") or {}
    limit = memory.get("limit") or 0
    result = {
        "pids_stats": raw.get("pids") or {},
        "blkio_stats": raw.get("blkio") or {},
        "cpu_stats": _cpu(cpu, host),
        "memory_stats": {
            "usage": memory.get("usage", 0),
            "max_usage": memory.get("max_usage", 0),
            "failcnt": memory.get("failcnt", 0),
            "stats": memory.get("stats") or {},
            # Without a limit of its own a container may have what there is.
            "limit": limit if 0 < limit < memory_total else memory_total,
        },
    }
    if networks:
        result["networks"] = networks
    return result


def parse_network(text: str) -> dict[str, dict[str, int]]:
    """The counters of every interface but the loopback, from /proc/<pid>/net/dev."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        columns = rest.split()
        if name.strip() != "lo" and len(columns) >= 12:
            found[name.strip()] = {
                field: int(columns[index]) for field, index in _NETWORK_FIELDS.items()
            }
    return found


def _cpu(cpu: dict[str, Any], host: str) -> dict[str, Any]:
    lines = host.splitlines()
    # user nice system idle iowait irq softirq; guests are in user already.
    ticks = sum(map(int, lines[0].split()[1:8])) if lines else 0
    usage: dict[str, Any] = {
        "total_usage": cpu.get("usage", 0),
        "usage_in_kernelmode": cpu.get("system", 0),
        "usage_in_usermode": cpu.get("user", 0),
    }
    if cpu.get("percpu"):
        usage["percpu_usage"] = cpu["percpu"]
    return {
        "cpu_usage": usage,
        "system_cpu_usage": ticks * _NS_PER_TICK,
        "online_cpus": sum(1 for line in lines if line[:3] == "cpu" and line[3:4].isdigit()),
        "throttling_data": {
            "periods": cpu.get("periods", 0),
            "throttled_periods": cpu.get("throttled_periods", 0),
            "throttled_time": cpu.get("throttled_time", 0),
        },
    }


def _memory_total() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""

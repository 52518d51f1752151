"""A reading of a container's cgroup as Docker's stats object."""

from __future__ import annotations

from typing import Any

from mooring.kit.models.container import ContainerRecord
from mooring.kit.models.host import StatsSample

from .texts import ZERO_TIME, rfc3339

_CPU: dict[str, Any] = {
    "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
    "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
}
_BLKIO: dict[str, Any] = dict.fromkeys(
    (
        "io_service_bytes_recursive",
        "io_serviced_recursive",
        "io_queue_recursive",
        "io_service_time_recursive",
        "io_wait_time_recursive",
        "io_merged_recursive",
        "io_time_recursive",
        "sectors_recursive",
    )
)


def stats(record: ContainerRecord, now: StatsSample, before: StatsSample) -> dict[str, Any]:
    """The object for a reading and the one before it; zeros for a container that does not run."""
    found: dict[str, Any] = {
        "id": record.id,
        "name": f"/{record.name}",
        "read": rfc3339(now.time_ns) if now.time_ns else ZERO_TIME,
        "preread": rfc3339(before.time_ns) if before.time_ns else ZERO_TIME,
        "num_procs": 0,
        "pids_stats": now.stats.get("pids_stats") or {},
        "blkio_stats": {**_BLKIO, **(now.stats.get("blkio_stats") or {})},
        "storage_stats": {},
        "cpu_stats": {**_CPU, **(now.stats.get("cpu_stats") or {})},
        "precpu_stats": {**_CPU, **(before.stats.get("cpu_stats") or {})},
        "memory_stats": now.stats.get("memory_stats") or {},
    }
    networks = now.stats.get("networks")
    if networks:
        found["networks"] = networks
    return found

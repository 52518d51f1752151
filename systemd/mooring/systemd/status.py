"""What systemd says of the engine's units."""

from __future__ import annotations

import time
from typing import Any

from mooring.kit.config import Settings

from .manager import Manager
from .settings import ACTIVATORS, CONTAINERS, ON_DEMAND, SERVICES, SHIMS, TARGET, service, sockets


def installed() -> bool:
    """Whether this host has the engine's units loaded; ManagerError."""
    with Manager() as manager:
        return bool(manager.describe(TARGET))


def describe(settings: Settings) -> dict[str, Any]:
    """Every unit: state, restarts, pid, watchdog, memory in bytes, CPU in nanoseconds."""
    with Manager() as manager:
        target = manager.describe(TARGET)
        units = [
            *sockets(settings),
            *ACTIVATORS,
            *map(service, (*SERVICES, *ON_DEMAND)),
            CONTAINERS,
            SHIMS,
        ]
        found = {unit: manager.describe(unit) for unit in units}
    now = time.clock_gettime(time.CLOCK_MONOTONIC)
    return {
        "version": 1,
        "manager": "systemd",
        "instance": settings.instance,
        "node_id": settings.node_id,
        "state_dir": str(settings.state_dir),
        "run_dir": str(settings.run_dir),
        "hosts": settings.host,
        "state": target.get("ActiveState", "inactive"),
        "units": [_unit(unit, values, now) for unit, values in found.items()],
    }


def _unit(name: str, values: dict[str, Any], now: float) -> dict[str, Any]:
    active = values.get("ActiveState") == "active"
    since = (values.get("ActiveEnterTimestampMonotonic") or 0) / 1e6
    fed = (values.get("WatchdogTimestampMonotonic") or 0) / 1e6
    return {
        "name": name,
        "state": values.get("ActiveState", "missing"),
        "detail": values.get("SubState", ""),
        "pid": values.get("MainPID") or 0,
        "uptime": round(now - since, 3) if active and since else 0.0,
        "restarts": values.get("NRestarts") or 0,
        "watchdog": (values.get("WatchdogUSec") or 0) / 1e6,
        "watchdog_fed": round(now - fed, 3) if fed else None,
        "memory": values.get("MemoryCurrent"),
        "cpu_ns": values.get("CPUUsageNSec"),
        "stored": values.get("NFileDescriptorStore") or 0,
        "status": values.get("StatusText") or "",
    }

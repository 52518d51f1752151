"""`mooring status` on a systemd host: what systemd says of the units."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Column, Table

from mooring.kit.config import Settings

from .words import duration, size


def installed(settings: Settings) -> dict[str, Any] | None:
    """The units' state, if this host's engine is installed as units with these directories."""
    try:
        from mooring.systemd.manager import ManagerError
        from mooring.systemd.settings import is_systemd
        from mooring.systemd.status import describe, installed
    except ImportError:
        return None
    try:
        return describe(settings) if is_systemd() and installed() else None
    except ManagerError:
        return None


def show(found: dict[str, Any], console: Console) -> None:
    """Print it as a table."""
    console.print(f"engine [bold]{found['instance']}[/]: {found['state']}, run by systemd")
    for address in found["hosts"]:
        console.print(f"API {address}", highlight=False, soft_wrap=True)
    # Names are what one passes on to systemctl: never cut.
    name = Column("UNIT", no_wrap=True, min_width=max(len(u["name"]) for u in found["units"]))
    table = Table(name, "STATE", "PID", "UPTIME", "RESTARTS", "WATCHDOG", "MEMORY", "CPU", box=None)
    for unit in found["units"]:
        colour = "green" if unit["state"] == "active" else "yellow"
        watchdog = "–"
        if unit["watchdog"] and unit["watchdog_fed"] is not None:
            watchdog = f"{unit['watchdog_fed']:.0f} of {unit['watchdog']:.0f} s"
        table.add_row(
            unit["name"],
            f"[{colour}]{unit['state']}[/] ({unit['detail']})",
            str(unit["pid"] or "–"),
            duration(unit["uptime"]) if unit["uptime"] else "–",
            str(unit["restarts"]),
            watchdog,
            "–" if unit["memory"] is None else size(unit["memory"]),
            "–" if unit["cpu_ns"] is None else f"{unit['cpu_ns'] / 1e9:.2f} s",
        )
    console.print(table)

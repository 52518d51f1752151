"""systemd over D-Bus: the few calls that an installation needs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

_POLL = 0.02
_RELOADS = 5
"""Enough for a chain of units that refer to each other: target, gateway, its sockets, NATS."""
_READ = {
    "ActiveState": str,
    "SubState": str,
    "Result": str,
    "NRestarts": int,
    "MainPID": int,
    "WatchdogUSec": int,
    "WatchdogTimestampMonotonic": int,
    "ActiveEnterTimestampMonotonic": int,
    "MemoryCurrent": int,
    "CPUUsageNSec": int,
    "StatusText": str,
    "NFileDescriptorStore": int,
}
_UNSET = (1 << 64) - 1


class ManagerError(Exception):
    """systemd refused, or a unit did not come to what was asked; the message says which."""


class Manager:
    """The system manager; a context."""

    def __init__(self) -> None:
        try:
            from pystemd.systemd1 import Manager as Proxy
        except ImportError as exc:
            raise ManagerError(
                "pystemd is not installed: apt-get install libsystemd-dev pkg-config gcc "
                "python3-dev, then pip install 'mooring[systemd]'"
            ) from exc
        self._proxy: Any = Proxy()

    def __enter__(self) -> Self:
        self._proxy.load()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del kind, error, trace

    def reload(self) -> None:
        """Read the units again."""
        self._proxy.Manager.Reload()

    def enable(self, units: Iterable[str]) -> None:
        """Have them started at boot."""
        self._proxy.Manager.EnableUnitFiles([name.encode() for name in units], False, True)

    def disable(self, units: Iterable[str]) -> None:
        """Have them no longer started at boot."""
        self._proxy.Manager.DisableUnitFiles([name.encode() for name in units], False)

    def start(self, unit: str, timeout: float = 60.0) -> None:
        """Start it, and wait until it is active."""
        self._proxy.Manager.StartUnit(unit.encode(), b"replace")
        self._until(unit, {"active"}, timeout)

    def restart(self, unit: str, timeout: float = 60.0) -> None:
        """Restart it, and wait until its new process is ready."""
        before = self.describe(unit).get("ActiveEnterTimestampMonotonic")
        self._proxy.Manager.RestartUnit(unit.encode(), b"replace")
        self._until(unit, {"active"}, timeout, unlike=before)

    def stop(self, unit: str, timeout: float = 60.0) -> None:
        """Stop it, and wait until it has stopped; one that there is not has stopped."""
        if self.describe(unit):
            self._proxy.Manager.StopUnit(unit.encode(), b"replace")
            self._until(unit, {"inactive", "failed"}, timeout)

    def forget(self, prefix: str) -> None:
        """Have it let go of units whose name begins so and whose files are gone.

        It keeps one that failed, and one that another had referred to until the last reload.
        """
        for _ in range(_RELOADS):
            gone = [
                (name, active)
                for name, _, load, active, *_ in self._proxy.Manager.ListUnits()
                if name.startswith(prefix.encode()) and load == b"not-found"
            ]
            if not gone:
                return
            for name, active in gone:
                if active == b"failed":
                    self._proxy.Manager.ResetFailedUnit(name)
            self.reload()

    def describe(self, unit: str) -> dict[str, Any]:
        """The properties of a loaded unit as plain values; {} if there is no such unit."""
        from pystemd.systemd1 import Unit

        proxy = Unit(unit.encode())
        proxy.load()
        if _plain(proxy.Unit.LoadState) == "not-found":
            return {}
        found: dict[str, Any] = {}
        for name in _READ:
            for interface in ("Unit", "Service", "Socket"):
                properties = getattr(proxy, interface, None)
                if properties is not None and name in properties.properties:
                    value = _plain(getattr(properties, name))
                    found[name] = None if value == _UNSET else value
                    break
        return found

    def _until(
        self, unit: str, states: set[str], timeout: float, *, unlike: int | None = None
    ) -> None:
        deadline = time.monotonic() + timeout
        while True:
            found = self.describe(unit)
            state = found.get("ActiveState", "inactive")
            if state in states and found.get("ActiveEnterTimestampMonotonic") != unlike:
                return
            if time.monotonic() > deadline:
                raise ManagerError(f"{unit} is {state} ({found.get('Result')}) after {timeout} s")
            time.sleep(_POLL)


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value

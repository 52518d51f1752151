"""cgroups version 2: one directory for the container, devices limited by a BPF program."""

from __future__ import annotations

import os
import time

from .cgroup import Cgroup, number, read, table, write
from .cgroup1 import _star, rdma_limit
from .errors import OciError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

ROOT = "/sys/fs/cgroup"
_delegating: set[str] = set()
"""The directories of which this process has made sure that those below have all controllers."""


class CgroupV2(Cgroup):
    """A cgroup of the unified hierarchy, mounted at `root`."""

    __slots__ = ("_root",)

    def __init__(self, path: str, root: str = "") -> None:
        super().__init__(path)
        self._root = root or ROOT

    def directories(self) -> list[str]:
        return [self._root + self.path]

    def _file(self, name: str) -> str:
        return f"{self._root}{self.path}/{name}"

    def _set(self, name: str, value: object) -> None:
        try:
            try:
                write(self._file(name), str(value))
            except FileNotFoundError:
                if not self.exists():
                    raise
                # The parent was made anew by somebody else, or has lost a controller.
                self._create_parents()
                write(self._file(name), str(value))
        except OSError as error:
            raise self._refused(name, error) from error

    def create(self) -> None:
        directory = self._root + self.path
        if os.path.dirname(directory) not in _delegating:
            # It may be there, made by systemd for us to divide.
            self._create_parents()
        for _ in range(100):
            try:
                os.mkdir(directory, 0o755)
                break
            except FileExistsError:
                break
            except FileNotFoundError:
                self._create_parents()
        else:
            raise OciError(f"cannot create cgroup {self.path}: its parent keeps vanishing")

    def _create_parents(self) -> None:
        at = self._root
        for name in self.path.split("/")[1:-1]:
            enable_controllers(at)
            at = f"{at}/{name}"
            try:
                os.mkdir(at, 0o755)
            except FileExistsError:
                pass
        enable_controllers(at)
        _delegating.add(at)

    def enter(self) -> None:
        write(self._file("cgroup.procs"), "0")

    def rename(self, path: str) -> None:
        raise OciError(f"cgroup {self.path} cannot be renamed: version 2 has no such operation")

    def apply(self, resources: dict[str, Any]) -> None:
        network = resources.get("network") or {}
        if network.get("classID") or network.get("priorities"):
            raise OciError("network classes and priorities need cgroup v1; this host has v2")
        if (resources.get("memory") or {}).get("disableOOMKiller"):
            raise OciError("memory.disableOOMKiller needs cgroup v1; this host has v2")
        for name, value in _settings(resources):
            self._set(name, value)
        if devices := resources.get("devices"):
            from .devicefilter import limit_devices

            limit_devices(self._root + self.path, devices)

    def freeze(self) -> None:
        self._freeze("1")

    def thaw(self) -> None:
        self._freeze("0")

    def _freeze(self, value: str) -> None:
        write(self._file("cgroup.freeze"), value)
        deadline = time.monotonic() + 10
        while str(table(self._file("cgroup.events")).get("frozen")) != value:
            if time.monotonic() > deadline:
                write(self._file("cgroup.freeze"), "0")
                raise OciError(f"cannot freeze cgroup {self.path}")
            time.sleep(0.001)

    def frozen(self) -> bool:
        return read(self._file("cgroup.freeze")) == "1"

    def kill(self) -> None:
        try:
            write(self._file("cgroup.kill"), "1")
        except FileNotFoundError:
            # Before Linux 5.14.
            super().kill()

    def oom_kills(self) -> int:
        return table(self._file("memory.events")).get("oom_kill", 0)

    OOM_EVENT = 0x2

    def watch_oom(self) -> int:
        if read(self._file("memory.max")) == "max":
            return -1
        events = os.open(self._file("memory.events"), os.O_RDONLY | os.O_CLOEXEC)
        # What was not read yet counts as an event.
        os.read(events, 4096)
        return events

    def take_oom(self, descriptor: int) -> int:
        os.pread(descriptor, 4096, 0)
        return 0  # Its counter is exact.

    def stats(self) -> dict[str, Any]:
        cpu = table(self._file("cpu.stat"))
        memory = table(self._file("memory.stat"))
        return {
            "version": 2,
            "cpu": {
                "usage": cpu.get("usage_usec", 0) * 1000,
                "user": cpu.get("user_usec", 0) * 1000,
                "system": cpu.get("system_usec", 0) * 1000,
                "periods": cpu.get("nr_periods", 0),
                "throttled_periods": cpu.get("nr_throttled", 0),
                "throttled_time": cpu.get("throttled_usec", 0) * 1000,
            },
            "memory": {
                "usage": number(self._file("memory.current")),
                "max_usage": number(self._file("memory.peak")),
                "limit": number(self._file("memory.max")),
                "failcnt": table(self._file("memory.events")).get("max", 0),
                "oom_kills": self.oom_kills(),
                "stats": memory,
            },
            "pids": {
                "current": number(self._file("pids.current")),
                "limit": max(number(self._file("pids.max")), 0),
            },
            "blkio": self._io(),
        }

    def _io(self) -> dict[str, Any]:
        sizes: list[dict[str, Any]] = []
        counts: list[dict[str, Any]] = []
        for line in read(self._file("io.stat")).splitlines():
            device, *pairs = line.split()
            major, minor = map(int, device.split(":"))
            for key, _, value in (pair.partition("=") for pair in pairs):
                if key in _IO:
                    to = sizes if key.endswith("bytes") else counts
                    entry = {"major": major, "minor": minor, "op": _IO[key], "value": int(value)}
                    to.append(entry)
        return {"io_service_bytes_recursive": sizes, "io_serviced_recursive": counts}


_IO = {
    "rbytes": "read",
    "wbytes": "write",
    "dbytes": "discard",
    "rios": "read",
    "wios": "write",
    "dios": "discard",
}


def enable_controllers(directory: str) -> None:
    """Let the children of a cgroup have every controller that it has itself."""
    wanted = set(read(f"{directory}/cgroup.controllers").split())
    missing = wanted - set(read(f"{directory}/cgroup.subtree_control").split())
    for controller in sorted(missing):
        try:
            write(f"{directory}/cgroup.subtree_control", f"+{controller}")
        except OSError:
            # Not available to children here (threaded, or held by a realtime process): setting
            # a limit of this controller will say so.
            pass


def weight(shares: int) -> int:
    """v1's cpu shares (2..262144) on v2's scale of weights (1..10000)."""
    return 1 + (max(2, min(shares, 262144)) - 2) * 9999 // 262142


def io_weight(weight: int) -> int:
    """v1's block I/O weight (10..1000) on v2's scale (1..10000), as runc converts it."""
    return 1 + (max(10, min(weight, 1000)) - 10) * 9999 // 990


def _settings(resources: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """File and value for every limit except devices."""
    yield from _memory(resources.get("memory") or {})
    yield from _cpu(resources.get("cpu") or {})
    limit = (resources.get("pids") or {}).get("limit")
    if limit is not None:
        yield "pids.max", limit if limit > 0 else "max"
    yield from _block(resources.get("blockIO") or {})
    for entry in resources.get("hugepageLimits") or ():
        yield f"hugetlb.{entry['pageSize']}.max", entry["limit"]
    for device, entry in (resources.get("rdma") or {}).items():
        yield "rdma.max", rdma_limit(device, entry)
    yield from (resources.get("unified") or {}).items()


def _memory(memory: dict[str, Any]) -> Iterator[tuple[str, object]]:
    limit, swap = memory.get("limit"), memory.get("swap")
    if swap:
        # OCI counts memory and swap together, v2 swap alone.
        if swap > 0 and (not limit or limit < 0):
            raise OciError("a memory+swap limit needs a memory limit")
        yield "memory.swap.max", "max" if swap < 0 else max(swap - limit, 0)
    if limit:
        yield "memory.max", "max" if limit < 0 else limit
    if reservation := memory.get("reservation"):
        yield "memory.low", "max" if reservation < 0 else reservation


def _cpu(cpu: dict[str, Any]) -> Iterator[tuple[str, object]]:
    if cpu.get("shares"):
        yield "cpu.weight", weight(cpu["shares"])
    if cpu.get("idle"):
        yield "cpu.idle", cpu["idle"]
    quota, period = cpu.get("quota"), cpu.get("period")
    if quota or period:
        yield "cpu.max", f"{quota if quota and quota > 0 else 'max'} {period or 100000}"
    if cpu.get("burst"):
        yield "cpu.max.burst", cpu["burst"]
    if cpu.get("realtimeRuntime") or cpu.get("realtimePeriod"):
        raise OciError("realtime cpu limits need cgroup v1; this host has v2")
    if cpu.get("cpus"):
        yield "cpuset.cpus", cpu["cpus"]
    if cpu.get("mems"):
        yield "cpuset.mems", cpu["mems"]


def _block(block: dict[str, Any]) -> Iterator[tuple[str, object]]:
    if block.get("weight"):
        yield "io.weight", f"default {io_weight(block['weight'])}"
    for entry in block.get("weightDevice") or ():
        if entry.get("weight"):
            yield "io.weight", f"{entry['major']}:{entry['minor']} {io_weight(entry['weight'])}"
    words = (
        ("throttleReadBpsDevice", "rbps"),
        ("throttleWriteBpsDevice", "wbps"),
        ("throttleReadIOPSDevice", "riops"),
        ("throttleWriteIOPSDevice", "wiops"),
    )
    for key, word in words:
        for entry in block.get(key) or ():
            device = f"{_star(entry['major'])}:{_star(entry['minor'])}"
            yield "io.max", f"{device} {word}={entry['rate']}"

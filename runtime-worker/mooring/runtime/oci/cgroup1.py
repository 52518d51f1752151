"""cgroups version 1: a hierarchy, and a directory of the container in it, for each controller."""

from __future__ import annotations

import os
import time

from .cgroup import Cgroup, number, read, table, write
from .errors import OciError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_NANOSECONDS_TO_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_hierarchies: dict[str, str] = {}
_mount_points: list[str] = []


def hierarchies() -> dict[str, str]:
    """Controller (or `systemd`) to mount point; several share one where they are mounted so."""
    if not _hierarchies:
        for line in read("/proc/self/mountinfo").splitlines():
            left, _, right = line.partition(" - ")
            fstype, _, options = right.split(" ", 2)
            fields = left.split(" ")
            if fstype != "cgroup" or fields[3] != "/" or fields[4] in _mount_points:
                continue
            _mount_points.append(fields[4])
            for option in options.split(","):
                if option.startswith("name="):
                    _hierarchies.setdefault(option[5:], fields[4])
                elif option not in _NOT_CONTROLLERS:
                    _hierarchies.setdefault(option, fields[4])
    return _hierarchies


def names_of(path: str) -> list[tuple[str, str]]:
    """(name below /sys/fs/cgroup, directory) of a cgroup in each hierarchy."""
    hierarchies()
    return [(each.rpartition("/")[2], each + path) for each in _mount_points]


_NOT_CONTROLLERS = {
    "rw", "ro", "xattr", "none", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods",
}  # fmt: skip


def _fill_cpuset(directory: str) -> None:
    """No process may enter a cpuset without processors and memory nodes: take those above.

    Above, another container's beginning may have made the directory and not filled it yet.
    """
    above = directory.rpartition("/")[0]
    for name in ("cpuset.cpus", "cpuset.mems"):
        if read(f"{directory}/{name}"):
            continue
        value = read(f"{above}/{name}")
        if not value:
            _fill_cpuset(above)
            value = read(f"{above}/{name}")
        write(f"{directory}/{name}", value)
    write(f"{directory}/cgroup.clone_children", "1")


_UNLIMITED = 1 << 62
"""Bytes; what the kernel shows for no limit is a little less than 1 << 63."""


class CgroupV1(Cgroup):
    """A cgroup of the same path in every hierarchy."""

    __slots__ = ()

    def directories(self) -> list[str]:
        hierarchies()
        return [mount_point + self.path for mount_point in _mount_points]

    def _file(self, name: str) -> str:
        controller = name.partition(".")[0]
        mount_point = hierarchies().get(controller)
        if mount_point is None:
            raise OciError(f"this kernel has no cgroup controller {controller}")
        return f"{mount_point}{self.path}/{name}"

    def _set(self, name: str, value: object) -> None:
        try:
            write(self._file(name), str(value))
        except OSError as error:
            raise self._refused(name, error) from error

    def create(self) -> None:
        cpuset = hierarchies().get("cpuset")
        for mount_point in _mount_points:
            self._create(mount_point, self.path, mount_point == cpuset)

    def _create(self, mount_point: str, path: str, cpuset: bool) -> None:
        directory = mount_point + path
        for _ in range(100):
            try:
                os.mkdir(directory, 0o755)
                break
            except FileExistsError:
                break
            except FileNotFoundError:
                # Another container's end may remove the parent in between: then again.
                self._create(mount_point, path.rpartition("/")[0], cpuset)
        if cpuset:
            _fill_cpuset(directory)

    def enter(self) -> None:
        # "0" into `tasks` moves the calling thread, the one move for which the kernel need not
        # stop all forks of the machine: 0.03 ms instead of the 10 ms of a pid into cgroup.procs.
        for directory in self.directories():
            write(f"{directory}/tasks", "0")

    def rename(self, path: str) -> None:
        target = CgroupV1(path)
        pairs = list(zip(self.directories(), target.directories(), strict=True))
        for at, (old, new) in enumerate(pairs):
            try:
                os.rename(old, new)
            except OSError:
                # The name is taken: all or nothing.
                for before, after in pairs[:at]:
                    os.rename(after, before)
                raise
        self.path = target.path

    def apply(self, resources: dict[str, Any]) -> None:
        if resources.get("unified"):
            raise OciError("resources.unified needs cgroup v2; this host has v1")
        for name, value in _settings(resources):
            self._set(name, value)
        if memory := resources.get("memory"):
            self._set_memory(memory)
        if devices := resources.get("devices"):
            for rule in devices:
                self._set(f"devices.{'allow' if rule.get('allow') else 'deny'}", device_rule(rule))

    def _set_memory(self, memory: dict[str, Any]) -> None:
        limit, swap = memory.get("limit"), memory.get("swap")
        names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        pairs = [(n, int(v)) for n, v in zip(names, (limit, swap), strict=True) if v]
        # memory+swap may never be below memory: raising starts with the former.
        if len(pairs) == 2:
            now = number(self._file(names[1]))
            if not 0 <= pairs[1][1] < now:
                pairs.reverse()
        for name, value in pairs:
            self._set(name, value)
        if memory.get("reservation"):
            self._set("memory.soft_limit_in_bytes", memory["reservation"])
        if memory.get("swappiness") is not None:
            self._set("memory.swappiness", memory["swappiness"])
        if memory.get("disableOOMKiller"):
            self._set("memory.oom_control", 1)

    def freeze(self) -> None:
        file = self._file("freezer.state")
        deadline = time.monotonic() + 10
        write(file, "FROZEN")
        while (state := read(file)) != "FROZEN":
            if time.monotonic() > deadline:
                write(file, "THAWED")
                raise OciError(f"cannot freeze cgroup {self.path}: it stays {state}")
            # A process that was being forked can leave it half frozen: ask again.
            time.sleep(0.001)
            write(file, "FROZEN")

    def thaw(self) -> None:
        write(self._file("freezer.state"), "THAWED")

    def frozen(self) -> bool:
        return read(self._file("freezer.state")) in ("FROZEN", "FREEZING")

    def kill(self) -> None:
        super().kill()
        # A frozen process dies only when it is thawed.
        if "freezer" in hierarchies() and self.exists() and self.frozen():
            self.thaw()

    def oom_kills(self) -> int:
        return table(self._file("memory.oom_control")).get("oom_kill", 0)

    def watch_oom(self) -> int:
        if "memory" not in hierarchies():
            return -1
        limit = number(self._file("memory.limit_in_bytes"))
        if limit <= 0 or limit >= _UNLIMITED:
            return -1
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            file = self._file("memory.oom_control")
            control = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                write(f"{os.path.dirname(file)}/cgroup.event_control", f"{event} {control}")
            finally:
                os.close(control)
        except OSError:
            os.close(event)
            raise
        return event

    def take_oom(self, descriptor: int) -> int:
        return os.eventfd_read(descriptor)

    def stats(self) -> dict[str, Any]:
        known = hierarchies()
        result: dict[str, Any] = {"version": 1}
        if "cpuacct" in known:
            result["cpu"] = self._cpu(known)
        if "memory" in known:
            result["memory"] = {
                "usage": number(self._file("memory.usage_in_bytes")),
                "max_usage": number(self._file("memory.max_usage_in_bytes")),
                "limit": number(self._file("memory.limit_in_bytes")),
                "failcnt": number(self._file("memory.failcnt")),
                "oom_kills": self.oom_kills(),
                "stats": table(self._file("memory.stat")),
            }
        if "pids" in known:
            result["pids"] = {
                "current": number(self._file("pids.current")),
                "limit": max(number(self._file("pids.max")), 0),
            }
        if "blkio" in known:
            result["blkio"] = {
                "io_service_bytes_recursive": self._blkio("io_service_bytes"),
                "io_serviced_recursive": self._blkio("io_serviced"),
            }
        return result

    def _cpu(self, known: dict[str, str]) -> dict[str, Any]:
        ticks = table(self._file("cpuacct.stat"))
        throttled = table(self._file("cpu.stat")) if "cpu" in known else {}
        return {
            "usage": number(self._file("cpuacct.usage")),
            "user": ticks.get("user", 0) * _NANOSECONDS_TO_TICK,
            "system": ticks.get("system", 0) * _NANOSECONDS_TO_TICK,
            "percpu": [int(n) for n in read(self._file("cpuacct.usage_percpu")).split()],
            "periods": throttled.get("nr_periods", 0),
            "throttled_periods": throttled.get("nr_throttled", 0),
            "throttled_time": throttled.get("throttled_time", 0),
        }

    def _blkio(self, what: str) -> list[dict[str, Any]]:
        # The throttling layer counts whatever the I/O scheduler, others only for their own.
        entries = []
        for line in read(self._file(f"blkio.throttle.{what}_recursive")).splitlines():
            fields = line.split()
            if len(fields) == 3:
                major, minor = fields[0].split(":")
                entries.append(
                    {
                        "major": int(major),
                        "minor": int(minor),
                        "op": fields[1],
                        "value": int(fields[2]),
                    }
                )
        return entries


def device_rule(rule: dict[str, Any]) -> str:
    """A device rule as devices.allow and devices.deny read it: `c 1:3 rwm`, or `a`."""
    kind = rule.get("type") or "a"
    if kind == "a" and rule.get("major") is None and rule.get("minor") is None:
        return "a"
    major, minor = (_star(rule.get(key)) for key in ("major", "minor"))
    return f"{kind} {major}:{minor} {rule.get('access') or 'rwm'}"


def _star(value: int | None) -> str:
    return "*" if value is None or value < 0 else str(value)


_SIMPLE = (
    # section, key of the OCI resources, file
    ("cpu", "shares", "cpu.shares"),
    ("cpu", "idle", "cpu.idle"),
    ("cpu", "realtimePeriod", "cpu.rt_period_us"),
    ("cpu", "realtimeRuntime", "cpu.rt_runtime_us"),
    ("cpu", "cpus", "cpuset.cpus"),
    ("cpu", "mems", "cpuset.mems"),
    ("cpu", "period", "cpu.cfs_period_us"),
    ("cpu", "quota", "cpu.cfs_quota_us"),
    ("cpu", "burst", "cpu.cfs_burst_us"),
    ("blockIO", "weight", "blkio.weight"),
    ("blockIO", "leafWeight", "blkio.leaf_weight"),
    ("network", "classID", "net_cls.classid"),
)
_THROTTLES = (
    ("throttleReadBpsDevice", "blkio.throttle.read_bps_device"),
    ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device"),
    ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device"),
    ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device"),
)


def _settings(resources: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """File and value for every limit except memory and devices."""
    for section, key, file in _SIMPLE:
        # The kernel takes 0 shares or an empty set for an error; OCI means "not given".
        if value := (resources.get(section) or {}).get(key):
            yield file, value
    limit = (resources.get("pids") or {}).get("limit")
    if limit is not None:
        yield "pids.max", limit if limit > 0 else "max"
    block = resources.get("blockIO") or {}
    for entry in block.get("weightDevice") or ():
        if entry.get("weight"):
            yield "blkio.weight_device", f"{entry['major']}:{entry['minor']} {entry['weight']}"
    for key, file in _THROTTLES:
        for entry in block.get(key) or ():
            yield file, f"{entry['major']}:{entry['minor']} {entry['rate']}"
    for entry in resources.get("hugepageLimits") or ():
        yield f"hugetlb.{entry['pageSize']}.limit_in_bytes", entry["limit"]
    for entry in (resources.get("network") or {}).get("priorities") or ():
        yield "net_prio.ifpriomap", f"{entry['name']} {entry['priority']}"
    for device, entry in (resources.get("rdma") or {}).items():
        yield "rdma.max", rdma_limit(device, entry)


def rdma_limit(device: str, entry: dict[str, Any]) -> str:
    """One device's line of rdma.max."""
    words = [("hca_handle", "hcaHandles"), ("hca_object", "hcaObjects")]
    limits = [f"{name}={entry[key]}" for name, key in words if entry.get(key) is not None]
    return " ".join([device, *limits])

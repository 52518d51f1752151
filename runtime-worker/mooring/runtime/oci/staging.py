"""Parts of a root made ahead in a process that waits: one move each, when the container comes.

/proc with what is masked and read-only in it, /dev with its nodes, /dev/pts and /dev/mqueue, and
/sys/fs/cgroup are mounted over the host's in the waiting process's own mount namespace, and
moved from there into the container's root. A part that does not fit stays behind and goes
with the host's root.
"""

from __future__ import annotations

import os

from . import devices, template
from .cgroups import version
from .mountapi import NewFilesystem, clone_tree
from .mountspec import parse
from .rootfs import Root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .cgroup import Cgroup


class Stage:
    """The parts by destination, each the descriptor of a mount."""

    __slots__ = ("_parts", "_plain_proc")

    def __init__(self, cgroup: Cgroup | None) -> None:
        """cgroup: what /sys/fs/cgroup will show, on v1; everything is made in this call."""
        here = Root(os.open("/", os.O_PATH | os.O_CLOEXEC))
        shown = [] if cgroup is None else open_cgroups(cgroup)
        here.mount(parse(template.PROC), None, [])
        proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
        # Sysctls are written through a procfs in which /proc/sys is not read-only.
        self._plain_proc = clone_tree("", recursive=False, directory=proc)
        for path in template.READONLY_IN_PROC:
            here.make_readonly(path)
        for path in template.MASKED_IN_PROC:
            here.mask(path)
        here.mount(parse(template.DEV), None, [])
        dev = os.open("/dev", os.O_PATH | os.O_CLOEXEC)
        devices.populate(dev)
        here.mount(parse(template.DEVPTS), None, [])
        here.mount(parse(template.MQUEUE), None, [])
        os.mkdir("shm", 0o755, dir_fd=dev)
        self._parts = {"/proc": proc, "/dev": dev, "/dev/shm": _detached(template.SHM)}
        if shown:
            here.mount(parse(template.CGROUP), None, shown)
            flags = os.O_PATH | os.O_CLOEXEC
            self._parts["/sys/fs/cgroup"] = os.open("/sys/fs/cgroup", flags)

    def fitting(self, spec: dict[str, Any]) -> set[str]:
        """Destinations of the configuration's mounts that need not be made any more."""
        return fitting(spec, cgroup="/sys/fs/cgroup" in self._parts)

    def part(self, destination: str) -> int:
        """A part to be moved away; -1 for one that comes along with another."""
        return self._parts.pop(destination, -1)

    def open_sysctl(self, name: str) -> int:
        """A file below /proc/sys, to be written."""
        flags = os.O_WRONLY | os.O_CLOEXEC
        return os.open(f"sys/{name}", flags, dir_fd=self._plain_proc)


def fitting(spec: dict[str, Any], *, cgroup: bool) -> set[str]:
    """Destinations of a configuration's mounts that come out as they are made ahead.

    cgroup: /sys/fs/cgroup is one of them.
    """
    by_destination: dict[str, dict[str, Any]] = {}
    for mount in spec.get("mounts") or ():
        destination = mount.get("destination") or ""
        if destination in by_destination:
            return set()  # one upon the other: order matters, so nothing is ahead of it
        by_destination[destination] = mount

    def fits(part: dict[str, Any]) -> bool:
        mount = by_destination.get(part["destination"])
        return mount is not None and template.same(mount, part)

    result = set()
    if fits(template.PROC) and _hides_as_usual(spec):
        result.add("/proc")
    if fits(template.DEV) and fits(template.DEVPTS) and fits(template.MQUEUE):
        result |= {"/dev", "/dev/pts", "/dev/mqueue"}
    if fits(template.SHM):
        result.add("/dev/shm")
    if cgroup and fits(template.CGROUP):
        result.add("/sys/fs/cgroup")
    return result


def _hides_as_usual(spec: dict[str, Any]) -> bool:
    linux = spec.get("linux") or {}
    masked = {path for path in linux.get("maskedPaths") or () if path.startswith("/proc")}
    readonly = {path for path in linux.get("readonlyPaths") or () if path.startswith("/proc")}
    return masked == template.MASKED_IN_PROC and readonly == template.READONLY_IN_PROC


def _detached(mount: dict[str, Any]) -> int:
    parsed = parse(mount)
    with NewFilesystem(parsed.fstype) as filesystem:
        filesystem.option("source", parsed.source)
        for key, value in parsed.options:
            filesystem.option(key, value)
        return filesystem.mount(parsed.set)


def open_cgroups(cgroup: Cgroup) -> list[tuple[str, int]]:
    """(name below /sys/fs/cgroup, detached mount) of each hierarchy; the name is empty on v2."""
    directories = cgroup.directories()
    names = [""]
    if version() == 1:
        names = [each[: -len(cgroup.path)].rpartition("/")[2] for each in directories]
    trees = [clone_tree(each, recursive=False) for each in directories]
    return list(zip(names, trees, strict=True))

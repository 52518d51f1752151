"""The cgroups of this host, whichever version it has."""

from __future__ import annotations

import os

from .cgroup import Cgroup
from .mountapi import NewFilesystem

__all__ = ["Cgroup", "attach", "children", "favor_dynamic_modifications", "version"]

_version = 0


def version() -> int:
    """2 where /sys/fs/cgroup is the unified hierarchy; else, hybrid too, 1."""
    global _version
    if not _version:
        _version = 2 if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else 1
    return _version


def attach(path: str) -> Cgroup:
    """The cgroup of that path, whether it exists yet or not; path begins with a slash."""
    # Only the version that this host has is loaded: every shim holds these modules in memory.
    if version() == 2:
        from .cgroup2 import CgroupV2

        return CgroupV2(path)
    from .cgroup1 import CgroupV1

    return CgroupV1(path)


def children(path: str) -> list[str]:
    """The paths of the cgroups directly below `path`, in any hierarchy."""
    found: set[str] = set()
    for directory in attach(path).directories():
        try:
            found.update(entry.name for entry in os.scandir(directory) if entry.is_dir())
        except FileNotFoundError:
            pass
    return [f"{path.rstrip('/')}/{name}" for name in sorted(found)]


def favor_dynamic_modifications(done: str) -> bool:
    """Ask the kernel to make moves between cgroups cheap; False where it does not know how.

    A process that moves itself is cheap anyway (see CgroupV1.enter), so this serves only others:
    moving another process by pid costs 10 ms without it. The option belongs to a hierarchy; here
    an empty one is made and let go again at once, never mounted anywhere. From Linux 6.18 the
    effect stays. For that moment each process of the host is seen to be in one more hierarchy,
    which confuses who is mounting all of them (systemd-nspawn for a new container): it is done
    once, and then there is the file `done`, in a directory that is gone after a reboot.
    """
    if os.path.exists(done):
        return True
    try:
        with NewFilesystem("cgroup") as filesystem:
            for option in ("none", "favordynmods"):
                filesystem.option(option)
            filesystem.option("name", f"mooring-{os.getpid()}")
            os.close(filesystem.mount())
    except OSError:
        return False
    os.close(os.open(done, os.O_CREAT | os.O_CLOEXEC, 0o600))
    return True

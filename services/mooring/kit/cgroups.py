"""Putting a process of ours into a cgroup, in every hierarchy of whichever version."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from .mounts import mounts


def mount_points(text: bytes = b"") -> Iterator[str]:
    """The mount points of all cgroup hierarchies; text: of /proc/self/mountinfo."""
    for mount in mounts(text):
        if mount.type in ("cgroup", "cgroup2"):
            yield mount.path


def move(pid: int, path: str) -> None:
    """Move a process; a hierarchy that is read-only here, or has no room for it, is left as it is.

    On v1 it costs 10 ms for each hierarchy: for what is forked once, not for containers.
    """
    for mount_point in mount_points():
        directory = mount_point + path
        with contextlib.suppress(OSError):
            os.makedirs(directory, exist_ok=True)
            _fill_cpuset(directory)
            with open(f"{directory}/cgroup.procs", "w") as file:
                file.write(str(pid))


def _fill_cpuset(directory: str) -> None:
    # v1: nothing may enter a cpuset that has no processors and no memory nodes yet.
    for name in ("cpuset.cpus", "cpuset.mems"):
        file = Path(directory, name)
        if file.exists() and not file.read_text().strip():
            _fill_cpuset(os.path.dirname(directory))
            file.write_text(Path(os.path.dirname(directory), name).read_text())

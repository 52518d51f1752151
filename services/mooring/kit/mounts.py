"""What is mounted where, as this process sees it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount. path: without symbolic links; device: `major:minor`."""

    device: str
    path: str
    type: str
    source: str


def mounts(text: bytes = b"") -> list[Mount]:
    """All mounts, in the order in which they were made; text: of /proc/self/mountinfo."""
    found = []
    for line in (text or Path("/proc/self/mountinfo").read_bytes()).splitlines():
        left, _, right = line.partition(b" - ")
        fields = left.split(b" ")[2], left.split(b" ")[4], *right.split(b" ")[:2]
        found.append(Mount(*map(_decode, fields)))
    return found


def filesystem(directory: Path) -> str:
    """The type of the file system that a directory is on; empty if no mount tells it. OSError."""
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    return next((mount.type for mount in mounts() if mount.device == wanted), "")


def _decode(field: bytes) -> str:
    # Spaces and the like are octal there, see proc(5).
    return os.fsdecode(field.decode("unicode_escape").encode("latin-1"))

"""What is mounted where, as this process sees it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount. path: without symbolic links."""

    path: str
    type: str
    source: str


def mounts(text: bytes = b"") -> list[Mount]:
    """All mounts, in the order in which they were made; text: of /proc/self/mountinfo."""
    found = []
    for line in (text or Path("/proc/self/mountinfo").read_bytes()).splitlines():
        left, _, right = line.partition(b" - ")
        type_, source = right.split(b" ")[:2]
        found.append(Mount(_decode(left.split(b" ")[4]), _decode(type_), _decode(source)))
    return found


def _decode(field: bytes) -> str:
    # Spaces and the like are octal there, see proc(5).
    return os.fsdecode(field.decode("unicode_escape").encode("latin-1"))

"""PathStat: what is at a path, with the mode as Go has it."""

from __future__ import annotations

import stat
from typing import Any

from .texts import rfc3339

_KINDS = {
    stat.S_IFDIR: 1 << 31,
    stat.S_IFLNK: 1 << 27,
    stat.S_IFBLK: 1 << 26,
    stat.S_IFCHR: 1 << 26 | 1 << 21,
    stat.S_IFIFO: 1 << 25,
    stat.S_IFSOCK: 1 << 24,
}
_EPOCH = "1970-01-01T00:00:00Z"
_BITS = ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20))


def go_mode(mode: int) -> int:
    """st_mode as Go's os.FileMode."""
    result = mode & 0o777 | _KINDS.get(stat.S_IFMT(mode), 0)
    for bit, go in _BITS:
        if mode & bit:
            result |= go
    return result


def path_stat(described: dict[str, Any]) -> dict[str, Any]:
    """The JSON of the header."""
    return {
        "name": described["name"],
        "size": described["size"],
        "mode": go_mode(described["mode"]),
        # 0 is a time here, and rfc3339's word for none.
        "mtime": rfc3339(described["mtime_ns"]) if described["mtime_ns"] else _EPOCH,
        "linkTarget": described["target"],
    }

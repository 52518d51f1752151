"""Numbers in words."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """`12 s`, `3 min 5 s`, `2 h 7 min`, `4 d 1 h`."""
    whole = int(seconds)
    for big, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= big:
            return f"{whole // big} {unit} {whole % big // smaller} {name}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def size(count: float) -> str:
    """Bytes: `640 B`, `12.3 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"

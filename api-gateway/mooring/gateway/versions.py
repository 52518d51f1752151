"""The versions that this gateway names: its own, and those of the Docker API that it serves."""

from __future__ import annotations

ENGINE_VERSION = "0.1.0"
NEWEST = (1, 50)
OLDEST = (1, 24)


def text(version: tuple[int, int]) -> str:
    """`1.50`."""
    return f"{version[0]}.{version[1]}"

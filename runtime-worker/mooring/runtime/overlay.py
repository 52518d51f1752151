"""The root file system of a container as a value: overlayfs over the layers of its image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Overlay:
    """What is mounted as a root file system; the uppermost lower directory comes first."""

    lowers: tuple[str, ...]
    upper: Path
    work: Path

"""What all handlers share."""

from __future__ import annotations

from mooring.kit.config import Settings

from .engine import Engine


class Gateway:
    """The settings, and the engine as soon as its records are there."""

    engine: Engine
    """Set before any handler runs that is not of Kind.ALWAYS."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

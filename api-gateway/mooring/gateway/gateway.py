"""What all handlers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mooring.kit.config import Settings

from .engine import Engine

if TYPE_CHECKING:
    from .sessions.store import Sessions


class Gateway:
    """The settings, and the engine as soon as its records are there."""

    engine: Engine
    """Set before any handler runs that is not of Kind.ALWAYS."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.sessions: Sessions | None = None
        """None where nobody keeps descriptors for us."""

"""Docker's events."""

from __future__ import annotations

from .base import Model


class Event(Model):
    """One Docker event. `id` is unique for ever and is its Nats-Msg-Id on the events stream."""

    id: str = ""
    type: str = "container"
    action: str = ""
    actor: str = ""
    attributes: dict[str, str] = {}
    time_ns: int = 0
    scope: str = "local"

"""Published ports as they are, not as they were asked for."""

from __future__ import annotations

from .base import Model


class PublishedPort(Model):
    """One address and port of the host; `0.0.0.0` and `::` mean all of the family."""

    host_ip: str
    host_port: int

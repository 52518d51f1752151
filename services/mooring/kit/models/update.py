"""Changing limits and the restart policy of a container that exists."""

from __future__ import annotations

from .base import Done
from .container import ContainerRequest, HostConfig
from .host import HostContainer


class UpdateContainer(ContainerRequest):
    """What is empty or zero in host_config stays; of the rest, resources and the restart policy."""

    host_config: HostConfig


class ContainerUpdated(Done):
    warnings: list[str] = []


class HostUpdate(HostContainer):
    """Give a run these limits now."""

    host_config: HostConfig


class HostUpdated(Done):
    warnings: list[str] = []

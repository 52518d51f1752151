"""The network of a run: which namespace it is put into, and what is set up there."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from mooring.kit.errors import NotFound
from mooring.kit.models.container import ContainerRecord, NetworkState

from .network.bridge import Bridge
from .runs import Run
from .spec import OWN

logger = logging.getLogger(__name__)

FINISH = 3.0
"""Seconds that the end of the worker waits for a bridge that is being set up."""


@dataclass(slots=True)
class Sandbox:
    """A run's network. namespace: OWN for an empty one, None for the host's, else its path."""

    namespace: str | None
    state: NetworkState
    address: str = ""
    gateway: str = ""
    host_files: bool = False
    """It sees the host's network, so it reads the host's names."""
    descriptor: int = -1
    """What keeps a namespace alive until the container is in it."""

    def close(self) -> None:
        """The container is in the namespace, or never will be."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Networks(Protocol):
    """Sandboxes of one host. A holder is `<container id>.<run>`."""

    async def attach(self, holder: str, record: ContainerRecord, joined: Run | None) -> Sandbox:
        """The sandbox of a run that is about to start; joined is whose network it shares."""

    def detach(self, holder: str) -> None:
        """The run is over: free its addresses. It may have none."""

    def refill(self) -> None:
        """Prepare sandboxes in the background."""

    def sweep(self, live: set[str]) -> None:
        """Free what belongs to none of these holders."""


def kind(record: ContainerRecord) -> str:
    """`none`, `host`, `container`, `bridge`, or the name of another network."""
    mode = record.host_config.network_mode
    if record.config.network_disabled:
        return "none"
    if mode in ("", "default", "bridge"):
        return "bridge"
    return "container" if mode.startswith("container:") else mode


class HostNetworks:
    """The networks that every host has: none, host, another container's, the default bridge."""

    def __init__(
        self,
        bridge: Bridge,
        factory: Callable[[], Awaitable[socket.socket]],
    ) -> None:
        self._bridge = bridge
        self._factory = factory
        self._setting_up = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def attach(self, holder: str, record: ContainerRecord, joined: Run | None) -> Sandbox:
        """See Networks."""
        name = kind(record)
        if joined is not None:
            return Sandbox(f"/proc/{joined.init_pid}/ns/net", NetworkState())
        match name:
            case "none":
                return Sandbox(OWN, NetworkState())
            case "host":
                return Sandbox(None, NetworkState(), host_files=True)
            case "bridge":
                return await self._attach_bridge(holder)
        raise NotFound(f"network {name} not found")

    async def _attach_bridge(self, holder: str) -> Sandbox:
        await self._ready()
        prepared, state = await self._bridge.attach(holder)
        return Sandbox(
            f"/proc/{os.getpid()}/fd/{prepared.namespace}",
            state,
            address=str(prepared.address),
            gateway=self._bridge.gateway,
            descriptor=prepared.namespace,
        )

    def detach(self, holder: str) -> None:
        """See Networks."""
        self._bridge.detach(holder)

    def refill(self) -> None:
        """See Networks."""
        if self._bridge.ready:
            self._bridge.refill()

    def sweep(self, live: set[str]) -> None:
        """See Networks."""
        self._bridge.sweep(live)

    def prepare(self) -> None:
        """Set the bridge up in the background, so that the first start finds it."""
        self._task = asyncio.create_task(self._prepare(), name="bridge")

    async def close(self, *, remove: bool) -> None:
        """Give back what is prepared; remove: nothing uses the bridge any more, take it away."""
        if self._task is not None:
            # Not cancelled half-way: what it has made by then would be nobody's.
            await asyncio.wait({self._task}, timeout=FINISH)
        ready = self._bridge.ready
        await self._bridge.close()
        if remove and ready:
            await self._bridge.remove()

    async def _prepare(self) -> None:
        try:
            await self._ready()
        except Exception as exc:
            # A host without the means for a bridge still runs containers without one.
            logger.warning("the default bridge is not available: %s", exc)

    async def _ready(self) -> None:
        if self._bridge.ready:
            return
        async with self._setting_up:
            if not self._bridge.ready:
                await self._bridge.start(await self._factory())

"""The commands that a host understands. Each can be sent again: run and id say what is meant."""

from __future__ import annotations

from typing import Protocol, TypeVar

from mooring.kit import subjects
from mooring.kit.models.base import Done, Model, Request
from mooring.kit.models.exec import ExecStarted
from mooring.kit.models.host import (
    ContainerSize,
    HostContainer,
    HostExec,
    HostKill,
    HostPolicy,
    HostStart,
    HostStarted,
    HostStop,
    HostStopped,
    Report,
)
from mooring.kit.models.image import RemoveLayers
from mooring.kit.models.network import (
    HostConnect,
    HostDisconnect,
    HostNetwork,
    HostRename,
    HostSubnets,
    HostWired,
    NetworkRecord,
    NetworkState,
)
from mooring.kit.models.update import HostUpdate, HostUpdated
from mooring.kit.models.volume import (
    MeasureVolumes,
    PrepareVolumes,
    RemoveHostVolume,
    VolumeSizes,
)

R = TypeVar("R", bound=Model)

START_TIMEOUT = 45.0
STOP_EXTRA = 15.0
"""Seconds beyond the container's own time until a stop counts as not answered."""
FOR_EVER = 365 * 86400.0
KILL_TIMEOUT = 12.0
VOLUME_TIMEOUT = 50.0
"""Filling a volume from an image, or measuring one, takes as long as the files in it do."""


class Requester(Protocol):
    """What is needed of kit.bus.Bus."""

    async def request(
        self, subject: str, message: Request, reply: type[R], *, timeout: float = 30.0
    ) -> R: ...
    async def publish(self, subject: str, message: Model) -> None: ...


class Hosts:
    """All hosts; each call raises the host's own EngineError, Unavailable if it is away."""

    def __init__(self, bus: Requester) -> None:
        self._bus = bus

    async def prepare(self, node: str, request: HostStart) -> None:
        """Tell the host of a run that is likely to be started. Nothing depends on it."""
        await self._bus.publish(subjects.runtime(node, subjects.RUNTIME_PREPARE), request)

    async def start(self, node: str, request: HostStart) -> HostStarted:
        """Start a run; answers when its program has been executed, or could not be."""
        subject = subjects.runtime(node, subjects.RUNTIME_START)
        return await self._bus.request(subject, request, HostStarted, timeout=START_TIMEOUT)

    async def stop(self, node: str, request: HostStop) -> int:
        """Stop a run; answers when it has exited and the fact is published. The last run."""
        limit = FOR_EVER if request.timeout < 0 else request.timeout + STOP_EXTRA
        subject = subjects.agent(node, subjects.AGENT_STOP)
        return (await self._bus.request(subject, request, HostStopped, timeout=limit)).run

    async def kill(self, node: str, request: HostKill) -> None:
        """Send a signal; for SIGKILL it answers when the container has exited."""
        subject = subjects.agent(node, subjects.AGENT_KILL)
        await self._bus.request(subject, request, Done, timeout=KILL_TIMEOUT)

    async def pause(self, node: str, request: HostContainer) -> None:
        """Freeze all processes."""
        await self._bus.request(subjects.agent(node, subjects.AGENT_PAUSE), request, Done)

    async def unpause(self, node: str, request: HostContainer) -> None:
        """Thaw them."""
        await self._bus.request(subjects.agent(node, subjects.AGENT_UNPAUSE), request, Done)

    async def update(self, node: str, request: HostUpdate) -> HostUpdated:
        """Change the limits of what runs; NotFound if it does not."""
        subject = subjects.runtime(node, subjects.RUNTIME_UPDATE)
        return await self._bus.request(subject, request, HostUpdated)

    async def policy(self, node: str, request: HostPolicy) -> None:
        """Change a restart policy."""
        await self._bus.request(subjects.agent(node, subjects.AGENT_POLICY), request, Done)

    async def prepare_exec(self, node: str, request: HostExec) -> None:
        """Tell the host of an exec that is likely to be started. Nothing depends on it."""
        await self._bus.publish(subjects.agent(node, subjects.AGENT_EXEC_PREPARE), request)

    async def exec(self, node: str, request: HostExec) -> ExecStarted:
        """Start a further process."""
        subject = subjects.agent(node, subjects.AGENT_EXEC_START)
        return await self._bus.request(subject, request, ExecStarted)

    async def release(self, node: str, container_id: str, run: int) -> None:
        """A run has ended and that is recorded: its network and run directory may go."""
        subject = subjects.runtime(node, subjects.RUNTIME_RELEASE)
        await self._bus.request(subject, HostContainer(id=container_id, run=run), Done)

    async def remove(self, node: str, container_id: str) -> None:
        """Remove everything of a container."""
        subject = subjects.runtime(node, subjects.RUNTIME_REMOVE)
        await self._bus.request(subject, HostContainer(id=container_id), Done)

    async def size(self, node: str, container_id: str) -> ContainerSize:
        """Bytes that a container has written, and of its root file system."""
        subject = subjects.runtime(node, subjects.RUNTIME_SIZE)
        return await self._bus.request(subject, HostContainer(id=container_id), ContainerSize)

    async def report(self, node: str, timeout: float = 5.0) -> Report:
        """Everything that is on a host."""
        subject = subjects.agent(node, subjects.AGENT_REPORT)
        return await self._bus.request(subject, Request(), Report, timeout=timeout)

    async def remove_layers(self, node: str, request: RemoveLayers) -> None:
        """Free the layers of an image that no other image uses."""
        subject = subjects.runtime(node, subjects.RUNTIME_IMAGE_REMOVE)
        await self._bus.request(subject, request, Done)

    async def ensure_network(self, node: str, record: NetworkRecord) -> None:
        """Make a network, or see that it is there."""
        subject = subjects.runtime(node, subjects.RUNTIME_NETWORK_ENSURE)
        await self._bus.request(subject, HostNetwork(record=record), Done)

    async def remove_network(self, node: str, record: NetworkRecord) -> None:
        """Take a network away; Forbidden while it is in use."""
        subject = subjects.runtime(node, subjects.RUNTIME_NETWORK_REMOVE)
        await self._bus.request(subject, HostNetwork(record=record), Done)

    async def subnets(self, node: str) -> list[str]:
        """What a host has routes to."""
        subject = subjects.runtime(node, subjects.RUNTIME_NETWORK_SUBNETS)
        return (await self._bus.request(subject, Request(), HostSubnets)).subnets

    async def connect(self, node: str, request: HostConnect) -> NetworkState:
        """Connect a run to one more network."""
        subject = subjects.runtime(node, subjects.RUNTIME_NETWORK_CONNECT)
        return (await self._bus.request(subject, request, HostWired)).network

    async def disconnect(self, node: str, request: HostDisconnect) -> NetworkState:
        """Disconnect a run from a network."""
        subject = subjects.runtime(node, subjects.RUNTIME_NETWORK_DISCONNECT)
        return (await self._bus.request(subject, request, HostWired)).network

    async def prepare_volumes(self, node: str, request: PrepareVolumes) -> None:
        """Make volumes, and fill those that are empty."""
        subject = subjects.runtime(node, subjects.RUNTIME_VOLUME_PREPARE)
        await self._bus.request(subject, request, Done, timeout=VOLUME_TIMEOUT)

    async def remove_volume(self, node: str, name: str) -> None:
        """Delete a volume's files; one that is gone already is no error."""
        subject = subjects.runtime(node, subjects.RUNTIME_VOLUME_REMOVE)
        await self._bus.request(subject, RemoveHostVolume(name=name), Done)

    async def measure_volumes(self, node: str, names: list[str]) -> dict[str, int]:
        """Bytes in each of the volumes."""
        subject = subjects.runtime(node, subjects.RUNTIME_VOLUME_SIZES)
        request = MeasureVolumes(names=names)
        reply = await self._bus.request(subject, request, VolumeSizes, timeout=VOLUME_TIMEOUT)
        return reply.sizes

    async def rename(self, node: str, request: HostRename) -> None:
        """Tell a run's networks the new name of its container."""
        subject = subjects.runtime(node, subjects.RUNTIME_NETWORK_RENAME)
        await self._bus.request(subject, request, HostWired)

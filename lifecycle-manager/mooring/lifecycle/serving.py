"""One replica put together: who answers which command, and the life of the process."""

from __future__ import annotations

import asyncio
import contextlib
import secrets

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import DEFAULT_POOLS, Settings
from mooring.kit.models.base import Done, Request
from mooring.kit.models.container import (
    ContainerRequest,
    CreateContainer,
    KillContainer,
    NoteContainer,
    PruneContainers,
    RemoveContainer,
    RenameContainer,
    StartContainer,
    StopContainer,
)
from mooring.kit.models.exec import CreateExec, StartExec
from mooring.kit.models.image import AddImage, NoteImage, PruneImages, RemoveImage, TagImage
from mooring.kit.models.network import (
    ConnectNetwork,
    CreateNetwork,
    DisconnectNetwork,
    NetworkRequest,
    PruneNetworks,
)
from mooring.kit.models.update import UpdateContainer
from mooring.kit.models.volume import CreateVolume, PruneVolumes, RemoveVolume
from mooring.kit.process import Service

from .containers import ContainerHandlers
from .endings import Endings
from .engine import Engine, open_engine
from .execs import ExecHandlers
from .facts import Facts
from .image_prune import ImagePrune
from .images import ImageHandlers
from .networks import NetworkHandlers
from .reconcile import Reconciler
from .removal import RemovalHandlers
from .running import RunningHandlers
from .updating import UpdateHandlers
from .volumes import VolumeHandlers
from .wiring import WiringHandlers


async def serve(bus: Bus, engine: Engine, pools: str = DEFAULT_POOLS) -> Reconciler:
    """Answer every command and take in facts; returns what has to be run besides."""
    volumes = VolumeHandlers(engine)
    endings = Endings(engine, volumes)
    running = RunningHandlers(engine, endings)
    removal = RemovalHandlers(engine, endings)
    execs = ExecHandlers(engine)
    images = ImageHandlers(engine)
    updates = UpdateHandlers(engine)
    image_prune = ImagePrune(engine, images)
    networks = NetworkHandlers(engine, pools)
    wiring = WiringHandlers(engine, networks, running)
    containers = ContainerHandlers(engine, volumes, wiring)
    facts = Facts(engine, endings, execs, networks)
    await networks.predefined()
    group = subjects.LIFECYCLE_GROUP

    async def pong(request: Request) -> Done:
        return Done()

    # Not in the group: it asks for this very replica.
    await bus.serve(subjects.replica(engine.owner), Request, pong)
    await asyncio.gather(
        bus.serve(subjects.CONTAINER_CREATE, CreateContainer, containers.create, group=group),
        bus.serve(subjects.CONTAINER_RENAME, RenameContainer, containers.rename, group=group),
        bus.serve(subjects.CONTAINER_UPDATE, UpdateContainer, updates.update, group=group),
        bus.serve(subjects.CONTAINER_NOTE, NoteContainer, containers.note, group=group),
        bus.serve(subjects.CONTAINER_START, StartContainer, running.start, group=group),
        bus.serve(subjects.CONTAINER_STOP, StopContainer, running.stop, group=group),
        bus.serve(subjects.CONTAINER_RESTART, StopContainer, running.restart, group=group),
        bus.serve(subjects.CONTAINER_KILL, KillContainer, running.kill, group=group),
        bus.serve(subjects.CONTAINER_PAUSE, ContainerRequest, running.pause, group=group),
        bus.serve(subjects.CONTAINER_UNPAUSE, ContainerRequest, running.unpause, group=group),
        bus.serve(subjects.CONTAINER_REMOVE, RemoveContainer, removal.remove, group=group),
        bus.serve(subjects.CONTAINER_PRUNE, PruneContainers, removal.prune, group=group),
        bus.serve(subjects.EXEC_CREATE, CreateExec, execs.create, group=group),
        bus.serve(subjects.EXEC_START, StartExec, execs.start, group=group),
        bus.serve(subjects.IMAGE_ADD, AddImage, images.add, group=group),
        bus.serve(subjects.IMAGE_TAG, TagImage, images.tag, group=group),
        bus.serve(subjects.IMAGE_NOTE, NoteImage, images.note, group=group),
        bus.serve(subjects.IMAGE_REMOVE, RemoveImage, images.remove, group=group),
        bus.serve(subjects.NETWORK_CREATE, CreateNetwork, networks.create, group=group),
        bus.serve(subjects.NETWORK_REMOVE, NetworkRequest, networks.remove, group=group),
        bus.serve(subjects.NETWORK_PRUNE, PruneNetworks, networks.prune, group=group),
        bus.serve(subjects.NETWORK_CONNECT, ConnectNetwork, wiring.connect, group=group),
        bus.serve(subjects.NETWORK_DISCONNECT, DisconnectNetwork, wiring.disconnect, group=group),
        bus.serve(subjects.IMAGE_PRUNE, PruneImages, image_prune.prune, group=group),
        bus.serve(subjects.VOLUME_CREATE, CreateVolume, volumes.create, group=group),
        bus.serve(subjects.VOLUME_REMOVE, RemoveVolume, volumes.remove, group=group),
        bus.serve(subjects.VOLUME_PRUNE, PruneVolumes, volumes.prune, group=group),
    )
    await bus.consume(
        subjects.FACTS_STREAM, "lifecycle", facts.handle, subject=subjects.FACTS, group=group
    )
    return Reconciler(engine, endings, running, execs, images, networks, wiring, volumes)


async def main(settings: Settings, service: Service) -> None:
    """Run one replica until it is asked to stop."""
    async with Bus.connect(settings, "lifecycle") as bus:
        await bus.ensure_streams()
        engine = await open_engine(bus, secrets.token_hex(8))
        reconciler = await serve(bus, engine, settings.address_pools)
        async with asyncio.TaskGroup() as tasks:
            reconciling = tasks.create_task(reconciler.run(), name="reconcile")
            await service.ready()
            await service.stop_requested()
            reconciling.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3.0):
                await engine.close()

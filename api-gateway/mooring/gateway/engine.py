"""What a gateway knows: the bus, and its watched copies of the records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.errors import Unavailable
from mooring.kit.models.base import Model, Request
from mooring.kit.models.container import ContainerRecord
from mooring.kit.models.exec import ExecRecord
from mooring.kit.models.host import NodeRecord
from mooring.kit.models.image import ImageRecord, ReferenceRecord
from mooring.kit.models.network import NetworkRecord
from mooring.kit.models.volume import VolumeRecord
from mooring.kit.store import Mirror

from .views.containers import ContainerViews
from .views.images import ImageViews
from .views.networks import NetworkViews
from .views.volumes import VolumeViews

R = TypeVar("R", bound=Model)
T = TypeVar("T")


class Engine:
    """The engine as the handlers see it. Nothing here that NATS does not have."""

    def __init__(
        self,
        settings: Settings,
        bus: Bus,
        containers: Mirror[ContainerRecord],
        execs: Mirror[ExecRecord],
        images: Mirror[ImageRecord],
        references: Mirror[ReferenceRecord],
        nodes: Mirror[NodeRecord],
        networks: Mirror[NetworkRecord],
        volumes: Mirror[VolumeRecord],
    ) -> None:
        self.settings = settings
        self.bus = bus
        self.execs = execs
        self.nodes = nodes
        self.images = ImageViews(images, references)
        self.networks = NetworkViews(networks)
        self.containers = ContainerViews(
            containers, execs, self.images, self.networks, self._run_dir
        )
        self.volumes = VolumeViews(volumes, self.containers)
        self._background: set[asyncio.Task[Any]] = set()

    def node(self) -> NodeRecord:
        """The host that images go to: the one seen last; Unavailable if there is none."""
        if not len(self.nodes):
            raise Unavailable("no host has joined the engine yet: its runtime worker is starting")
        return max((entry.record for entry in self.nodes.values()), key=lambda node: node.seen_ns)

    async def ask(self, subject: str, message: Request, reply: type[R]) -> R:
        """A request on the bus with the settings' deadline."""
        return await self.bus.request(
            subject, message, reply, timeout=self.settings.request_timeout
        )

    def background(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Go on with something, whatever becomes of the request that began it."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def close(self) -> None:
        """Give what is under way in the background a second, then end it."""
        if self._background:
            await asyncio.wait(tuple(self._background), timeout=1.0)
        for task in tuple(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    def _run_dir(self, node_id: str) -> str:
        entry = self.nodes.get(node_id)
        return entry.record.run_dir if entry is not None else ""


@asynccontextmanager
async def open_engine(settings: Settings) -> AsyncIterator[Engine]:
    """Connect to the bus and copy the records; everything is there when this enters."""
    async with Bus.connect(settings, "gateway") as bus:
        await bus.ensure_streams()
        engine = Engine(
            settings,
            bus,
            await (await bus.bucket(subjects.BUCKET_CONTAINERS, ContainerRecord)).mirror(),
            await (await bus.bucket(subjects.BUCKET_EXECS, ExecRecord)).mirror(),
            await (await bus.bucket(subjects.BUCKET_IMAGES, ImageRecord)).mirror(),
            await (await bus.bucket(subjects.BUCKET_REFERENCES, ReferenceRecord)).mirror(),
            await (await bus.bucket(subjects.BUCKET_NODES, NodeRecord)).mirror(),
            await (await bus.bucket(subjects.BUCKET_NETWORKS, NetworkRecord)).mirror(),
            await (await bus.bucket(subjects.BUCKET_VOLUMES, VolumeRecord)).mirror(),
        )
        try:
            yield engine
        finally:
            await engine.close()

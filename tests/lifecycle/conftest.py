"""A replica of the lifecycle manager in the test's own process, a fake host, and an image."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.models.base import Done
from mooring.kit.models.container import (
    ContainerConfig,
    ContainerCreated,
    ContainerRecord,
    ContainerRequest,
    CreateContainer,
    Event,
    HostConfig,
    RemoveContainer,
    StartContainer,
    State,
    StopContainer,
)
from mooring.kit.models.image import AddImage, ImageRecord, Layer
from mooring.lifecycle.engine import Engine, open_engine
from mooring.lifecycle.reconcile import Reconciler
from mooring.lifecycle.serving import serve
from tests.fakes import FakeHost

IMAGE_ID = "sha256:" + "ab" * 32


def image(image_id: str = IMAGE_ID, **config: object) -> ImageRecord:
    """An image of one layer, with a program."""
    return ImageRecord(
        id=image_id,
        config={"Cmd": ["/bin/sh"], "Labels": {"made": "here"}, **config},
        layers=[Layer(diff_id="sha256:" + "cd" * 32, chain_id="sha256:" + "cd" * 32, size=1)],
        nodes=["node1"],
    )


@dataclass
class Replica:
    """One lifecycle manager; `reconciler` runs only when a test calls it."""

    bus: Bus
    engine: Engine
    reconciler: Reconciler


@contextlib.asynccontextmanager
async def replica(settings: Settings, owner: str) -> AsyncIterator[Replica]:
    """A replica on a connection of its own."""
    async with Bus.connect(settings, f"lifecycle-{owner}") as bus:
        await bus.ensure_streams()
        engine = await open_engine(bus, owner)
        reconciler = await serve(bus, engine)
        yield Replica(bus, engine, reconciler)
        await engine.close()


class Client:
    """What a gateway asks for, in short."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

    async def create(self, name: str = "", *, request_id: str = "", **host: object) -> str:
        """Create a container of the image; its id."""
        request = CreateContainer(
            request_id=request_id,
            name=name,
            config=ContainerConfig(image="bb", labels={"role": "test"}),
            host_config=HostConfig.model_validate(host),
        )
        reply = await self.bus.request(subjects.CONTAINER_CREATE, request, ContainerCreated)
        return reply.container_id

    async def start(self, container: str, *, request_id: str = "") -> Done:
        """Start it."""
        request = StartContainer(request_id=request_id, container=container)
        return await self.bus.request(subjects.CONTAINER_START, request, Done)

    async def stop(self, container: str, timeout: int | None = None, **more: str) -> Done:
        """Stop it."""
        request = StopContainer(container=container, timeout=timeout, **more)
        return await self.bus.request(subjects.CONTAINER_STOP, request, Done)

    async def remove(self, container: str, *, force: bool = False, request_id: str = "") -> Done:
        """Remove it."""
        request = RemoveContainer(request_id=request_id, container=container, force=force)
        return await self.bus.request(subjects.CONTAINER_REMOVE, request, Done)

    async def ask(self, subject: str, container: str) -> Done:
        """Any command that needs no more than the container."""
        return await self.bus.request(subject, ContainerRequest(container=container), Done)

    async def record(self, container: str) -> ContainerRecord:
        """The record as the store has it."""
        bucket = await self.bus.bucket(subjects.BUCKET_CONTAINERS, ContainerRecord)
        return (await bucket.get(container)).record

    async def until(self, container: str, *wanted: State) -> ContainerRecord:
        """Wait until the container is in one of these states."""
        bucket = await self.bus.bucket(subjects.BUCKET_CONTAINERS, ContainerRecord)
        entry = await (await bucket.mirror()).until(
            container, lambda e: e is not None and e.record.state in wanted, 10
        )
        assert entry is not None
        return entry.record

    async def events(self, count: int) -> list[Event]:
        """The first events of the stream, waiting until there are so many."""
        found: list[Event] = []
        async with asyncio.timeout(10):
            async for message in self.bus.follow(
                subjects.EVENTS_STREAM, subject=subjects.EVENTS, since_ns=1
            ):
                found.append(Event.unpack(message.data))
                if len(found) >= count:
                    break
        return found

    async def actions(self, count: int, container: str = "") -> list[str]:
        """The actions of the first events, of one container or of all."""
        events = [e for e in await self.events(count) if not container or e.actor == container]
        return [event.action for event in events]


@pytest.fixture
async def host(bus: Bus) -> FakeHost:
    """A host of the name node1."""
    host = FakeHost(bus)
    await host.serve()
    return host


@pytest.fixture
async def lifecycle(settings: Settings, host: FakeHost) -> AsyncIterator[Replica]:
    """A replica that knows the host and the image bb."""
    async with replica(settings, "one") as one:
        await add_image(one.bus)
        await one.engine.nodes.until("node1", lambda node: node is not None, 10)
        yield one


async def add_image(bus: Bus, record: ImageRecord | None = None, reference: str = "bb") -> None:
    """As a worker does it once an image is unpacked; without an event."""
    request = AddImage(image=record or image(), references=[reference], action="")
    await bus.request(subjects.IMAGE_ADD, request, Done)


@pytest.fixture
def client(bus: Bus, lifecycle: Replica) -> Client:
    """A client of the replica."""
    return Client(bus)

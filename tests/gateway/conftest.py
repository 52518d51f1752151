"""A gateway in this process, on a real bus, with a fake engine behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mooring.gateway.app import serve
from mooring.gateway.gateway import Gateway
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.process import Service

from .client import Client
from .fakes import FakeEngine


class FakeService(Service):
    """Tells when the gateway is ready."""

    def __init__(self) -> None:
        super().__init__()
        self.is_ready = asyncio.Event()

    async def ready(self) -> None:
        """See Service."""
        self.is_ready.set()


@pytest.fixture
async def engine(bus: Bus) -> FakeEngine:
    """What answers the gateway's requests."""
    fake = FakeEngine(bus)
    await fake.start_serving()
    return fake


@pytest.fixture
async def client(settings: Settings, engine: FakeEngine) -> AsyncIterator[Client]:
    """A client of a running gateway."""
    service = FakeService()
    gateway = Gateway(settings)
    running = asyncio.create_task(serve(gateway, service))
    ready = asyncio.create_task(service.is_ready.wait())
    await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        await running
    engine.watch(gateway)
    client = Client(settings.run_dir / "docker.sock")
    yield client
    await client.close()
    service.stop()
    await running

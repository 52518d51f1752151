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
from tests.fakes import FakeManager

from .client import Client
from .fakes import FakeEngine


class FakeService(Service):
    """Tells when the gateway is ready; keeps descriptors if it has a manager."""

    def __init__(self, manager: FakeManager | None = None) -> None:
        super().__init__()
        self.is_ready = asyncio.Event()
        self._manager = manager

    @property
    def keeps_descriptors(self) -> bool:
        """See Service."""
        return self._manager is not None

    def store(self, name: str, descriptor: int, *, poll: bool = True) -> None:
        """See Service."""
        assert self._manager is not None
        self._manager.store(name, descriptor, poll=poll)

    def unstore(self, name: str) -> None:
        """See Service."""
        assert self._manager is not None
        self._manager.unstore(name)

    def stored(self) -> dict[str, list[int]]:
        """See Service."""
        return self._manager.stored() if self._manager is not None else {}

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
def service() -> FakeService:
    """The process that runs the gateway."""
    return FakeService()


@pytest.fixture
async def client(
    settings: Settings, engine: FakeEngine, service: FakeService
) -> AsyncIterator[Client]:
    """A client of a running gateway."""
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

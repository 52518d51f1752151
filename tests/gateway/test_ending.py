"""How a gateway ends that another one follows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.fakes import FakeManager

from .client import Client
from .conftest import FakeService
from .fakes import FakeEngine
from .test_streams import attach, mux


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    """What keeps the sessions."""
    made = FakeManager()
    yield made
    for name in tuple(made.kept):
        made.unstore(name)


@pytest.fixture
def service(manager: FakeManager) -> FakeService:
    """The process that runs the gateway."""
    return FakeService(manager)


async def test_attached_clients_do_not_wait_for_answers_under_way(
    client: Client, engine: FakeEngine, service: FakeService, manager: FakeManager
) -> None:
    """Their streams had been given up first, and the gateway stayed for up to four seconds."""
    web = await engine.running("web")
    await engine.running("slow")
    stream, _ = await attach(client, "web")
    engine.may_stop.clear()
    stopping = asyncio.create_task(client.post("/containers/slow/stop"))
    await engine.stopping.wait()
    service.stop()
    with pytest.raises(ConnectionError):
        while True:  # until it listens no more: it is stopping by then
            await (await client.connect()).request("GET", "/_ping")
    engine.prints(web.id, b"meanwhile\n")
    assert mux(await stream.reader.readexactly(8 + 10)) == [(1, b"meanwhile\n")]
    engine.may_stop.set()
    assert (await stopping).status == 204
    assert "client.0" in manager.kept

"""How a gateway ends that another one follows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from mooring.gateway.app import serve
from mooring.gateway.gateway import Gateway
from mooring.gateway.http.wire import HangupWatch
from mooring.gateway.sessions.plans import StartPlan
from mooring.gateway.sessions.store import Sessions
from mooring.kit.config import Settings
from mooring.kit.models.container import HostConfig, RemoveContainer, State
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


async def test_a_container_of_rm_whose_start_is_lost_is_removed(
    client: Client, engine: FakeEngine
) -> None:
    """As after a start that failed: `docker run --rm` waits for that."""
    for name, removed in (("once", True), ("kept", False)):
        body = {"Image": "bb", "Cmd": ["lost"], "HostConfig": {"AutoRemove": removed}}
        await client.post(f"/containers/create?name={name}", body)
        assert (await client.post(f"/containers/{name}/start")).status == 503
    async with asyncio.timeout(20):
        while (await client.get("/containers/once/json")).status != 404:
            pass
    assert (await client.get("/containers/kept/json")).status == 200


async def test_a_start_that_a_killed_gateway_had_in_hand_is_given_up_by_the_next(
    settings: Settings, engine: FakeEngine, manager: FakeManager
) -> None:
    once = await engine.add("once", host_config=HostConfig(auto_remove=True))
    begun = await engine.running("begun", host_config=HostConfig(auto_remove=True))
    before = Sessions(manager, HangupWatch())
    for record in (once, begun):
        assert before.undertake(StartPlan(kind="start", container=record.id)) is not None
    gateway, service = Gateway(settings), FakeService(manager)
    running = asyncio.create_task(serve(gateway, service))
    await service.is_ready.wait()
    mirror = gateway.engine.containers.mirror
    await mirror.until(once.id, lambda entry: entry is None or entry.record.state is State.REMOVED)
    service.stop()
    await running
    asked = [each.container for each in engine.asked if isinstance(each, RemoveContainer)]
    assert set(asked) == {once.id, begun.id}
    assert not any(each.force for each in engine.asked if isinstance(each, RemoveContainer))

"""A lifecycle manager killed at each of its fault points: nothing is lost, nothing done twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.errors import InvalidParameter, Unavailable
from mooring.kit.models.base import Done
from mooring.kit.models.container import (
    HostConfig,
    KillContainer,
    NameRecord,
    RenameContainer,
    State,
    StopContainer,
)
from mooring.kit.models.exec import CreateExec, ExecConfig, ExecCreated, ExecStarted, StartExec
from mooring.kit.models.host import HostStarted, NodeRecord
from mooring.kit.models.image import AddImage, ImageRemoved, RemoveImage
from mooring.kit.models.update import ContainerUpdated, UpdateContainer
from mooring.kit.store import key_for
from tests.fakes import FakeHost
from tests.forks import Forker

from .conftest import Client, image

pytestmark = pytest.mark.fault

POINTS = [
    "create.named",
    "create.recorded",
    "start.claimed",
    "start.hosted",
    "start.recorded",
    "exec.created",
    "exec.claimed",
    "exec.hosted",
    "pause.hosted",
    "unpause.hosted",
    "update.hosted",
    "update.recorded",
    "stop.claimed",
    "stop.hosted",
    "stop.recorded",
    "rename.claimed",
    "rename.recorded",
    "kill.claimed",
    "kill.hosted",
    "exit.applied",
    "remove.claimed",
    "remove.recorded",
    "remove.hosted",
    "remove.cleared",
    "image.decided",
    "image.tagged",
    "image.published",
]

EXPECTED = [
    "create",
    "start",
    "exec_create: top",
    "exec_start: top",
    "exec_die",
    "pause",
    "unpause",
    "update",
    "kill",
    "die",
    "stop",
    "start",
    "restart",
    "rename",
    "kill",
    "die",
    "start",
    "kill",
    "die",
    "destroy",
]


class Process:
    """A lifecycle manager that is started again whenever it dies."""

    def __init__(self, settings: Settings, forks: Forker) -> None:
        self._settings, self._forks = settings, forks
        self._faults = settings.run_dir / "faults"
        self._faults.mkdir(exist_ok=True)
        self.deaths = 0
        self.died = asyncio.Event()

    def arm(self, point: str) -> None:
        """Die at this point, once."""
        (self._faults / f"lifecycle.{point}").touch()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            process = await self._forks.start("lifecycle", self._settings, MOORING_FAULTS="1")
            try:
                await process.wait()
                self.deaths += 1
                self.died.set()
            finally:
                process.kill()
                await process.wait()


@contextlib.asynccontextmanager
async def running(process: Process) -> AsyncIterator[None]:
    """The process, kept running."""
    task = asyncio.create_task(process.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("point", POINTS)
async def test_a_kill_at_any_point_changes_nothing(
    bus: Bus, settings: Settings, forks: Forker, host: FakeHost, point: str
) -> None:
    process = Process(settings, forks)
    process.arm(point)
    client = Client(bus)
    async with running(process):
        await bus.request(
            subjects.IMAGE_ADD, AddImage(image=image(), references=["bb"], action=""), Done
        )
        await joined(bus)
        container = await live_through_everything(client, host)
        assert await client.actions(len(EXPECTED)) == EXPECTED
        await asyncio.wait_for(process.died.wait(), 10)
        await cleared(bus, host, container)
    assert process.deaths == 1
    # Not one event more, and none of them twice.
    last = await bus.last(subjects.EVENTS_STREAM, subjects.EVENTS)
    assert last is not None
    assert last.seq == len(EXPECTED)


async def live_through_everything(client: Client, host: FakeHost) -> str:
    """One container and all that can happen to it."""
    bus = client.bus
    container = await client.create("web")
    await client.start("web")
    config = ExecConfig(cmd=["top"])
    created = await bus.request(
        subjects.EXEC_CREATE, CreateExec(container="web", config=config), ExecCreated
    )
    await bus.request(subjects.EXEC_START, StartExec(exec_id=created.exec_id), ExecStarted)
    await host.exec_exit(created.exec_id, container, 0)
    await client.events(5)
    await client.ask(subjects.CONTAINER_PAUSE, "web")
    await client.ask(subjects.CONTAINER_UNPAUSE, "web")
    limits = HostConfig(memory=64 << 20)
    await bus.request(
        subjects.CONTAINER_UPDATE,
        UpdateContainer(container="web", host_config=limits),
        ContainerUpdated,
    )
    assert host.limits == {container: 64 << 20}
    await bus.request(subjects.CONTAINER_RESTART, StopContainer(container="web"), Done)
    await bus.request(subjects.CONTAINER_RENAME, RenameContainer(container="web", name="db"), Done)
    await bus.request(subjects.CONTAINER_KILL, KillContainer(container="db"), Done)
    await client.until(container, State.EXITED)
    await client.start("db")
    await client.remove("db", force=True)
    return container


async def joined(bus: Bus) -> None:
    """Wait until the host is known."""
    nodes = await bus.bucket(subjects.BUCKET_NODES, NodeRecord)
    await (await nodes.mirror()).until("node1", lambda entry: entry is not None, 20)


async def cleared(bus: Bus, host: FakeHost, container: str) -> None:
    """Wait until the host has nothing of the container, and no name is taken."""
    names = await (await bus.bucket(subjects.BUCKET_NAMES, NameRecord)).mirror()
    async with asyncio.timeout(20):
        for name in ("web", "db"):
            await names.until(key_for(name), lambda entry: entry is None)
        await host.until_removed(container)


async def test_a_start_whose_client_died_too_is_finished(
    bus: Bus, settings: Settings, forks: Forker, host: FakeHost
) -> None:
    process = Process(settings, forks)
    client = Client(bus)
    async with running(process):
        await bus.request(
            subjects.IMAGE_ADD, AddImage(image=image(), references=["bb"], action=""), Done
        )
        await joined(bus)
        container = await client.create("web")
        process.arm("start.claimed")
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(0.2):
                await client.start("web")
        record = await client.until(container, State.RUNNING)
        assert record.run == 1
        process.arm("stop.claimed")
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(0.2):
                await client.stop("web")
        await client.until(container, State.EXITED)
        assert await client.actions(5) == ["create", "start", "kill", "die", "stop"]
        assert process.deaths == 2


async def test_a_container_that_could_not_be_started_is_cleared_away_whatever_dies(
    bus: Bus, settings: Settings, forks: Forker, host: FakeHost
) -> None:
    process = Process(settings, forks)
    client = Client(bus)
    host.failure = HostStarted(error="no such file", exit_code=127)
    async with running(process):
        await bus.request(
            subjects.IMAGE_ADD, AddImage(image=image(), references=["bb"], action=""), Done
        )
        await joined(bus)
        container = await client.create("web", auto_remove=True)
        process.arm("start.refused")
        with pytest.raises(InvalidParameter, match="no such file"):
            await client.start("web")
        await asyncio.wait_for(process.died.wait(), 10)
        async with asyncio.timeout(20):
            await host.until_removed(container)
        assert await client.actions(2) == ["create", "destroy"]
    assert process.deaths == 1


@pytest.mark.parametrize("point", ["decided", "tagged", "deleted", "published"])
async def test_an_image_is_removed_once_whatever_dies(
    bus: Bus, settings: Settings, forks: Forker, host: FakeHost, point: str
) -> None:
    process = Process(settings, forks)
    async with running(process):
        await bus.request(
            subjects.IMAGE_ADD, AddImage(image=image(), references=["bb"], action=""), Done
        )
        process.arm(f"image.{point}")
        removed = await bus.request(
            subjects.IMAGE_REMOVE, RemoveImage(image="bb", request_id="r1"), ImageRemoved
        )
        await asyncio.wait_for(process.died.wait(), 10)
        assert await Client(bus).actions(2) == ["untag", "delete"]
    assert removed.untagged == ["bb:latest"]
    last = await bus.last(subjects.EVENTS_STREAM, subjects.EVENTS)
    assert last is not None
    assert last.seq == 2

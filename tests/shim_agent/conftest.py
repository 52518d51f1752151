"""An agent in the test's own process, the facts it tells, and shims that the test speaks for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import pytest

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.models.base import Model
from mooring.shim.agent import Agent
from mooring.shim.work import Work

from .fakes import CONTAINER, FakeShim

F = TypeVar("F", bound=Model)


class Facts:
    """The facts of this node, in the order of the stream."""

    def __init__(self) -> None:
        self.all: list[tuple[str, bytes]] = []
        self._arrived = asyncio.Event()
        self._taken = 0

    async def receive(self, subject: str, data: bytes) -> None:
        """From the bus."""
        self.all.append((subject, data))
        self._arrived.set()

    async def next(self, kind: str, model: type[F]) -> F:
        """The next fact, which is to be of this kind."""
        async with asyncio.timeout(10):
            while len(self.all) <= self._taken:
                self._arrived.clear()
                await self._arrived.wait()
        subject, data = self.all[self._taken]
        self._taken += 1
        assert subject.endswith(kind), f"{subject} instead of {kind}"
        return model.unpack(data)


@pytest.fixture
async def facts(bus: Bus) -> Facts:
    """Whatever is told from now on."""
    received = Facts()
    await bus.consume(
        subjects.FACTS_STREAM, "test", received.receive, subject=subjects.FACTS, group="test"
    )
    return received


Running = Callable[[], contextlib.AbstractAsyncContextManager[Agent]]


@pytest.fixture
def run_agent(settings: Settings) -> Running:
    """Starts an agent with a connection of its own."""

    @contextlib.asynccontextmanager
    async def run() -> AsyncIterator[Agent]:
        async with Bus.connect(settings, "agent") as bus, Work() as work:
            await bus.ensure_streams()
            agent = Agent(settings, bus, work)
            try:
                await agent.start()
                yield agent
            finally:
                agent.close()

    return run


@pytest.fixture
async def agent(run_agent: Running, bus: Bus) -> AsyncIterator[Agent]:
    """An agent that runs."""
    async with run_agent() as running:
        yield running


Shims = Callable[..., FakeShim]


@pytest.fixture
async def shim(settings: Settings) -> AsyncIterator[Shims]:
    """Makes shims, which end with the test."""
    made: list[FakeShim] = []

    def make(run: int = 1, id_: str = CONTAINER) -> FakeShim:
        made.append(FakeShim(settings, id_, run))
        return made[-1]

    yield make
    for one in made:
        one.cleanup()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something is true."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - files and foreign processes set no event
            await asyncio.sleep(0.001)

"""Two lifecycle managers at once: what one decides, the other respects."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from mooring.kit import subjects
from mooring.kit.config import Settings
from mooring.kit.errors import Conflict, EngineError, NotModified
from mooring.kit.models.container import ContainerRecord, NameRecord, State
from mooring.kit.store import key_for
from tests.fakes import FakeHost

from .conftest import Client, Replica, add_image, replica


@pytest.fixture
async def replicas(settings: Settings, host: FakeHost) -> AsyncIterator[list[Replica]]:
    """Two replicas in one group."""
    async with replica(settings, "one") as one, replica(settings, "two") as two:
        await add_image(one.bus)
        for each in (one, two):
            await each.engine.nodes.until("node1", lambda node: node is not None, 10)
            await each.engine.images.until("ab" * 32, lambda image: image is not None, 10)
            await each.engine.references.until(
                key_for("docker.io/library/bb:latest"), lambda tag: tag is not None, 10
            )
        yield [one, two]


@pytest.fixture
def client(replicas: list[Replica], host: FakeHost) -> Client:
    """A client of whichever replica answers."""
    return Client(host.bus)


async def test_of_many_creates_with_one_name_one_wins(client: Client) -> None:
    results = await asyncio.gather(
        *(client.create("web") for _ in range(200)), return_exceptions=True
    )
    created = [result for result in results if isinstance(result, str)]
    assert len(created) == 1
    assert all(isinstance(r, Conflict) for r in results if not isinstance(r, str))
    assert (await client.record(created[0])).name == "web"


async def test_names_given_by_us_are_all_different(client: Client) -> None:
    created = await asyncio.gather(*(client.create() for _ in range(100)))
    names = Counter([(await client.record(container)).name for container in created])
    assert len(names) == 100


async def test_starts_and_stops_at_once_leave_one_truth(
    client: Client, host: FakeHost, replicas: list[Replica]
) -> None:
    container = await client.create("web")
    work = [client.start("web") if i % 2 else client.stop("web") for i in range(100)]
    results = await asyncio.gather(*work, return_exceptions=True)
    failures = [r for r in results if isinstance(r, EngineError)]
    assert all(isinstance(failure, NotModified) for failure in failures), failures
    await client.until(container, State.EXITED, State.RUNNING)
    record = await client.record(container)
    run = host.runs.get(container)
    assert (record.state is State.RUNNING) == (run is not None and run.running)
    assert record.run == len(host.starts)
    # Every start and every end has its event, in an order that makes sense.
    actions = [action for action in await client.actions(record.event_serial) if action != "kill"]
    assert actions[0] == "create"
    pattern = ["start", "die", "stop"]
    assert all(action == pattern[i % 3] for i, action in enumerate(actions[1:])), actions


async def test_a_removal_by_one_is_known_to_the_other(
    client: Client, replicas: list[Replica]
) -> None:
    for _ in range(20):
        container = await client.create("web")
        await client.start("web")
        await client.remove("web", force=True)
        assert (await client.record(container)).state is State.REMOVED


@pytest.mark.parametrize("age", [10, 300])
async def test_events_of_a_replica_that_died_are_published_once(
    client: Client, replicas: list[Replica], age: int
) -> None:
    container = await client.create("web")
    stored = (await client.events(1))[0]
    bucket = await client.bus.bucket(subjects.BUCKET_CONTAINERS, ContainerRecord)
    entry = await bucket.get(container)
    # As a kill between the change and its events leaves it, some time ago.
    then = time.time_ns() - age * 1_000_000_000
    lost = stored.model_copy(
        update={"id": f"{container}.2", "action": "pause", "time_ns": then + 1}
    )
    first = stored.model_copy(update={"time_ns": then})
    record = entry.record.model_copy(update={"outbox": [first, lost], "event_serial": 2})
    await bucket.update(container, record, entry.revision)
    for each in replicas:
        await each.engine.containers.until(
            container, lambda r: r is not None and r.event_serial == 2, 10
        )
        await each.reconciler.look(ask_hosts=False)
    assert await client.actions(2) == ["create", "pause"]
    last = await client.bus.last(subjects.EVENTS_STREAM, subjects.EVENTS)
    assert last is not None
    assert last.seq == 2


async def test_a_claim_that_a_dead_replica_left_is_taken_over(
    client: Client, replicas: list[Replica]
) -> None:
    names = await client.bus.bucket(subjects.BUCKET_NAMES, NameRecord)
    claim = NameRecord(id="f" * 64, owner="dead", claimed_ns=replicas[0].engine.claim("").now)
    await names.create(key_for("web"), claim)
    container = await client.create("web")
    assert (await names.get(key_for("web"))).record.id == container


async def test_a_claim_that_a_living_replica_makes_is_respected(
    client: Client, replicas: list[Replica]
) -> None:
    names = await client.bus.bucket(subjects.BUCKET_NAMES, NameRecord)
    for each in replicas:
        owner, now = each.engine.owner, each.engine.claim("").now
        key = key_for(f"web{owner}")
        await names.create(key, NameRecord(id="f" * 64, owner=owner, claimed_ns=now))
        with each.engine.holding("f" * 64), pytest.raises(Conflict):
            await client.create(f"web{owner}")

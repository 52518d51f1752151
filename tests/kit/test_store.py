"""Buckets and their copies over a real nats-server."""

import asyncio

import pytest

from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.errors import Conflict, NotFound, StaleRevision, Unavailable
from mooring.kit.store import key_for, text_of
from tests.conftest import NatsProcess
from tests.kit.models import Record


async def test_a_record_is_read_back_as_it_was_written(bus: Bus) -> None:
    bucket = await bus.bucket("things", Record)
    revision = await bucket.create("a", Record(name="a", value=7))
    entry = await bucket.get("a")
    assert (entry.key, entry.record.value, entry.revision) == ("a", 7, revision)


async def test_a_missing_key_is_not_found_and_so_is_a_deleted_one(bus: Bus) -> None:
    bucket = await bus.bucket("things", Record)
    with pytest.raises(NotFound):
        await bucket.get("a")
    await bucket.put("a", Record(name="a"))
    await bucket.delete("a")
    with pytest.raises(NotFound):
        await bucket.get("a")


async def test_of_many_creates_of_one_key_one_wins(bus: Bus) -> None:
    bucket = await bus.bucket("things", Record)
    results = await asyncio.gather(
        *(bucket.create("a", Record(name="a", value=i)) for i in range(20)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, int) for result in results) == 1
    assert sum(type(result) is Conflict for result in results) == 19


async def test_a_key_that_was_deleted_can_be_created_again(bus: Bus) -> None:
    bucket = await bus.bucket("things", Record)
    await bucket.create("a", Record(name="a", value=1))
    await bucket.delete("a")
    await bucket.create("a", Record(name="a", value=2))
    assert (await bucket.get("a")).record.value == 2


async def test_of_many_updates_at_one_revision_one_wins(bus: Bus) -> None:
    bucket = await bus.bucket("things", Record)
    revision = await bucket.create("a", Record(name="a"))
    results = await asyncio.gather(
        *(bucket.update("a", Record(name="a", value=i), revision) for i in range(20)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, int) for result in results) == 1
    assert sum(isinstance(result, StaleRevision) for result in results) == 19


async def test_a_delete_at_an_old_revision_is_refused(bus: Bus) -> None:
    bucket = await bus.bucket("things", Record)
    revision = await bucket.create("a", Record(name="a"))
    await bucket.update("a", Record(name="a", value=2), revision)
    with pytest.raises(StaleRevision):
        await bucket.delete("a", revision)


async def test_a_copy_has_everything_and_follows(bus: Bus) -> None:
    bucket = await bus.bucket("things", Record)
    for i in range(50):
        await bucket.put(f"k{i}", Record(name="n", value=i))
    await bucket.delete("k0")
    mirror = await bucket.mirror()
    assert len(mirror) == 49
    assert "k0" not in mirror
    revision = await bucket.put("k1", Record(name="n", value=100))
    await mirror.reached(revision)
    assert mirror["k1"].record.value == 100
    await mirror.reached(await bucket.delete("k1"))
    assert mirror.get("k1") is None


async def test_a_revision_overwritten_before_it_was_seen_does_not_stall_waiting(bus: Bus) -> None:
    bucket = await bus.bucket("things", Record)
    mirror = await bucket.mirror()
    revisions = await asyncio.gather(
        *(bucket.put("a", Record(name="a", value=i)) for i in range(200))
    )
    await asyncio.gather(*(mirror.reached(revision) for revision in revisions))


async def test_waiting_for_a_revision_that_does_not_come_is_unavailable(bus: Bus) -> None:
    mirror = await (await bus.bucket("things", Record)).mirror()
    with pytest.raises(Unavailable, match="things"):
        await mirror.reached(10_000, timeout=0.05)


async def test_subscribers_see_old_and_new(bus: Bus) -> None:
    bucket = await bus.bucket("things", Record)
    mirror = await bucket.mirror()
    seen: list[tuple[str, int | None, int | None]] = []
    unsubscribe = mirror.subscribe(
        lambda key, old, new: seen.append(
            (key, old.record.value if old else None, new.record.value if new else None)
        )
    )
    await bucket.put("a", Record(name="a", value=1))
    await bucket.put("a", Record(name="a", value=2))
    await mirror.reached(await bucket.delete("a"))
    unsubscribe()
    await mirror.reached(await bucket.put("a", Record(name="a", value=3)))
    assert seen == [("a", None, 1), ("a", 1, 2), ("a", 2, None)]


async def test_until_waits_for_the_value_or_the_end_of_a_key(bus: Bus) -> None:
    bucket = await bus.bucket("things", Record)
    mirror = await bucket.mirror()
    waiting = asyncio.ensure_future(
        mirror.until("a", lambda entry: entry is not None and entry.record.value == 2)
    )
    for value in (1, 2):
        await bucket.put("a", Record(name="a", value=value))
    entry = await waiting
    assert entry is not None
    gone = asyncio.ensure_future(mirror.until("a", lambda entry: entry is None))
    await bucket.delete("a")
    assert await gone is None
    with pytest.raises(TimeoutError):
        await mirror.until("b", lambda entry: entry is not None, timeout=0.02)


async def test_a_copy_catches_up_with_what_changed_while_it_was_cut_off(
    bus: Bus, settings: Settings, nats: NatsProcess
) -> None:
    bucket = await bus.bucket("things", Record)
    mirror = await bucket.mirror()
    for i in range(10):
        await bucket.put(f"k{i}", Record(name="n", value=i))
    await asyncio.to_thread(nats.kill)
    writes = [
        asyncio.ensure_future(bucket.put(f"k{i}", Record(name="n", value=i + 100)))
        for i in range(5)
    ]
    deletes = [asyncio.ensure_future(bucket.delete(f"k{i}")) for i in range(5, 10)]
    await asyncio.to_thread(nats.start)
    await mirror.reached(max(await asyncio.gather(*writes, *deletes)), timeout=20)
    assert {key: mirror[key].record.value for key in mirror} == {f"k{i}": i + 100 for i in range(5)}


async def test_a_copy_of_a_bucket_made_anew_forgets_the_old_one(bus: Bus) -> None:
    bucket = await bus.bucket("things", Record)
    mirror = await bucket.mirror()
    for i in range(5):
        await mirror.reached(await bucket.put(f"old{i}", Record(name="n")))
    await bus.jetstream.api("STREAM.DELETE.KV_things", {})
    await bucket.ensure()
    await bucket.put("new", Record(name="n"))
    await mirror.until("new", lambda entry: entry is not None, timeout=30)
    await mirror.until("old0", lambda entry: entry is None, timeout=30)
    assert list(mirror) == ["new"]


async def test_an_update_whose_answer_was_lost_is_recognised_as_our_own(
    bus: Bus, nats: NatsProcess
) -> None:
    bucket = await bus.bucket("things", Record)
    revision = await bucket.create("a", Record(name="a"))
    for value in range(1, 6):
        updating = asyncio.ensure_future(
            bucket.update("a", Record(name="a", value=value), revision)
        )
        await asyncio.sleep(0)
        nats.kill()
        await asyncio.to_thread(nats.start)
        revision = await updating
        assert (await bucket.get("a")).record.value == value


@pytest.mark.parametrize("text", ["", "web", "docker.io/library/bb:latest", "ü * > . x"])
def test_any_text_makes_a_key_and_comes_back(text: str) -> None:
    key = key_for(text)
    assert key
    assert not set(key) & set(".*> \t")
    assert text_of(key) == text

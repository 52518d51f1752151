"""nats-server killed again and again under load: nothing is lost, nothing doubled."""

import asyncio

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from tests.conftest import NatsProcess
from tests.kit.models import Record

WRITERS, KILLS = 8, 5


async def test_nothing_acknowledged_is_lost_when_nats_is_killed_again_and_again(
    bus: Bus, settings: Settings, nats: NatsProcess
) -> None:
    bucket = await bus.bucket("things", Record)
    mirror = await bucket.mirror()
    stopping, finished = asyncio.Event(), asyncio.Event()
    events: list[int] = []
    facts: set[int] = set()
    everything = asyncio.Event()
    written: list[int] = []
    progress = asyncio.Semaphore(0)

    def check() -> None:
        if finished.is_set() and len(events) >= len(written) and len(facts) >= len(written):
            everything.set()

    async def follow() -> None:
        async for message in other.follow(
            subjects.EVENTS_STREAM, subject=subjects.EVENTS, since_ns=0
        ):
            events.append(Record.unpack(message.data).value)
            check()

    async def handle(subject: str, data: bytes) -> None:
        facts.add(Record.unpack(data).value)
        check()

    async def write(number: int) -> int:
        key, value = f"k{number}", 0
        revision = await bucket.create(key, Record(name=key))
        while not stopping.is_set():
            value += 1
            revision = await bucket.update(key, Record(name=key, value=value), revision)
            await mirror.reached(revision, timeout=30)
            assert mirror[key].record.value == value
            mark = number * 1_000_000 + value
            record = Record(name=key, value=mark)
            await bus.publish_durable(
                subjects.event("container", "x"), record, msg_id=f"event {mark}"
            )
            await bus.publish_durable(subjects.fact("n", "x"), record, msg_id=f"fact {mark}")
            written.append(mark)
            progress.release()
        return value

    async with Bus.connect(settings, "other") as other:
        await other.consume(
            subjects.FACTS_STREAM, "lifecycle", handle, subject=subjects.FACTS, group="g"
        )
        following = asyncio.ensure_future(follow())
        writing = [asyncio.ensure_future(write(number)) for number in range(WRITERS)]
        for _ in range(KILLS):
            for _ in range(50):
                await progress.acquire()
            await asyncio.to_thread(nats.kill)
            await asyncio.to_thread(nats.start)
        stopping.set()
        values = await asyncio.gather(*writing)
        finished.set()
        check()
        async with asyncio.timeout(30):
            await everything.wait()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert sorted(events) == sorted(written)
    assert facts == set(written)
    for number, value in enumerate(values):
        assert (await bucket.get(f"k{number}")).record.value == value

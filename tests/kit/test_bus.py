"""The bus over a real nats-server: requests, facts, events, and nats-server killed in between."""

import asyncio
import contextlib

import pytest

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.errors import Conflict, EngineError, InvalidParameter, NotFound, Unavailable
from mooring.kit.models.base import Request
from tests.conftest import NatsProcess
from tests.kit.models import Answer, Ask, Record


async def upper(request: Ask) -> Answer:
    return Answer(text=request.text.upper())


async def test_a_request_is_answered_by_its_handler(bus: Bus) -> None:
    await bus.serve("t.upper", Ask, upper)
    answer = await bus.request("t.upper", Ask(text="abc"), Answer)
    assert answer.text == "ABC"


async def test_an_error_travels_with_its_kind_and_whole_message(bus: Bus) -> None:
    async def refuse(request: Ask) -> Answer:
        raise Conflict("line one\nzweite Zeile: ü")

    await bus.serve("t.refuse", Ask, refuse)
    with pytest.raises(Conflict) as caught:
        await bus.request("t.refuse", Ask(), Answer)
    assert caught.value.message == "line one\nzweite Zeile: ü"


async def test_what_nobody_foresaw_is_answered_as_internal(bus: Bus) -> None:
    async def fail(request: Ask) -> Answer:
        raise ZeroDivisionError("nothing")

    await bus.serve("t.fail", Ask, fail)
    with pytest.raises(EngineError, match="nothing") as caught:
        await bus.request("t.fail", Ask(), Answer)
    assert caught.value.kind == "internal"


async def test_a_message_of_another_shape_is_refused_with_the_fields_name(bus: Bus) -> None:
    class Other(Request):
        wait: str

    await bus.serve("t.upper", Ask, upper)
    with pytest.raises(InvalidParameter, match="wait"):
        await bus.request("t.upper", Other(wait="long"), Answer)


async def test_nobody_there_is_unavailable_and_says_who(bus: Bus) -> None:
    with pytest.raises(Unavailable, match="lifecycle manager"):
        await bus.request(subjects.CONTAINER_START, Ask(), Answer, timeout=0.2)


async def test_a_service_that_comes_up_late_is_waited_for(bus: Bus) -> None:
    asking = asyncio.ensure_future(bus.request("t.late", Ask(text="x"), Answer, timeout=10))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(asking), 0.05)
    await bus.serve("t.late", Ask, upper)
    assert (await asking).text == "X"


async def test_a_request_sent_again_joins_the_one_at_work_and_is_done_once(bus: Bus) -> None:
    calls = 0
    began, go = asyncio.Event(), asyncio.Event()

    async def count(request: Ask) -> Answer:
        nonlocal calls
        calls += 1
        began.set()
        await go.wait()
        return Answer(text=str(calls))

    await bus.serve("t.count", Ask, count)
    both = [
        asyncio.ensure_future(bus.request("t.count", Ask(request_id="same"), Answer))
        for _ in range(2)
    ]
    await began.wait()
    go.set()
    assert [answer.text for answer in await asyncio.gather(*both)] == ["1", "1"]
    again = await bus.request("t.count", Ask(request_id="same"), Answer)
    assert again.text == "1"


async def test_the_same_message_sent_twice_is_two_requests(bus: Bus) -> None:
    calls = 0

    async def count(request: Ask) -> Answer:
        nonlocal calls
        calls += 1
        return Answer(text=str(calls))

    await bus.serve("t.count", Ask, count)
    message = Ask()
    answers = [await bus.request("t.count", message, Answer) for _ in range(2)]
    assert [answer.text for answer in answers] == ["1", "2"]


async def test_a_refusal_for_now_is_not_remembered(bus: Bus) -> None:
    calls = 0

    async def later(request: Ask) -> Answer:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise Unavailable("not yet")
        return Answer(text="now")

    await bus.serve("t.later", Ask, later)
    with pytest.raises(Unavailable):
        await bus.request("t.later", Ask(request_id="x"), Answer)
    assert (await bus.request("t.later", Ask(request_id="x"), Answer)).text == "now"


async def test_a_service_that_dies_with_a_request_leaves_it_to_its_successor(
    bus: Bus, settings: Settings
) -> None:
    taken = asyncio.Event()

    async def hang(request: Ask) -> Answer:
        taken.set()
        await asyncio.Event().wait()
        return Answer()

    dying = Bus(settings, "dies")
    await dying.client.start(10)
    await dying.serve("t.handed", Ask, hang, group="g")
    asking = asyncio.ensure_future(bus.request("t.handed", Ask(text="x"), Answer, timeout=20))
    await taken.wait()
    # As a SIGKILL does: the socket closes, and no answer was sent.
    assert dying.client._connection is not None
    dying.client._closed = True
    dying.client._connection._transport.abort()
    await bus.serve("t.handed", Ask, upper, group="g")
    assert (await asking).text == "X"
    await dying._close()


async def test_a_handlers_answer_that_is_too_large_is_an_error_not_silence(bus: Bus) -> None:
    async def huge(request: Ask) -> Answer:
        return Answer(text="x" * (9 << 20))

    await bus.serve("t.huge", Ask, huge)
    with pytest.raises(EngineError, match="too large"):
        await bus.request("t.huge", Ask(), Answer)


async def test_a_slow_handler_outlasts_the_silence_that_means_death(bus: Bus) -> None:
    calls = 0

    async def slow(request: Ask) -> Answer:
        nonlocal calls
        calls += 1
        await asyncio.sleep(2.6)
        return Answer(text="done")

    await bus.serve("t.slow", Ask, slow)
    assert (await bus.request("t.slow", Ask(), Answer, timeout=10)).text == "done"
    assert calls == 1


async def test_a_request_outlives_nats_being_killed_in_the_middle(
    bus: Bus, nats: NatsProcess
) -> None:
    calls = 0
    started, go = asyncio.Event(), asyncio.Event()

    async def hold(request: Ask) -> Answer:
        nonlocal calls
        calls += 1
        started.set()
        await go.wait()
        return Answer(text=request.text)

    await bus.serve("t.hold", Ask, hold)
    asking = asyncio.ensure_future(bus.request("t.hold", Ask(text="kept"), Answer, timeout=20))
    await started.wait()
    await asyncio.to_thread(nats.kill)
    await asyncio.to_thread(nats.start)
    go.set()
    assert (await asking).text == "kept"
    assert calls == 1


async def test_without_a_bus_a_request_is_unavailable_within_its_timeout(
    bus: Bus, nats: NatsProcess
) -> None:
    await asyncio.to_thread(nats.kill)
    with pytest.raises(Unavailable, match="away"):
        await bus.request("t.any", Ask(), Answer, timeout=0.3)


async def test_replicas_of_a_group_share_the_requests(bus: Bus, settings: Settings) -> None:
    served: list[int] = []

    def replica(number: int) -> object:
        async def handle(request: Ask) -> Answer:
            served.append(number)
            return Answer()

        return handle

    async with Bus.connect(settings, "second") as second:
        await bus.serve("t.share", Ask, replica(1), group="g")  # type: ignore[arg-type]
        await second.serve("t.share", Ask, replica(2), group="g")  # type: ignore[arg-type]
        await asyncio.gather(*(bus.request("t.share", Ask(), Answer) for _ in range(50)))
    assert len(served) == 50
    assert set(served) == {1, 2}


async def test_a_durable_message_is_stored_once_and_is_the_last(bus: Bus) -> None:
    subject = subjects.event("container", "start")
    for _ in range(2):
        await bus.publish_durable(subject, Record(name="a", value=1), msg_id="one")
    last = await bus.last(subjects.EVENTS_STREAM, subject)
    assert last is not None
    assert last.seq == 1
    assert last.time_ns > 1_600_000_000 * 10**9
    assert Record.unpack(last.data).value == 1
    assert await bus.last(subjects.EVENTS_STREAM, subjects.event("image", "pull")) is None


async def test_durable_messages_published_while_nats_is_away_arrive_in_full(
    bus: Bus, nats: NatsProcess
) -> None:
    subject = subjects.event("container", "die")
    await asyncio.to_thread(nats.kill)
    publishing = [
        asyncio.ensure_future(
            bus.publish_durable(subject, Record(name="n", value=i), msg_id=str(i))
        )
        for i in range(20)
    ]
    await asyncio.to_thread(nats.start)
    await asyncio.gather(*publishing)
    seen = set()
    async with contextlib.aclosing(
        bus.follow(subjects.EVENTS_STREAM, subject=subject, since_ns=0)
    ) as messages:
        async for message in messages:
            seen.add(Record.unpack(message.data).value)
            if len(seen) == 20:
                break
    assert seen == set(range(20))


async def test_what_was_acknowledged_survives_killing_nats_at_once(
    bus: Bus, nats: NatsProcess
) -> None:
    subject = subjects.event("container", "kill")
    for i in range(10):
        await bus.publish_durable(subject, Record(name="n", value=i), msg_id=f"k{i}")
        nats.kill()
        await asyncio.to_thread(nats.start)
        last = await bus.last(subjects.EVENTS_STREAM, subject)
        assert last is not None
        assert Record.unpack(last.data).value == i


async def test_facts_are_handled_until_a_handler_succeeds(bus: Bus) -> None:
    attempts: list[str] = []
    done = asyncio.Event()

    async def handle(subject: str, data: bytes) -> None:
        attempts.append(subject)
        if len(attempts) == 1:
            raise NotFound("not yet")
        done.set()

    await bus.consume(
        subjects.FACTS_STREAM, "lifecycle", handle, subject=subjects.FACTS, group="lifecycle"
    )
    await bus.publish_durable(subjects.fact("n1", "node"), Record(name="x"), msg_id="f1")
    await done.wait()
    assert attempts == ["mooring.facts.n1.node"] * 2


async def test_facts_published_before_anyone_consumes_are_kept(bus: Bus, nats: NatsProcess) -> None:
    for i in range(5):
        await bus.publish_durable(
            subjects.fact("n1", "node"), Record(name="x", value=i), msg_id=f"f{i}"
        )
    await asyncio.to_thread(nats.kill)
    await asyncio.to_thread(nats.start)
    values: set[int] = set()
    done = asyncio.Event()

    async def handle(subject: str, data: bytes) -> None:
        values.add(Record.unpack(data).value)
        if len(values) == 5:
            done.set()

    await bus.consume(
        subjects.FACTS_STREAM, "lifecycle", handle, subject=subjects.FACTS, group="lifecycle"
    )
    await done.wait()


async def test_facts_of_a_consumer_that_died_go_to_another(bus: Bus, settings: Settings) -> None:
    held = asyncio.Event()
    done = asyncio.Event()

    async def hold(subject: str, data: bytes) -> None:
        held.set()
        await asyncio.Event().wait()

    async def handle(subject: str, data: bytes) -> None:
        done.set()

    async with Bus.connect(settings, "dies") as dying:
        await dying.consume(
            subjects.FACTS_STREAM, "lifecycle", hold, subject=subjects.FACTS, group="lifecycle"
        )
        await bus.publish_durable(subjects.fact("n1", "node"), Record(name="x"), msg_id="f")
        await held.wait()
    await bus.consume(
        subjects.FACTS_STREAM, "lifecycle", handle, subject=subjects.FACTS, group="lifecycle"
    )
    await done.wait()


async def test_following_a_stream_goes_on_over_a_restart_without_gap_or_repeat(
    bus: Bus, nats: NatsProcess
) -> None:
    subject = subjects.event("container", "top")
    seen: list[int] = []

    async def read() -> None:
        async for message in bus.follow(subjects.EVENTS_STREAM, subject=subject, since_ns=0):
            seen.append(Record.unpack(message.data).value)
            if len(seen) == 30:
                return

    reading = asyncio.ensure_future(read())
    for i in range(30):
        await bus.publish_durable(subject, Record(name="n", value=i), msg_id=f"t{i}")
        if i in (9, 19):
            await asyncio.to_thread(nats.kill)
            await asyncio.to_thread(nats.start)
    await reading
    assert seen == list(range(30))


async def test_a_slow_follower_gets_everything(bus: Bus) -> None:
    subject = subjects.event("container", "many")
    count = 3000
    for chunk in range(0, count, 200):
        await asyncio.gather(
            *(
                bus.publish_durable(subject, Record(name="n", value=i), msg_id=f"m{i}")
                for i in range(chunk, chunk + 200)
            )
        )
    expected = 0
    async for message in bus.follow(subjects.EVENTS_STREAM, subject=subject, since_ns=0):
        expected += 1
        assert message.seq == expected
        if expected % 500 == 0:
            await asyncio.sleep(0.01)
        if expected == count:
            break


async def test_following_new_messages_only_skips_what_was_there(bus: Bus) -> None:
    subject = subjects.event("container", "new")
    await bus.publish_durable(subject, Record(name="old"), msg_id="old")
    messages = bus.follow(subjects.EVENTS_STREAM, subject=subject)
    first = asyncio.ensure_future(anext(messages))
    await asyncio.sleep(0.2)
    await bus.publish_durable(subject, Record(name="new"), msg_id="new")
    assert Record.unpack((await first).data).name == "new"
    await messages.aclose()

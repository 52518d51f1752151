"""Downloads and uploads over a real nats-server, with peers and nats-server dying in between."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from mooring.kit import downloads
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.errors import Conflict, NotFound, Unavailable
from mooring.kit.framing import END, PING, pack
from mooring.kit.models.base import Request
from mooring.kit.streams import Source, Upload, download, serve_downloads, serve_uploads, upload
from tests.conftest import NatsProcess
from tests.kit.models import Answer, Ask

CONTENT = b"".join(b"%09d\n" % i for i in range(300_000))


class Open(Request):
    offset: int = 0
    follow: bool = False


def at(request: Open, offset: int) -> Open:
    return request.model_copy(update={"offset": offset, "request_id": ""})


class Bytes:
    """A source in memory; with `follow` it waits at its end instead of ending."""

    def __init__(self, follow: bool = False) -> None:
        self.follow = follow
        self.furthest = 0
        self.closed = asyncio.Event()
        self.waiting = asyncio.Event()

    async def read(self, offset: int, limit: int) -> bytes:
        data = CONTENT[offset : offset + limit]
        self.furthest = max(self.furthest, offset + len(data))
        if not data and self.follow:
            self.waiting.set()
            await asyncio.Event().wait()
        return data

    async def close(self) -> None:
        self.closed.set()


class Opener:
    """Opens `Bytes` and remembers them."""

    def __init__(self) -> None:
        self.sources: list[Bytes] = []
        self.opened = asyncio.Event()

    async def __call__(self, request: Open) -> tuple[Source, int]:
        source = Bytes(request.follow)
        self.sources.append(source)
        self.opened.set()
        return source, request.offset


@pytest.fixture
async def far(settings: Settings) -> AsyncIterator[Bus]:
    """The other process's connection."""
    async with Bus.connect(settings, "far") as bus:
        yield bus


async def test_a_download_arrives_whole_and_says_why_it_ended(bus: Bus, far: Bus) -> None:
    await serve_downloads(far, "t.d", Open, Opener())
    received = bytearray()
    async with download(bus, "t.d", Open(), resume=at) as stream:
        async for offset, data in stream:
            assert offset == len(received)
            received += data
    assert received == CONTENT
    assert stream.reason == "end"


async def test_a_download_begins_where_its_source_says(bus: Bus, far: Bus) -> None:
    await serve_downloads(far, "t.d", Open, Opener())
    async with download(bus, "t.d", Open(offset=2_999_990), resume=at) as stream:
        assert stream.offset == 2_999_990
        assert [(offset, bytes(data)) async for offset, data in stream] == [
            (2_999_990, b"000299999\n")
        ]


async def test_a_download_that_is_refused_raises_before_it_begins(bus: Bus, far: Bus) -> None:
    async def refuse(request: Open) -> tuple[Source, int]:
        raise NotFound("No such container: web")

    await serve_downloads(far, "t.d", Open, refuse)
    with pytest.raises(NotFound, match="web"):
        async with download(bus, "t.d", Open(), resume=at):
            pass


async def test_a_source_that_fails_ends_the_download_with_its_words(bus: Bus, far: Bus) -> None:
    class Failing(Bytes):
        async def read(self, offset: int, limit: int) -> bytes:
            raise Conflict("the log is damaged")

    async def open_failing(request: Open) -> tuple[Source, int]:
        return Failing(), 0

    await serve_downloads(far, "t.d", Open, open_failing)
    async with download(bus, "t.d", Open(), resume=at) as stream:
        assert [item async for item in stream] == []
    assert stream.reason == "the log is damaged"


async def test_no_more_is_in_flight_than_the_reader_granted(bus: Bus, far: Bus) -> None:
    opener = Opener()
    await serve_downloads(far, "t.d", Open, opener)
    window = 256 << 10
    async with download(bus, "t.d", Open(), resume=at, window=window) as stream:
        items = aiter(stream)
        consumed = 0
        for _ in range(10):
            offset, data = await anext(items)
            consumed = offset + len(data)
            await asyncio.sleep(0.01)
            assert opener.sources[0].furthest <= consumed + window
        await items.aclose()  # type: ignore[attr-defined]


async def test_leaving_a_download_closes_its_source(bus: Bus, far: Bus) -> None:
    opener = Opener()
    await serve_downloads(far, "t.d", Open, opener)
    async with download(bus, "t.d", Open(follow=True, offset=len(CONTENT)), resume=at):
        await opener.sources[0].waiting.wait()
    await opener.sources[0].closed.wait()


async def test_a_download_resumes_at_its_byte_when_the_writer_is_restarted(
    bus: Bus, settings: Settings
) -> None:
    received = bytearray()
    halfway, restarted = asyncio.Event(), asyncio.Event()

    async def read() -> str:
        async with download(bus, "t.d", Open(), resume=at) as stream:
            async for offset, data in stream:
                assert offset == len(received)
                received.extend(data)
                if len(received) > len(CONTENT) // 2 and not halfway.is_set():
                    halfway.set()
                    await restarted.wait()
        return stream.reason

    async with Bus.connect(settings, "first") as first:
        await serve_downloads(first, "t.d", Open, Opener())
        reading = asyncio.ensure_future(read())
        await halfway.wait()
    async with Bus.connect(settings, "second") as second:
        await serve_downloads(second, "t.d", Open, Opener())
        restarted.set()
        assert await reading == "end"
    assert received == CONTENT


class Sure(Bytes):
    """A source that is told when its reader has everything."""

    def __init__(self) -> None:
        super().__init__()
        self.sure = asyncio.Event()

    def confirmed(self) -> None:
        self.sure.set()


async def test_a_source_is_sure_of_its_reader_only_when_that_says_so(bus: Bus, far: Bus) -> None:
    """What was sent, to the end, may have been lost on its way: the reader then comes again."""
    sources: list[Sure] = []

    async def open_sure(request: Open) -> tuple[Source, int]:
        sources.append(Sure())
        return sources[-1], request.offset

    await serve_downloads(far, "t.d", Open, open_sure)
    last = Open(offset=len(CONTENT) - 10)
    ended = asyncio.Event()
    inbox = bus.client.new_inbox()
    bus.client.subscribe(inbox, lambda message: ended.set() if message.data[0] == END else None)
    message = downloads.OpenDownload(request=last.pack(), data=inbox, credit=1 << 20)
    opened = await bus.request("t.d", message, downloads.DownloadOpened)
    async with asyncio.timeout(5):
        await ended.wait()
    ended.clear()
    # Asked, it says its last word again.
    await bus.client.request(opened.control, pack(PING, last.offset), 5)
    async with asyncio.timeout(5):
        await ended.wait()
        async with download(bus, "t.d", last, resume=at) as stream:
            assert [bytes(data) async for _, data in stream] == [b"000299999\n"]
        await sources[1].sure.wait()
    assert not sources[0].sure.is_set() and not sources[0].closed.is_set()


async def test_a_writer_that_vanishes_without_a_word_is_noticed(
    bus: Bus, settings: Settings
) -> None:
    opener = Opener()
    async with contextlib.AsyncExitStack() as stack:
        vanishing = await stack.enter_async_context(Bus.connect(settings, "vanishing"))
        await serve_downloads(vanishing, "t.d", Open, opener)
        received = bytearray()

        async def read() -> None:
            async with download(bus, "t.d", Open(follow=True), resume=at) as stream:
                async for _, data in stream:
                    received.extend(data)

        reading = asyncio.ensure_future(read())
        await opener.opened.wait()
        await opener.sources[0].waiting.wait()
        # As if its host had lost power: no END, nothing answers.
        assert vanishing.client._connection is not None
        vanishing.client._closed = True
        vanishing.client._connection._transport.abort()
        async with Bus.connect(settings, "successor") as successor:
            next_opener = Opener()
            await serve_downloads(successor, "t.d", Open, next_opener)
            await next_opener.opened.wait()
            await next_opener.sources[0].waiting.wait()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
    assert received == CONTENT


async def test_a_reader_goes_on_as_soon_as_another_writer_serves(
    bus: Bus, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody waits for silence here.
    monkeypatch.setattr(downloads, "SILENCE", 1000.0)
    async with contextlib.AsyncExitStack() as stack:
        killed = await stack.enter_async_context(Bus.connect(settings, "killed"))
        opener = Opener()
        await serve_downloads(killed, "t.d", Open, opener)
        async with download(bus, "t.d", Open(follow=True), resume=at) as stream:
            received = bytearray()
            chunks = aiter(stream)
            while len(received) < len(CONTENT):
                received += (await anext(chunks))[1]
            await opener.sources[0].waiting.wait()
            # As the kernel does for a process that is killed.
            killed.client._closed = True
            assert killed.client._connection is not None
            killed.client._connection._transport.abort()
            successor = await stack.enter_async_context(Bus.connect(settings, "successor"))
            next_opener = Opener()
            await serve_downloads(successor, "t.d", Open, next_opener)
            reading = asyncio.ensure_future(anext(chunks))
            await next_opener.opened.wait()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
    assert received == CONTENT


async def test_a_stream_goes_on_while_its_writer_lets_requests_end(bus: Bus, far: Bus) -> None:
    """As when an agent is replaced: a slow stop of one container is no pause for readers."""
    at_work, done = asyncio.Semaphore(0), asyncio.Event()

    async def slow(request: Ask) -> Answer:
        at_work.release()
        await done.wait()
        return Answer(text=f"{request.text} is over")

    opener = Opener()
    await serve_downloads(far, "t.d", Open, opener)
    asked = []
    for text in ("one", "two"):
        await far.serve(f"t.{text}", Ask, slow)
        request = bus.request(f"t.{text}", Ask(text=text), Answer, timeout=20)
        asked.append(asyncio.create_task(request))
        await at_work.acquire()
    async with download(bus, "t.d", Open(follow=True), resume=at) as stream:
        reader = aiter(stream)
        received = len((await anext(reader))[1])
        draining = asyncio.create_task(far.drain())
        while received < len(CONTENT):
            received += len((await anext(reader))[1])
        done.set()
        await draining
    assert [(await task).text for task in asked] == ["one is over", "two is over"]
    assert len(opener.sources) == 1


async def test_a_download_survives_nats_being_killed(bus: Bus, far: Bus, nats: NatsProcess) -> None:
    await serve_downloads(far, "t.d", Open, Opener())
    received = bytearray()
    kills = 0
    async with download(bus, "t.d", Open(), resume=at) as stream:
        async for offset, data in stream:
            assert offset == len(received)
            received += data
            if len(received) > (kills + 1) * 800_000 and kills < 2:
                kills += 1
                await asyncio.to_thread(nats.kill)
                await asyncio.to_thread(nats.start)
    assert received == CONTENT
    assert kills == 2


async def test_an_upload_arrives_whole_and_is_answered(bus: Bus, far: Bus) -> None:
    received = bytearray()

    async def receive(request: Ask, data: Upload) -> Answer:
        async for piece in data:
            received.extend(piece)
        return Answer(text=f"{request.text} {len(received)}")

    await serve_uploads(far, "t.u", Ask, receive)
    async with upload(bus, "t.u", Ask(text="got"), Answer) as writer:
        for begin in range(0, len(CONTENT), 1_000_000):
            await writer.write(CONTENT[begin : begin + 1_000_000])
        answer = await writer.finish()
    assert answer.text == f"got {len(CONTENT)}"
    assert received == CONTENT


async def test_an_upload_nobody_reads_is_held_back(bus: Bus, far: Bus) -> None:
    go = asyncio.Event()

    async def receive(request: Ask, data: Upload) -> Answer:
        await go.wait()
        return Answer(text=str(sum([len(piece) async for piece in data])))

    await serve_uploads(far, "t.u", Ask, receive)
    async with upload(bus, "t.u", Ask(), Answer) as writer:
        writing = asyncio.ensure_future(writer.write(CONTENT))
        done, _ = await asyncio.wait({writing}, timeout=0.3)
        assert not done
        go.set()
        await writing
        assert (await writer.finish()).text == str(len(CONTENT))


async def test_the_receivers_error_reaches_the_writer_in_the_middle(bus: Bus, far: Bus) -> None:
    async def refuse(request: Ask, data: Upload) -> Answer:
        async for _ in data:
            raise Conflict("not a tar archive")
        return Answer()

    await serve_uploads(far, "t.u", Ask, refuse)
    with pytest.raises(Conflict, match="not a tar archive"):
        async with upload(bus, "t.u", Ask(), Answer) as writer:
            for _ in range(10):
                await writer.write(CONTENT)
            await writer.finish()


async def test_an_upload_broken_off_is_noticed_by_its_receiver(bus: Bus, far: Bus) -> None:
    broken: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def receive(request: Ask, data: Upload) -> Answer:
        try:
            async for _ in data:
                pass
        except Unavailable as exc:
            broken.set_result(exc)
            raise
        return Answer()

    await serve_uploads(far, "t.u", Ask, receive)
    async with upload(bus, "t.u", Ask(), Answer) as writer:
        await writer.write(b"half")
    assert "broken off" in str(await broken)


async def test_an_upload_survives_nats_being_killed(bus: Bus, far: Bus, nats: NatsProcess) -> None:
    received = bytearray()

    async def receive(request: Ask, data: Upload) -> Answer:
        async for piece in data:
            received.extend(piece)
        return Answer(text="whole")

    await serve_uploads(far, "t.u", Ask, receive)
    async with upload(bus, "t.u", Ask(), Answer) as writer:
        for begin in range(0, len(CONTENT), 500_000):
            await writer.write(CONTENT[begin : begin + 500_000])
            if begin in (1_000_000, 2_000_000):
                await asyncio.to_thread(nats.kill)
                await asyncio.to_thread(nats.start)
        assert (await writer.finish()).text == "whole"
    assert received == CONTENT

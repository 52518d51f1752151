"""Streams of output: from any place, to the end of a run, resumed at the byte."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator

import pytest

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.errors import NotFound
from mooring.kit.models.base import Done
from mooring.kit.models.exec import ExecConfig, ExecStarted
from mooring.kit.models.host import ExecExited, HostContainer, HostExec, OpenStream
from mooring.kit.streams import Download, download
from mooring.shim.agent import Agent
from mooring.shim.frames import RUN_BEGINS, RUN_ENDS, STDERR, STDOUT, segment_name
from mooring.shim.logread import frames

from .conftest import Facts, Running, Shims, until
from .fakes import CONTAINER, NOBODY, frame


def at(request: OpenStream, offset: int) -> OpenStream:
    """The same stream from an offset on."""
    return request.model_copy(update={"offset": offset, "tail": None, "at_run": None})


@contextlib.asynccontextmanager
async def opened(bus: Bus, settings: Settings, request: OpenStream) -> AsyncIterator[Reading]:
    subject = subjects.agent(settings.node_id, subjects.AGENT_STREAM_OPEN)
    async with download(bus, subject, request, resume=at) as stream:
        yield Reading(stream)


class Reading:
    """What a stream carried."""

    def __init__(self, stream: Download[OpenStream]) -> None:
        self.stream = stream
        self.data = b""
        self._chunks = aiter(stream)

    async def until(self, text: bytes) -> None:
        """Read on until the output contains this."""
        async with asyncio.timeout(15):
            while text not in self.text:
                _, chunk = await anext(self._chunks)
                self.data += chunk

    async def rest(self) -> bytes:
        """Read to the end; everything that was printed."""
        async with asyncio.timeout(60):
            async for _, chunk in self._chunks:
                self.data += chunk
        assert self.stream.reason == "end"
        return self.text

    @property
    def text(self) -> bytes:
        """The payload of stdout and stderr."""
        kept = (bytes(p) for _, stream, _, p in frames(self.data) if stream in (STDOUT, STDERR))
        return b"".join(kept)


async def test_what_is_there_is_read_without_following(
    agent: Agent, bus: Bus, settings: Settings, shim: Shims
) -> None:
    one = shim().start()
    one.print(b"one\n")
    one.print(b"two\n", STDERR)
    async with opened(bus, settings, OpenStream(id=CONTAINER)) as reading:
        assert await reading.rest() == b"one\ntwo\n"


async def test_an_attached_stream_waits_for_its_run_and_ends_with_it(
    agent: Agent, bus: Bus, settings: Settings, shim: Shims
) -> None:
    request = OpenStream(id=CONTAINER, at_run=1, until_run=1, follow=True)
    async with opened(bus, settings, request) as reading:
        one = shim().start()
        one.print(b"first\n")
        await reading.until(b"first\n")
        one.print(b"second\n")
        await reading.until(b"second\n")
        one.exit(0)
        assert await reading.rest() == b"first\nsecond\n"


async def test_a_stream_of_a_second_run_does_not_begin_with_the_first(
    agent: Agent, bus: Bus, settings: Settings, shim: Shims
) -> None:
    one = shim().start()
    one.print(b"before\n")
    one.exit(0)
    request = OpenStream(id=CONTAINER, at_run=2, until_run=2, follow=True)
    async with opened(bus, settings, request) as reading:
        two = shim(run=2).start()
        two.print(b"after\n")
        two.exit(0)
        assert await reading.rest() == b"after\n"


async def test_following_a_run_ends_before_the_next_one(
    agent: Agent, bus: Bus, settings: Settings, shim: Shims
) -> None:
    shim().start().exit(0)
    two = shim(run=2).start()
    two.print(b"next\n")
    await until(lambda: agent.containers.get(CONTAINER).latest_number == 2)
    request = OpenStream(id=CONTAINER, at_run=1, until_run=1, follow=True)
    async with opened(bus, settings, request) as reading:
        assert await reading.rest() == b""


async def test_the_tail_may_begin_inside_a_frame(
    agent: Agent, bus: Bus, settings: Settings, shim: Shims
) -> None:
    one = shim().start()
    one.print(b"1\n2\n3\n4\n")
    async with opened(bus, settings, OpenStream(id=CONTAINER, tail=2)) as reading:
        assert await reading.rest() == b"3\n4\n"


async def test_from_the_end_only_what_is_new_is_read(
    agent: Agent, bus: Bus, settings: Settings, shim: Shims
) -> None:
    one = shim().start()
    one.print(b"old\n")
    await until(lambda: CONTAINER in agent.containers)
    request = OpenStream(id=CONTAINER, from_end=True, follow=True)
    async with opened(bus, settings, request) as reading:
        one.print(b"new\n")
        one.exit(0)
        assert await reading.rest() == b"new\n"


async def test_a_reader_goes_on_at_its_byte_when_the_agent_is_replaced(
    run_agent: Running, bus: Bus, settings: Settings, shim: Shims
) -> None:
    request = OpenStream(id=CONTAINER, at_run=1, until_run=1, follow=True)
    async with contextlib.AsyncExitStack() as stack:
        async with run_agent():
            reading = await stack.enter_async_context(opened(bus, settings, request))
            one = shim().start()
            one.print(b"before\n")
            await reading.until(b"before\n")
        one.print(b"between\n")
        async with run_agent():
            await reading.until(b"between\n")
            one.print(b"after\n")
            one.exit(0)
            assert await reading.rest() == b"before\nbetween\nafter\n"


async def test_large_output_arrives_whole(
    agent: Agent, bus: Bus, settings: Settings, shim: Shims
) -> None:
    one = shim().start()
    block = bytes(range(256)) * 1024
    for _ in range(40):
        one.print(block)
    one.exit(0)
    async with opened(bus, settings, OpenStream(id=CONTAINER)) as reading:
        assert await reading.rest() == block * 40


async def start_exec(bus: Bus, settings: Settings, **fields: object) -> ExecStarted:
    subject = subjects.agent(settings.node_id, subjects.AGENT_EXEC_START)
    request = HostExec.model_validate(
        {"id": CONTAINER, "exec_id": "e1", "config": ExecConfig(cmd=["ls"]), **fields}
    )
    return await bus.request(subject, request, ExecStarted)


async def test_the_output_of_an_exec_may_be_opened_before_it_starts(
    agent: Agent, bus: Bus, settings: Settings, shim: Shims, facts: Facts
) -> None:
    one = shim().start()
    await until(lambda: CONTAINER in agent.containers)
    async with opened(bus, settings, OpenStream(id=CONTAINER, exec_id="e1")) as reading:
        assert (await start_exec(bus, settings)).pid == NOBODY
        one.append(STDOUT, b"out\n", "e1")
        await reading.until(b"out\n")
        one.append(STDOUT, b"last\n", "e1")
        one.exec_exit("e1", 5)
        assert await reading.rest() == b"out\nlast\n"
    fact = await facts.next(subjects.FACT_EXEC_EXITED, ExecExited)
    assert (fact.id, fact.container, fact.exit_code) == ("e1", CONTAINER, 5)
    await until(lambda: any(op["op"] == "exec_forget" for op in one.ops))


async def test_a_shim_prepares_what_it_is_asked_for_later(
    agent: Agent, bus: Bus, settings: Settings, shim: Shims
) -> None:
    one = shim().start()
    await until(lambda: CONTAINER in agent.containers)
    subject = subjects.agent(settings.node_id, subjects.AGENT_EXEC_PREPARE)
    request = HostExec(id=CONTAINER, run=1, exec_id="e1", config=ExecConfig(cmd=["ls"]))
    await bus.publish(subject, request)
    await bus.publish(subject, request.model_copy(update={"run": 2, "exec_id": "e2"}))
    await start_exec(bus, settings)
    await bus.publish(subject, request)
    await start_exec(bus, settings, exec_id="e3")
    asked = [op for op in one.ops if op["op"].startswith("exec")]
    assert [(op["op"], op["exec"]) for op in asked] == [
        ("exec_prepare", "e1"),
        ("exec", "e1"),
        ("exec", "e3"),
    ]
    same = ("process", "tty", "stdin", "output", "console_size")
    assert [asked[0][key] for key in same] == [asked[1][key] for key in same]


async def test_an_exec_that_nobody_reads_is_forgotten_at_once(
    agent: Agent, bus: Bus, settings: Settings, shim: Shims, facts: Facts
) -> None:
    one = shim().start()
    await until(lambda: CONTAINER in agent.containers)
    await start_exec(bus, settings, attach=False)
    one.exec_exit("e1", 0)
    await facts.next(subjects.FACT_EXEC_EXITED, ExecExited)
    await until(lambda: any(op["op"] == "exec_forget" for op in one.ops))
    assert (one.directory / "execs" / "e1" / "exit.acked").exists()


async def test_an_exec_whose_program_is_missing_says_so_and_has_its_exit_code(
    agent: Agent, bus: Bus, settings: Settings, shim: Shims, facts: Facts
) -> None:
    one = shim().start()
    one.refuse["exec"] = {
        "kind": "internal",
        "message": 'exec: "nope": executable file not found in $PATH',
        "exit_code": 127,
    }
    await until(lambda: CONTAINER in agent.containers)
    async with opened(bus, settings, OpenStream(id=CONTAINER, exec_id="e1")) as reading:
        answer = await start_exec(bus, settings)
        assert answer.exit_code == 127
        assert "executable file not found in $PATH" in answer.error
        assert await reading.rest() == b""
    fact = await facts.next(subjects.FACT_EXEC_EXITED, ExecExited)
    assert fact.exit_code == 127


async def test_an_exec_that_ended_while_no_agent_ran_is_told(
    run_agent: Running, bus: Bus, settings: Settings, shim: Shims, facts: Facts
) -> None:
    one = shim().start(hello=False)
    async with run_agent() as agent:
        await until(lambda: agent.containers.get(CONTAINER).runs[1].channel is not None)
        await start_exec(bus, settings)
    one.exec_exit("e1", 3)
    async with run_agent():
        fact = await facts.next(subjects.FACT_EXEC_EXITED, ExecExited)
    assert fact.exit_code == 3


async def test_what_was_printed_is_read_to_the_end_though_the_container_is_removed(
    agent: Agent, bus: Bus, settings: Settings, shim: Shims
) -> None:
    request = OpenStream(id=CONTAINER, at_run=1, until_run=1, follow=True)
    async with opened(bus, settings, request) as reading:
        one = shim().start()
        block = b"0123456789abcdef" * 4096
        for _ in range(80):
            one.print(block)
        one.exit(0)
        await until((one.directory / "exit.acked").exists)
        subject = subjects.agent(settings.node_id, subjects.AGENT_FORGET)
        await bus.request(subject, HostContainer(id=CONTAINER), Done)
        shutil.rmtree(one.container)
        assert await reading.rest() == block * 80


async def test_a_reader_of_a_run_that_an_agent_never_knew_reads_to_its_end(
    agent: Agent, bus: Bus, settings: Settings, shim: Shims
) -> None:
    one = shim()
    one.start(hello=False).print(b"line\n")
    one.exit(0, announce=False)
    # What the host keeps of it when its end is known to all: the log.
    shutil.rmtree(one.directory)
    request = OpenStream(id=CONTAINER, offset=0, follow=True, until_run=1)
    async with opened(bus, settings, request) as reading:
        assert await reading.rest() == b"line\n"


async def test_a_tail_that_broke_before_its_first_byte_begins_with_its_header_again(
    agent: Agent, bus: Bus, settings: Settings, shim: Shims
) -> None:
    shim().start().print(b"one\ntwo\nthree\n")
    async with opened(bus, settings, OpenStream(id=CONTAINER, tail=2)) as reading:
        begin = reading.stream.begin
    again = OpenStream(id=CONTAINER, offset=begin, begun=False)
    async with opened(bus, settings, again) as reading:
        assert await reading.rest() == b"two\nthree\n"


async def test_a_shim_is_told_how_far_attached_readers_are(
    agent: Agent, bus: Bus, settings: Settings, shim: Shims
) -> None:
    one = shim().start()
    one.print(b"before\n")
    end = (one.log / segment_name(0)).stat().st_size
    request = OpenStream(id=CONTAINER, from_end=True, follow=True, until_run=1, reader="me")
    async with opened(bus, settings, request):
        assert not [op for op in one.ops if op["op"] == "pin"]
        one.tell({"event": "press"})
        await until(lambda: any(op["op"] == "pin" for op in one.ops))
        assert one.ops[-1]["readers"] == {"me": end}
        async with opened(bus, settings, OpenStream(id=CONTAINER, follow=True, until_run=1)):
            pass
    await until(lambda: one.ops[-1].get("readers") == {})


async def test_a_reader_that_comes_back_when_all_is_gone_is_told_so(
    agent: Agent, bus: Bus, settings: Settings
) -> None:
    request = OpenStream(id=CONTAINER, offset=100, follow=True, until_run=1)
    with pytest.raises(NotFound, match="No such container"):
        async with opened(bus, settings, request):
            pass
    # Nothing read yet: it may be waiting for a container that was never started, unless
    # the worker has noted that it was removed.
    again = request.model_copy(update={"offset": 0})
    async with opened(bus, settings, again):
        pass
    removed = settings.run_dir / "shims" / ".removed"
    removed.mkdir()
    (removed / CONTAINER).touch()
    with pytest.raises(NotFound, match="No such container"):
        async with opened(bus, settings, again):
            pass


@pytest.mark.parametrize(
    "ended", [b"", frame(RUN_ENDS, b'{"run":1,"exit_code":137,"undone":true}')]
)
async def test_a_reader_waits_for_the_start_that_is_made_again_after_one_was_undone(
    agent: Agent, shim: Shims, bus: Bus, settings: Settings, ended: bytes
) -> None:
    one = shim()
    one.log.mkdir(parents=True)
    (one.log / segment_name(0)).write_bytes(frame(RUN_BEGINS, b"1") + ended)
    request = OpenStream(id=CONTAINER, offset=0, follow=True, until_run=1)
    async with opened(bus, settings, request) as reading:
        one.start().print(b"hello\n")
        one.exit(0)
        assert await reading.rest() == b"hello\n"

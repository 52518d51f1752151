"""What a build says: lines, at any offset, never more in memory than a reader can be behind."""

from __future__ import annotations

import asyncio
import json

from mooring.runtime.build.output import Output


async def everything(output: Output) -> list[dict[str, object]]:
    data = b""
    while piece := await output.read(len(data), 7):
        data += piece
    return [json.loads(line) for line in data.splitlines()]


async def test_lines_are_read_from_any_offset_until_the_end() -> None:
    output = Output()
    output.say("a<b")
    output.say_red("é")
    output.failed("no", 3)
    output.end()
    assert await everything(output) == [
        {"stream": "a<b"},
        {"stream": "\x1b[91mé\x1b[0m"},
        {"errorDetail": {"code": 3, "message": "no"}, "error": "no"},
    ]
    assert await output.read(0, 1 << 20) == await output.read(0, 1 << 20)


async def test_a_reader_waits_for_what_is_not_said_yet() -> None:
    output = Output()
    reading = asyncio.ensure_future(output.read(0, 100))
    await asyncio.sleep(0)
    assert not reading.done()
    output.say("x")
    assert json.loads(await reading) == {"stream": "x"}


async def test_a_writer_waits_for_its_reader() -> None:
    output = Output()
    output.say("x" * (2 << 20))
    waiting = asyncio.ensure_future(output.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await output.read(2 << 20, 10)
    await waiting


async def test_a_quiet_build_says_its_result_or_all_when_it_fails() -> None:
    output = Output(quiet=True)
    output.say("Step")
    output.image_id("sha256:1")
    assert not output.started
    output.result("sha256:1")
    output.end()
    assert await everything(output) == [{"stream": "sha256:1\n"}]
    failing = Output(quiet=True)
    failing.say("Step")
    failing.failed("no")
    failing.end()
    assert [line.get("stream") for line in await everything(failing)] == ["Step", None]

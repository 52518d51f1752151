"""Logs carry what is being worked on."""

import asyncio
import json
import logging

import pytest

from mooring.kit import log


@pytest.fixture
def record() -> logging.LogRecord:
    return logging.LogRecord("mooring.x", logging.INFO, "x.py", 1, "started %s", ("web",), None)


def test_a_json_line_has_the_container_and_the_request(record: logging.LogRecord) -> None:
    with log.bind(container="web", request="r-1"):
        entry = json.loads(log.JsonFormatter("runtime").format(record))
    assert entry["message"] == "started web"
    assert (entry["service"], entry["level"]) == ("runtime", "info")
    assert (entry["container"], entry["request"]) == ("web", "r-1")


def test_text_has_them_behind_the_message(record: logging.LogRecord) -> None:
    with log.bind(container="web"), log.bind(run="2"):
        line = log.TextFormatter("runtime").format(record)
    assert line.endswith("runtime INFO started web (container=web run=2)")


def test_what_was_bound_ends_with_its_block(record: logging.LogRecord) -> None:
    with log.bind(container="web"):
        pass
    assert "container" not in json.loads(log.JsonFormatter("x").format(record))


async def test_a_tasks_context_is_its_own(record: logging.LogRecord) -> None:
    async def work(name: str) -> str:
        log.set_context(container=name)
        await asyncio.sleep(0)
        return str(json.loads(log.JsonFormatter("x").format(record))["container"])

    assert list(await asyncio.gather(work("a"), work("b"))) == ["a", "b"]


def test_a_traceback_is_part_of_the_line() -> None:
    try:
        raise ValueError("broken")
    except ValueError as exc:
        info = (ValueError, exc, exc.__traceback__)
        record = logging.LogRecord("m", logging.ERROR, "", 1, "failed", (), info)
    assert "broken" in json.loads(log.JsonFormatter("x").format(record))["traceback"]

"""Commands about a running container: stop, kill, pause, resize, stdin, top, stats, report."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TypeVar

import pytest

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.errors import Conflict, InvalidParameter, NotFound, Unavailable
from mooring.kit.models.base import Done, Model, Request
from mooring.kit.models.host import (
    ContainerExited,
    HostContainer,
    HostKill,
    HostResize,
    HostStop,
    HostTop,
    Report,
    StatsSample,
    StdinAck,
    StdinChunk,
    TopResult,
)
from mooring.shim.agent import Agent

from .conftest import Facts, Running, Shims, until
from .fakes import CONTAINER, SIGKILL, SIGTERM, FakeShim, write_policy

R = TypeVar("R", bound=Model)


class Asking:
    """Asks the agent of this node."""

    def __init__(self, bus: Bus, node: str) -> None:
        self._bus = bus
        self._node = node

    async def __call__(self, verb: str, request: Request, reply: type[R]) -> R:
        return await self._bus.request(subjects.agent(self._node, verb), request, reply)


@pytest.fixture
def ask(bus: Bus, settings: Settings) -> Asking:
    return Asking(bus, settings.node_id)


@pytest.fixture
async def one(agent: Agent, shim: Shims) -> FakeShim:
    """A shim that the agent knows."""
    made = shim().start()
    await until(lambda: CONTAINER in agent.containers)
    return made


def asked(one: FakeShim, op: str) -> list[dict[str, object]]:
    return [message for message in one.ops if message["op"] == op]


async def test_stop_signals_and_answers_when_the_exit_was_told(
    ask: Asking, one: FakeShim, facts: Facts
) -> None:
    await ask(subjects.AGENT_STOP, HostStop(id=CONTAINER, signal=SIGTERM), Done)
    assert (one.directory / "exit.acked").exists()
    assert (await facts.next(subjects.FACT_EXITED, ContainerExited)).exit_code == 143
    assert [message["signal"] for message in asked(one, "kill")] == [SIGTERM]


async def test_stop_kills_what_does_not_listen(ask: Asking, one: FakeShim, facts: Facts) -> None:
    one.on_signal = {SIGKILL: 137}
    await ask(subjects.AGENT_STOP, HostStop(id=CONTAINER, signal=SIGTERM, timeout=0), Done)
    assert (await facts.next(subjects.FACT_EXITED, ContainerExited)).exit_code == 137
    assert [message["signal"] for message in asked(one, "kill")] == [SIGTERM, SIGKILL]


async def test_stop_is_done_when_nothing_runs(ask: Asking, agent: Agent) -> None:
    await ask(subjects.AGENT_STOP, HostStop(id=CONTAINER), Done)


async def test_stop_of_an_older_run_leaves_the_newer_alone(
    ask: Asking, agent: Agent, shim: Shims
) -> None:
    two = shim(run=2).start()
    await until(lambda: CONTAINER in agent.containers)
    await ask(subjects.AGENT_STOP, HostStop(id=CONTAINER, run=1), Done)
    assert not asked(two, "kill")


async def test_stop_of_a_paused_container_thaws_it(
    ask: Asking, one: FakeShim, facts: Facts
) -> None:
    await ask(subjects.AGENT_PAUSE, HostContainer(id=CONTAINER), Done)
    one.on_signal = {}
    stopping = asyncio.ensure_future(
        ask(subjects.AGENT_STOP, HostStop(id=CONTAINER, timeout=-1), Done)
    )
    await until(lambda: bool(asked(one, "resume")))
    one.exit(0)
    await stopping
    assert [m["op"] for m in one.ops if m["op"] != "watch_log"][:3] == ["pause", "kill", "resume"]


async def test_kill_answers_once_a_signal_is_sent_and_sigkill_once_it_has_exited(
    ask: Asking, one: FakeShim, facts: Facts
) -> None:
    await ask(subjects.AGENT_KILL, HostKill(id=CONTAINER, signal=1), Done)
    assert not one.ended
    await ask(subjects.AGENT_KILL, HostKill(id=CONTAINER), Done)
    assert (one.directory / "exit.acked").exists()


async def test_kill_of_what_does_not_run_is_a_conflict(ask: Asking, agent: Agent) -> None:
    with pytest.raises((Conflict, NotFound)):
        await ask(subjects.AGENT_KILL, HostKill(id=CONTAINER), Done)


async def test_resize_reaches_the_terminal(ask: Asking, one: FakeShim) -> None:
    await ask(subjects.AGENT_RESIZE, HostResize(id=CONTAINER, rows=24, columns=80), Done)
    assert [(m["rows"], m["columns"]) for m in asked(one, "resize")] == [(24, 80)]


async def test_stdin_waits_for_its_run_and_is_written_once(
    ask: Asking, agent: Agent, shim: Shims
) -> None:
    chunk = StdinChunk(id=CONTAINER, run=1, session="s", offset=0, data=b"hello")
    writing = asyncio.ensure_future(ask(subjects.AGENT_STDIN, chunk, StdinAck))
    one = shim().start()
    assert (await writing).offset == 5
    again = StdinChunk(id=CONTAINER, run=1, session="s", offset=0, data=b"hello you", eof=True)
    answer = await ask(subjects.AGENT_STDIN, again, StdinAck)
    assert (answer.offset, answer.closed) == (9, True)
    assert one.stdin == b"hello you"


async def test_stdin_of_a_container_that_exited_is_closed(
    ask: Asking, one: FakeShim, facts: Facts
) -> None:
    one.exit(0)
    await facts.next(subjects.FACT_EXITED, ContainerExited)
    chunk = StdinChunk(id=CONTAINER, run=1, session="s", offset=0, data=b"x")
    assert (await ask(subjects.AGENT_STDIN, chunk, StdinAck)).closed


async def test_top_shows_the_processes_of_the_container_only(ask: Asking, one: FakeShim) -> None:
    result = await ask(subjects.AGENT_TOP, HostTop(id=CONTAINER), TopResult)
    column = result.titles.index("PID")
    assert [row[column] for row in result.processes] == [str(os.getpid())]


async def test_top_with_a_wrong_argument_says_what_ps_said(ask: Asking, one: FakeShim) -> None:
    with pytest.raises(InvalidParameter, match="error running ps"):
        await ask(subjects.AGENT_TOP, HostTop(id=CONTAINER, arguments="--nope"), TopResult)


async def test_stats_are_nested_as_docker_nests_them(ask: Asking, one: FakeShim) -> None:
    sample = await ask(subjects.AGENT_STATS, HostContainer(id=CONTAINER), StatsSample)
    assert sample.running
    assert sample.stats["memory_stats"]["usage"] == 4096
    assert sample.stats["pids_stats"] == {"current": 3}


async def test_the_report_has_what_runs_and_what_has_exited(
    ask: Asking, agent: Agent, shim: Shims, facts: Facts
) -> None:
    shim().start()
    shim(id_="dead" * 16).start().exit(4)
    await facts.next(subjects.FACT_EXITED, ContainerExited)
    report = await ask(subjects.AGENT_REPORT, Request(), Report)
    assert report.complete
    truths = {truth.id: truth for truth in report.containers}
    assert truths[CONTAINER].running
    assert (truths["dead" * 16].running, truths["dead" * 16].exit_code) == (False, 4)


async def test_the_report_has_a_shim_whose_hello_was_lost(
    ask: Asking, agent: Agent, shim: Shims
) -> None:
    shim().start(hello=False)
    report = await ask(subjects.AGENT_REPORT, Request(), Report)
    assert [truth.running for truth in report.containers] == [True]


async def test_a_repeated_stop_is_answered_by_the_next_agent(
    run_agent: Running, ask: Asking, shim: Shims, facts: Facts, settings: Settings
) -> None:
    path = write_policy(settings, name="always")
    one = shim().start(hello=False)
    one.on_signal = {}
    async with run_agent():
        request = HostStop(id=CONTAINER, timeout=-1, request_id="stop-1")
        stopping = asyncio.ensure_future(ask(subjects.AGENT_STOP, request, Done))
        await until(lambda: bool(asked(one, "kill")))
    one.on_signal = {SIGTERM: 0}
    with pytest.raises(Unavailable):
        await stopping
    async with run_agent():
        await ask(subjects.AGENT_STOP, request, Done)
    assert json.loads(path.read_text())["stopped"]
    assert not (await facts.next(subjects.FACT_EXITED, ContainerExited)).restarting


async def test_a_removal_told_while_there_was_no_connection_is_found(
    agent: Agent, shim: Shims, facts: Facts, settings: Settings
) -> None:
    shim().start().exit(0)
    await facts.next(subjects.FACT_EXITED, ContainerExited)
    assert CONTAINER in agent.containers
    removed = settings.run_dir / "shims" / ".removed"
    removed.mkdir(parents=True, exist_ok=True)
    (removed / CONTAINER).touch()

    for callback in tuple(agent._bus.client.on_reconnect):
        callback()

    await until(lambda: CONTAINER not in agent.containers)

"""The agent with real shims: launcher, pipes, logs and sockets as in an engine."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.models.base import Done
from mooring.kit.models.exec import ExecConfig, ExecStarted
from mooring.kit.models.host import (
    ContainerExited,
    ExecExited,
    HostExec,
    HostStop,
    OpenStream,
    StdinAck,
    StdinChunk,
)
from mooring.shim.agent import Agent
from tests.shim.harness import Container, Launcher

from .conftest import Facts, Running, until
from .test_output import opened

ID = "c"
Start = Callable[..., Container]


@pytest.fixture
def start(settings: Settings) -> Iterator[Start]:
    """Starts programs under shims of a real launcher, with a runtime that isolates nothing."""
    launcher = Launcher()
    started: list[Container] = []

    def begin(*args: str, **fields: Any) -> Container:
        log = settings.state_dir / "containers" / ID / "log"
        log.parent.mkdir(parents=True, exist_ok=True)
        process = {
            "args": list(args),
            "cwd": "/",
            "env": ["PATH=/usr/bin:/bin"],
            "user": {"uid": 0, "gid": 0},
        }
        fields.setdefault("spec", {"process": process, "linux": {"namespaces": []}})
        agent = str(settings.run_dir / "agent.sock")
        shims = settings.run_dir / "shims"
        shims.mkdir(exist_ok=True)
        started.append(Container(launcher, shims, [], log=log, agent_socket=agent, **fields))
        return started[-1]

    yield begin
    for container in started:
        container.__exit__()
    launcher.close()


def attached(run: int = 1) -> OpenStream:
    """What `docker run` opens before the start."""
    return OpenStream(id=ID, at_run=run, until_run=run, follow=True)


async def test_output_and_exit_of_a_program_that_is_over_at_once(
    agent: Agent, bus: Bus, settings: Settings, facts: Facts, start: Start
) -> None:
    async with opened(bus, settings, attached()) as reading:
        one = start("sh", "-c", "echo hello; echo error >&2; exit 3")
        assert sorted((await reading.rest()).splitlines()) == [b"error", b"hello"]
    fact = await facts.next(subjects.FACT_EXITED, ContainerExited)
    assert (fact.exit_code, fact.pid) == (3, one.answer["pid"])
    await until((one.directory / "exit.acked").exists)


async def test_stdin_goes_in_and_comes_out(
    agent: Agent, bus: Bus, settings: Settings, start: Start
) -> None:
    async with opened(bus, settings, attached()) as reading:
        start("cat", stdin=True, stdin_once=True)
        subject = subjects.agent(settings.node_id, subjects.AGENT_STDIN)
        for offset, data, eof in ((0, b"one ", False), (4, b"two\n", True)):
            chunk = StdinChunk(id=ID, run=1, session="s", offset=offset, data=data, eof=eof)
            answer = await bus.request(subject, chunk, StdinAck)
        assert (answer.offset, answer.closed) == (8, True)
        assert await reading.rest() == b"one two\n"


async def test_an_exec_is_started_read_and_over(
    agent: Agent, bus: Bus, settings: Settings, facts: Facts, start: Start
) -> None:
    one = start("sleep", "1000")
    await until(lambda: ID in agent.containers)
    async with opened(bus, settings, OpenStream(id=ID, exec_id="e1")) as reading:
        request = HostExec(
            id=ID, exec_id="e1", config=ExecConfig(cmd=["sh", "-c", "echo $A; exit 4"], env=["A=b"])
        )
        subject = subjects.agent(settings.node_id, subjects.AGENT_EXEC_START)
        assert (await bus.request(subject, request, ExecStarted)).pid > 0
        assert await reading.rest() == b"b\n"
    assert (await facts.next(subjects.FACT_EXEC_EXITED, ExecExited)).exit_code == 4
    await until(lambda: not (one.directory / "execs" / "e1").exists())


async def test_an_exec_without_a_program_has_docker_s_words(
    agent: Agent, bus: Bus, settings: Settings, start: Start
) -> None:
    start("sleep", "1000")
    await until(lambda: ID in agent.containers)
    request = HostExec(id=ID, exec_id="e1", config=ExecConfig(cmd=["/nope"]))
    subject = subjects.agent(settings.node_id, subjects.AGENT_EXEC_START)
    answer = await bus.request(subject, request, ExecStarted)
    assert answer.exit_code == 127
    assert answer.error.startswith("OCI runtime exec failed: exec failed: unable to start")


async def test_stop_of_what_ignores_its_signal(
    agent: Agent, bus: Bus, settings: Settings, facts: Facts, start: Start
) -> None:
    async with opened(bus, settings, attached()) as reading:
        start("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.01; done")
        await reading.until(b"ready\n")
        subject = subjects.agent(settings.node_id, subjects.AGENT_STOP)
        await bus.request(subject, HostStop(id=ID, timeout=0), Done)
        await reading.rest()
    assert (await facts.next(subjects.FACT_EXITED, ContainerExited)).exit_code == 137


async def test_a_shim_that_was_killed_does_not_take_the_exit_code_with_it(
    run_agent: Running, facts: Facts, start: Start
) -> None:
    async with run_agent() as agent:
        one = start("sh", "-c", "trap 'exit 9' USR1; while :; do sleep 0.01; done")
        await until(lambda: ID in agent.containers and agent.containers.get(ID).live is not None)
        run = agent.containers.get(ID).runs[1]
        await until(lambda: run.channel is not None)
        os.kill(one.shim, signal.SIGKILL)
        await until(lambda: run.channel is None)
        os.kill(one.answer["pid"], signal.SIGUSR1)
        fact = await facts.next(subjects.FACT_EXITED, ContainerExited)
    assert fact.exit_code == 9


async def test_much_output_arrives_whole(
    agent: Agent, bus: Bus, settings: Settings, start: Start
) -> None:
    size = 40_000_000
    async with opened(bus, settings, attached()) as reading:
        start("sh", "-c", f"yes | head -c {size}")
        assert await reading.rest() == b"y\n" * (size // 2)

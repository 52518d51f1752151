"""Shims of older code are replaced, unless something would be lost by that."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator

import pytest

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.errors import EngineError
from mooring.kit.models.base import Done
from mooring.kit.models.exec import ExecConfig, ExecStarted
from mooring.kit.models.host import HostContainer, HostExec, RenewShims, ShimsRenewed
from mooring.shim import renewal, version
from mooring.shim.agent import Agent
from mooring.shim.keeping import Nobody
from mooring.shim.renewal import Renewal
from mooring.shim.runs import Run
from mooring.shim.successors import Successor, Successors
from mooring.shim.work import Work

from .conftest import until
from .fakes import CONTAINER, FakeShim


class Old(FakeShim):
    """A shim of older code, with a process of its own that can be killed."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.code = "older"
        self.processes = [subprocess.Popen(["sleep", "1000"])]
        self.pid = self.processes[0].pid
        pipe = os.pipe()
        self.descriptors = {"pidfd": os.pidfd_open(self.init.pid), "listener": pipe[0]}
        self.descriptors["stdin"] = pipe[1]

    @property
    def alive(self) -> bool:
        """Whether the process that was first is there."""
        return self.processes[0].poll() is None

    def succeed(self) -> None:
        """Be another process, of this version."""
        self.processes.append(subprocess.Popen(["sleep", "1000"]))
        self.pid, self.code = self.processes[-1].pid, version.digest()
        self._write("shim.json", self.record)

    def cleanup(self) -> None:
        """Leave no process behind."""
        super().cleanup()
        for process in self.processes:
            process.kill()
            process.wait()
        for descriptor in self.descriptors.values():
            os.close(descriptor)


class FakeSuccessor(Successor):
    """Takes an `Old` over, or fails at it."""

    def __init__(self, shim: Old, fails: str) -> None:
        self._shim, self._fails = shim, fails
        self.taken: dict[str, int] = {}

    def __exit__(self, *_: object) -> None:
        pass

    async def take(self, run: Run) -> None:
        if self._fails:
            raise EngineError(self._fails)
        self.taken = dict(run.held)
        self._shim.succeed()


class FakeSuccessors(Successors):
    """What `FakeSuccessor`s are made by. fails: what goes wrong when one is prepared."""

    def __init__(self, shim: Old, *, fails: str = "", fails_late: str = "") -> None:
        super().__init__({}, "")
        self._fails = fails
        self.one = FakeSuccessor(shim, fails_late)

    async def prepare(self, directory: str) -> Successor:
        if self._fails:
            raise EngineError(self._fails)
        return self.one


@pytest.fixture
async def old(settings: Settings) -> AsyncIterator[Old]:
    """A shim that an upgrade should replace."""
    made = Old(settings)
    yield made
    made.cleanup()


@pytest.fixture(autouse=True)
def unasked() -> Iterator[None]:
    """An agent that has just started looks for shims of older code at any moment: not here."""

    async def begin(_: Renewal) -> None:
        pass

    # Of its own: what a test changes is to be as it was before its agent is closed.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Renewal, "begin", begin)
        yield


async def begun(agent: Agent, shim: FakeShim) -> Run:
    """The run of a shim that has said hello."""
    shim.start()
    runs = agent.containers.get(CONTAINER).runs
    await until(lambda: 1 in runs and runs[1].channel is not None)
    return runs[1]


def renewing(agent: Agent, successors: Successors) -> Renewal:
    """What an agent with such successors would replace shims with."""
    return Renewal(agent.containers, agent.shims, successors)


async def test_a_shim_of_older_code_is_replaced_once(agent: Agent, old: Old) -> None:
    run = await begun(agent, old)
    successors = FakeSuccessors(old)
    work = renewing(agent, successors)
    assert await work.renew(RenewShims()) == ShimsRenewed(replaced=1)
    assert not old.alive
    assert set(successors.one.taken) == {"listener", "stdin"}
    await until(lambda: run.channel is not None)
    assert run.record is not None and run.record.code == version.digest()
    assert await work.renew(RenewShims()) == ShimsRenewed(replaced=1)
    assert len(old.processes) == 2


async def test_a_shim_of_the_same_code_is_left_alone_unless_every_one_is_meant(
    agent: Agent, old: Old
) -> None:
    old.code = version.digest()
    await begun(agent, old)
    work = renewing(agent, FakeSuccessors(old))
    assert await work.renew(RenewShims()) == ShimsRenewed(current=1)
    assert old.alive
    assert await work.renew(RenewShims(every=True)) == ShimsRenewed(replaced=1)
    assert not old.alive


async def test_an_older_kernel_keeps_the_shim_and_it_is_said(
    agent: Agent, old: Old, bus: Bus, settings: Settings
) -> None:
    await begun(agent, old)
    agent.renewal.tells_exits = lambda: False
    subject = subjects.agent(settings.node_id, subjects.AGENT_RENEW)
    done = await bus.request(subject, RenewShims(), ShimsRenewed)
    assert (done.replaced, done.current) == (0, 0)
    assert [(kept.id, kept.reason) for kept in done.kept] == [(CONTAINER, renewal.OLD_KERNEL)]
    assert old.alive


async def test_a_successor_that_is_not_to_be_had_costs_nothing(agent: Agent, old: Old) -> None:
    run = await begun(agent, old)
    work = renewing(agent, FakeSuccessors(old, fails="it can't be imported"))
    done = await work.renew(RenewShims())
    assert [kept.reason for kept in done.kept] == ["it can't be imported"]
    assert old.alive and run.channel is not None and run.channel.open


async def test_a_shim_that_hands_nothing_over_is_kept(agent: Agent, old: Old) -> None:
    run = await begun(agent, old)
    descriptors, old.descriptors = old.descriptors, {}
    done = await renewing(agent, FakeSuccessors(old)).renew(RenewShims())
    old.descriptors = descriptors
    assert [kept.reason for kept in done.kept] == ["it does not hand over what another shim needs"]
    assert old.alive and run.channel is not None and not run.handover


async def test_a_successor_that_fails_after_all_has_one_in_its_place(
    agent: Agent, old: Old, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await begun(agent, old)

    async def adopt(run: Run) -> bool:
        old.succeed()
        return True

    monkeypatch.setattr(agent.shims._successors, "adopt", adopt)
    done = await renewing(agent, FakeSuccessors(old, fails_late="no memory")).renew(RenewShims())
    assert [kept.reason for kept in done.kept] == ["no memory"]
    await until(lambda: run.channel is not None)
    assert run.record is not None and run.record.code == version.digest()


async def test_what_is_being_asked_of_a_shim_is_answered_first_and_what_comes_then_waits(
    agent: Agent, old: Old, bus: Bus, settings: Settings
) -> None:
    await begun(agent, old)
    old.silent = {"exec", "descriptors"}
    starting = asyncio.create_task(
        bus.request(
            subjects.agent(settings.node_id, subjects.AGENT_EXEC_START),
            HostExec(id=CONTAINER, exec_id="e1", config=ExecConfig(cmd=["true"])),
            ExecStarted,
        )
    )
    await until(lambda: any(asked["op"] == "exec" for asked in old.ops))
    renewing_ = asyncio.create_task(renewing(agent, FakeSuccessors(old)).renew(RenewShims()))
    # Long enough for one that does not wait; a correct one passes however long it is.
    await asyncio.sleep(0.05)
    assert not any(asked["op"] == "descriptors" for asked in old.ops)
    old.answer("exec")
    assert (await starting).pid > 0
    await until(lambda: any(asked["op"] == "descriptors" for asked in old.ops))
    subject = subjects.agent(settings.node_id, subjects.AGENT_PAUSE)
    pausing = asyncio.create_task(bus.request(subject, HostContainer(id=CONTAINER), Done))
    await asyncio.sleep(0.05)
    assert not any(asked["op"] == "pause" for asked in old.ops)
    old.answer("descriptors")
    assert (await renewing_).replaced == 1
    await pausing
    asked = [one["op"] for one in old.ops]
    assert asked.index("pause") > asked.index("hello")


async def test_a_container_that_ends_at_that_moment_has_its_own_exit(
    agent: Agent, old: Old
) -> None:
    run = await begun(agent, old)
    old.silent = {"descriptors"}
    work = asyncio.create_task(renewing(agent, FakeSuccessors(old)).renew(RenewShims()))
    await until(lambda: any(asked["op"] == "descriptors" for asked in old.ops))
    old.exit(5)
    assert await work == ShimsRenewed()
    assert run.exit is not None and run.exit.exit_code == 5
    assert old.alive


def test_this_kernel_is_asked_by_trying() -> None:
    from mooring.shim import orphans

    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    assert orphans.tells_exits() is (release >= (6, 15))


class Kept(Nobody):
    """Keeps the listener of an agent that was killed."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener

    def listeners(self) -> dict[str, list[socket.socket]]:
        return {"agent": [self._listener]}


async def test_a_shim_that_was_killed_before_its_hello_was_heard_is_replaced(
    old: Old, bus: Bus, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    listener.bind("")
    listener.listen()
    old.start(hello=False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as hello:
        hello.connect(listener.getsockname())
        packet = {"event": "hello", **old._hello(), "names": list(old.descriptors)}
        socket.send_fds(hello, [json.dumps(packet).encode()], list(old.descriptors.values()))
    old.processes[0].kill()
    old.processes[0].wait()
    held: list[set[str]] = []

    async def adopt(run: Run) -> bool:
        held.append(set(run.held))
        old.succeed()
        return True

    async with Work() as work:
        agent = Agent(settings, bus, work, Kept(listener))
        monkeypatch.setattr(agent.shims._successors, "adopt", adopt)
        await agent.start()
        run = agent.containers.get(CONTAINER).runs[1]
        await until(lambda: run.channel is not None and run.record.code == version.digest())  # type: ignore[union-attr]
        assert held == [{"listener", "stdin"}]
        agent.close()

"""What mooring-network has from its store although it was released: the worker has it let go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mooring.kit.errors import Unavailable
from mooring.kit.models.network import NetworkState
from mooring.runtime.network import service, strays
from mooring.runtime.network.attendant import Attendant
from mooring.runtime.network.dns.joining import Joining
from mooring.runtime.network.ports.publisher import Publisher

from .test_publisher import TABLE, in_a_namespace

CLAIM = b'["10.1.0.2", "", "", [["tcp", "", 20001, 80]]]'
SECONDS = 20.0
"""Until a test fails: for a process to start on a busy machine."""
SERVICE = """
import fcntl, os, sys
numbers = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[2:]]
for index, number in enumerate(numbers):
    os.dup2(number, 3 + index)
os.environ |= {
    "LISTEN_FDS": str(len(numbers)), "LISTEN_FDNAMES": sys.argv[1], "LISTEN_PID": str(os.getpid())
}
from mooring.runtime.network import service
service.HOLDERS = 7
service.PATIENCE = float(os.environ["PATIENCE"])
service.main()
"""


class Host:
    """The socket of mooring-network, and one process of it at a time."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "network.sock")
        self.directory = directory
        for name in ("ports", "names"):
            (directory / name).mkdir()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.path)
        self._listener.listen()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *holders: str, patience: float = SECONDS) -> None:
        """Its next process, which finds ports and name servers of these holders in the store."""
        self.kill()
        with contextlib.ExitStack() as mine:
            passed = [(service.LISTENER, self._listener)]
            for holder in holders:
                port = mine.enter_context(socket.create_server(("127.0.0.1", 0)))
                passed.append((f"port.{holder}.0a010002.80", port))
                for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                    name = mine.enter_context(socket.socket(socket.AF_INET, kind))
                    name.bind(("127.0.0.1", 0))
                    if kind == socket.SOCK_STREAM:
                        name.listen()
                    passed.append((f"dns.{holder}", name))
            numbers = [sock.fileno() for _, sock in passed]
            names = ":".join(name for name, _ in passed)
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVICE, names, *map(str, numbers)],
                env={
                    **os.environ,
                    "MOORING_RUN_DIR": str(self.directory),
                    "PATIENCE": str(patience),
                },
                pass_fds=numbers,
            )

    def wait(self) -> int:
        """Its exit status, once it has ended by itself."""
        assert self._process is not None
        return self._process.wait(SECONDS)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        self.kill()
        self._listener.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.close()


class Noting(Attendant):
    """Says when a holder's sockets have been released, or its names."""

    def __init__(self, host: Host) -> None:
        super().__init__(host.path, str(host.directory / "used"))
        self.released: asyncio.Queue[str] = asyncio.Queue()

    async def ask(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        answer = await super().ask(request, descriptors)
        if request["op"] in ("release", "leave"):
            self.released.put_nowait(request["holder"])
        return answer


async def held(attendant: Noting, of: str, after: str) -> list[str]:
    """Who is held, once this one has been released."""
    async with asyncio.timeout(SECONDS):
        assert await attendant.released.get() == after
        return sorted(await attendant.holders(of))


@pytest.mark.kernel
def test_a_port_without_a_claim_is_released_by_a_worker_that_starts(host: Host) -> None:
    host.start("gone.1", "one.1")
    (host.directory / "used").touch()
    (host.directory / "ports" / "one.1").write_bytes(CLAIM)

    async def recover() -> list[str]:
        attendant = Noting(host)
        publisher = Publisher(TABLE, str(host.directory / "ports"), attendant, lambda _: False)
        await publisher.recover({"one.1"})
        try:
            return await held(attendant, "ports", "gone.1")
        finally:
            await publisher.close()

    assert in_a_namespace(recover) == ["one.1"]


@pytest.mark.kernel
def test_a_port_that_was_released_and_is_back_is_released_again(host: Host) -> None:
    """Whoever was to take it out of the store was killed: its port had stayed taken for ever."""
    host.start("one.1", "two.1")
    for holder in ("one.1", "two.1"):
        (host.directory / "ports" / holder).write_bytes(CLAIM.replace(b"1,", b"2,"))

    async def lose() -> list[str]:
        attendant = Noting(host)
        publisher = Publisher(TABLE, str(host.directory / "ports"), attendant, lambda _: False)
        await publisher.recover({"one.1", "two.1"})
        publisher.release("two.1")
        assert await held(attendant, "ports", "two.1") == ["one.1"]
        host.start("one.1", "two.1")
        try:
            return await held(attendant, "ports", "two.1")
        finally:
            await publisher.close()

    assert in_a_namespace(lose) == ["one.1"]


def test_a_name_server_that_was_ended_and_is_back_is_ended_again(host: Host) -> None:
    host.start("one.1", "two.1")

    async def lose() -> list[str]:
        attendant = Noting(host)
        names = Joining(str(host.directory / "names"), attendant, lambda _: "/proc/self/ns/net")
        for holder in ("one.1", "two.1"):
            await names.join(holder, NetworkState(), [], "/proc/self/ns/net")
        names.leave("two.1")
        assert await held(attendant, "names", "two.1") == ["one.1"]
        host.start("one.1", "two.1")
        try:
            return await held(attendant, "names", "two.1")
        finally:
            await names.close()
            attendant.close()

    assert asyncio.run(lose()) == ["one.1"]


def test_a_release_that_failed_is_tried_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strays, "RETRY", 0.01)
    host.start("one.1")

    class Failing(Noting):
        failures = 1

        async def ask(
            self, request: dict[str, Any], descriptors: Sequence[int] = ()
        ) -> dict[str, Any]:
            if request["op"] == "leave" and self.failures:
                self.failures -= 1
                raise Unavailable("the network service does not answer")
            return await super().ask(request, descriptors)

    async def leave() -> list[str]:
        attendant = Failing(host)
        names = Joining(str(host.directory / "names"), attendant, lambda _: "/proc/self/ns/net")
        await names.join("one.1", NetworkState(), [], "/proc/self/ns/net")
        names.leave("one.1")
        try:
            return await held(attendant, "names", "one.1")
        finally:
            await names.close()
            attendant.close()

    assert asyncio.run(leave()) == []
    assert os.listdir(host.directory / "names") == []


def test_it_ends_when_it_keeps_nothing_and_the_worker_does_not_start_it_again(host: Host) -> None:
    """A worker stays connected: for its sake it had been there for ever."""
    host.start("one.1", patience=0.01)

    async def rest() -> int:
        attendant, looks = Noting(host), list[str]()
        attendant.renewed.append(lambda: looks.append("look"))
        await attendant.ask({"op": "leave", "holder": "one.1"})
        await attendant.release("one.1")
        assert await asyncio.to_thread(host.wait) == 0
        async with asyncio.timeout(SECONDS):
            while attendant.connected:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert looks == ["look"]
        host.start()
        assert await attendant.holders("ports") == set()
        attendant.close()
        return len(looks)

    assert asyncio.run(rest()) == 2


def test_every_holder_is_listed_however_many_there_are(
    host: Host,
) -> None:
    """There are seven to an answer here."""
    holders = [f"{number:064x}.1" for number in range(1, 41)]
    host.start(*holders)

    async def listed() -> set[str]:
        attendant = Noting(host)
        async with asyncio.timeout(SECONDS):
            found = await attendant.holders("ports")
        attendant.close()
        return found

    assert asyncio.run(listed()) == set(holders)


def test_a_run_that_is_made_again_keeps_its_names_when_its_first_making_leaves(
    tmp_path: Path,
) -> None:
    may_answer = asyncio.Event()

    class Slow(Attendant):
        async def ask(
            self, request: dict[str, Any], descriptors: Sequence[int] = ()
        ) -> dict[str, Any]:
            if request["op"] == "leave":
                await may_answer.wait()
            return {"ok": True}

    async def again() -> None:
        names = Joining(str(tmp_path), Slow(""), lambda _: "")
        await names.join("one.1", NetworkState(), [], "/proc/self/ns/net")
        names.leave("one.1")
        join = names.join("one.1", NetworkState(), [], "/proc/self/ns/net")
        joining = asyncio.create_task(join)
        for _ in range(5):
            await asyncio.sleep(0)
        may_answer.set()
        await joining
        await names.close()

    asyncio.run(again())
    assert os.listdir(tmp_path) == ["one.1"]

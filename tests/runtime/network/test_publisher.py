"""Publishing many ports, in a network namespace of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

from mooring.kit.errors import EngineError
from mooring.kit.ports import Wanted
from mooring.runtime.network import firewall
from mooring.runtime.network.attendant import Attendant
from mooring.runtime.network.ports import publisher as publishing
from mooring.runtime.network.ports.publisher import Publisher

from .namespace import leave_network

pytestmark = pytest.mark.kernel
T = TypeVar("T")
TABLE = "mooring-test"


class Holding(Attendant):
    """Keeps the sockets itself, by holder."""

    def __init__(self) -> None:
        super().__init__("")
        self.held: dict[str, list[int]] = {}

    async def hold(
        self, holder: str, targets: Sequence[tuple[str, int]], sockets: Sequence[socket.socket]
    ) -> None:
        self.held.setdefault(holder, []).extend(os.dup(sock.fileno()) for sock in sockets)

    async def release(self, holder: str) -> None:
        for descriptor in self.held.pop(holder, []):
            os.close(descriptor)


class Late(Holding):
    """Closes what is released when it may: it is being started again."""

    def __init__(self) -> None:
        super().__init__()
        self.may_close = asyncio.Event()

    async def release(self, holder: str) -> None:
        await self.may_close.wait()
        await super().release(holder)


class Slow(Holding):
    """Closes at once what is released, and says so when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = asyncio.Event()

    async def release(self, holder: str) -> None:
        await super().release(holder)
        await self.may_answer.wait()


def in_a_namespace(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run it where the table is, and nothing else."""

    def run() -> T:
        leave_network()
        text = firewall.text(TABLE)
        subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)
        return asyncio.run(work())

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


def test_a_run_that_is_made_again_keeps_its_claim_when_its_first_making_is_let_go(
    tmp_path: Path,
) -> None:
    """What has no claim is never let go: the port had stayed taken for ever."""
    wanted = [Wanted("tcp", 80, "", 20001, 20001)]

    async def publish() -> None:
        attendant = Slow()
        publisher = Publisher(TABLE, str(tmp_path), attendant, lambda _: False)
        await publisher.publish("one.1", wanted, address="10.1.0.2")
        publisher.release("one.1")
        again = asyncio.create_task(publisher.publish("one.1", wanted, address="10.1.0.2"))
        await asyncio.wait({again}, timeout=0.2)
        attendant.may_answer.set()
        await again
        for _ in range(5):
            await asyncio.sleep(0)  # what was let go comes to its end
        assert (tmp_path / "one.1").exists()
        publisher.release("one.1")
        await publisher.close()
        assert not attendant.held

    in_a_namespace(publish)


def test_a_port_that_is_being_released_is_waited_for_while_its_keeper_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "_RETRIES", 0.05)
    wanted = [Wanted("tcp", 80, "", 20001, 20001)]

    async def publish() -> None:
        attendant = Late()
        publisher = Publisher(TABLE, str(tmp_path), attendant, lambda _: False)
        await publisher.publish("one.1", wanted, address="10.1.0.2")
        publisher.release("one.1")
        other = asyncio.create_task(publisher.publish("two.1", wanted, address="10.1.0.3"))
        await asyncio.wait({other}, timeout=0.3)
        attendant.may_close.set()
        await other
        publisher.release("two.1")
        await publisher.close()
        assert not attendant.held

    in_a_namespace(publish)


def test_a_range_is_shared_out_without_asking_for_each_port_who_is_still_there(
    tmp_path: Path,
) -> None:
    asked: list[str] = []

    def over(holder: str) -> bool:
        asked.append(holder)
        return holder == "gone.1"

    async def publish() -> list[list[int]]:
        attendant = Holding()
        publisher = Publisher(TABLE, str(tmp_path), attendant, over)
        found = []
        for holder, count in (("one.1", 40), ("two.1", 60), ("gone.1", 20), ("new.1", 20)):
            wanted = [Wanted("tcp", 1 + number, "", 20001, 20120) for number in range(count)]
            ports = await publisher.publish(holder, wanted, address="10.1.0.2")
            found.append([each[0].host_port for each in ports.values()])
        with pytest.raises(EngineError, match=r"Bind for 0\.0\.0\.0:20120 failed: port is already"):
            late = [Wanted("tcp", 1, "", 20001, 20120)]
            await publisher.publish("late.1", late, address="10.1.0.3")
        for holder in ("one.1", "two.1", "new.1"):
            publisher.release(holder)
        await publisher.close()
        assert not attendant.held
        return found

    one, two, gone, new = in_a_namespace(publish)
    assert sorted(one + two + gone) == list(range(20001, 20121))
    assert new == gone
    assert len(asked) <= 10

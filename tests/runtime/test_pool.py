"""The pool of warm shims, and one piece of work at a time for each container."""

from __future__ import annotations

import asyncio
import os
import socket

from mooring.kit.errors import EngineError
from mooring.runtime.launching import WarmShim
from mooring.runtime.locks import KeyedLocks
from mooring.runtime.pool import Pool


class FakeLauncher:
    """Forks sockets; the far ends stand for the shims."""

    def __init__(self) -> None:
        self.cgroups: list[str | None] = []
        self.shims: list[socket.socket] = []
        self.refuses = False

    async def fork(self, cgroup: str | None) -> WarmShim:
        if self.refuses:
            raise EngineError("no memory")
        self.cgroups.append(cgroup)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.shims.append(theirs)
        return WarmShim(os.getpid(), ours)

    def close(self) -> None:
        for shim in self.shims:
            shim.close()


async def filled(pool: Pool[WarmShim], size: int) -> None:
    async with asyncio.timeout(5):
        while len(pool) < size:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_the_pool_is_filled_and_filled_again_after_a_start() -> None:
    launcher = FakeLauncher()
    pool = Pool(launcher, 3, "/mooring")
    pool.refill()
    await filled(pool, 3)
    (await pool.take()).close()
    assert len(pool) == 2
    pool.refill()
    await filled(pool, 3)
    assert len(set(launcher.cgroups)) == 4
    await pool.close()
    assert [shim.recv(1) for shim in launcher.shims[1:]] == [b""] * 3
    launcher.close()


async def test_two_pools_never_prepare_the_same_cgroup() -> None:
    """Of two that did, one container was started in the other's cgroup, or not at all."""
    launcher = FakeLauncher()
    pools = [Pool(launcher, 2, "/mooring") for _ in range(2)]
    for pool in pools:
        pool.refill()
        await filled(pool, 2)
    assert len(set(launcher.cgroups)) == 4
    for pool in pools:
        await pool.close()
    launcher.close()


async def test_a_shim_that_died_in_the_pool_is_not_handed_out() -> None:
    launcher = FakeLauncher()
    pool = Pool(launcher, 2, None)
    pool.refill()
    await filled(pool, 2)
    launcher.shims[0].close()
    shim = await pool.take()
    assert shim.alive()
    shim.close()
    await pool.close()
    launcher.close()


async def test_an_empty_pool_forks_and_grows() -> None:
    launcher = FakeLauncher()
    pool = Pool(launcher, 1, None)
    taken = [await pool.take() for _ in range(3)]
    pool.refill()
    await filled(pool, 4)
    for shim in taken:
        shim.close()
    await pool.close()
    launcher.close()


async def test_a_launcher_that_cannot_fork_is_an_error_of_the_start_only() -> None:
    launcher = FakeLauncher()
    launcher.refuses = True
    pool = Pool(launcher, 2, None)
    pool.refill()
    await asyncio.sleep(0)
    launcher.refuses = False
    shim = await pool.take()
    shim.close()
    await pool.close()
    launcher.close()


async def test_work_on_one_container_waits_and_on_another_does_not() -> None:
    locks = KeyedLocks()
    order = []

    async def work(key: str, name: str, go: asyncio.Event) -> None:
        async with locks.hold(key):
            order.append(name)
            await go.wait()

    first, free = asyncio.Event(), asyncio.Event()
    free.set()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(work("a", "a1", first))
        tasks.create_task(work("a", "a2", free))
        await tasks.create_task(work("b", "b1", free))
        assert order == ["a1", "b1"]
        assert locks.busy("a")
        first.set()
    assert order == ["a1", "b1", "a2"]
    assert not locks.busy("a")

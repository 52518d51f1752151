"""Shims that take the place of others: the agent's end of what adopt.py does.

A launcher of the agent's own forks them, so that they share their memory; it is started when
one is needed, and ends when none has been for a while.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from typing import TYPE_CHECKING

from mooring.kit.errors import EngineError, Unavailable

from .adopt import READY, SERVES
from .exits import HEALTH_PREFIX
from .runs import Run

if TYPE_CHECKING:
    from mooring.runtime.launching import Launcher

logger = logging.getLogger(__name__)

IDLE_SECONDS = 10.0
ANSWER_SECONDS = 20.0
_TRIES = 3
_WORDS = 4096


class Successor:
    """A process that is ready to take a run over; a context, left by which one unused ends."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock

    def __enter__(self) -> Successor:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    async def ready(self) -> None:
        """Wait until it is ready. EngineError with what it says if it never will be."""
        await self._hear(READY)

    async def take(self, run: Run) -> None:
        """Have it take over a run whose shim is no more. EngineError if it does not."""
        await self._hand("", {**run.held, "pidfd": run.pidfd})
        for id_, entry in tuple(run.execs.items()):
            if entry.held and not entry.finished and not id_.startswith(HEALTH_PREFIX):
                await self._hand(id_, entry.held)
        await self._send({}, [])
        await self._hear(SERVES)

    async def _hand(self, exec_id: str, named: dict[str, int]) -> None:
        await self._send({"names": list(named), "exec": exec_id}, list(named.values()))

    async def _send(self, fields: dict[str, object], descriptors: list[int]) -> None:
        packet = json.dumps(fields).encode()
        try:
            while True:
                try:
                    socket.send_fds(self._socket, [packet], descriptors)
                    return
                except BlockingIOError:
                    await _writable(self._socket)
        except OSError as exc:
            raise EngineError(f"its successor is gone: {exc.strerror}") from exc

    async def _hear(self, word: bytes) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                said = await asyncio.get_running_loop().sock_recv(self._socket, _WORDS)
        except (TimeoutError, OSError) as exc:
            raise Unavailable("its successor does not answer") from exc
        if said != word:
            raise EngineError(said.decode(errors="replace") or "its successor has ended")


class Successors:
    """What makes successors on this host."""

    def __init__(self, environment: dict[str, str], cgroup: str) -> None:
        """environment: that shims inherit; cgroup: that they are born in, empty: this process's."""
        self._environment = environment
        self._cgroup = cgroup
        self._launcher: Launcher | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._users = 0

    async def prepare(self, directory: str) -> Successor:
        """A process for the run of this directory, ready to take it over. EngineError."""
        self._users += 1
        try:
            successor = Successor(await self._launch().fork_successor(directory))
            try:
                await successor.ready()
            except BaseException:
                successor.__exit__()
                raise
            return successor
        finally:
            self._users -= 1
            self._rest()

    async def adopt(self, run: Run) -> bool:
        """Put another shim in the place of one that was killed; whether it serves the container."""
        if "listener" not in run.held or run.pidfd < 0:
            return False
        for _ in range(_TRIES):
            try:
                with await self.prepare(run.directory) as successor:
                    await successor.take(run)
            except EngineError as exc:
                logger.error("no new shim for container %s: %s", run.container.id, exc.message)
                continue
            logger.warning("container %s has a new shim, one was killed", run.container.id)
            return True
        return False

    def close(self) -> None:
        """End the launcher; shims go on."""
        if self._timer is not None:
            self._timer.cancel()
        if self._launcher is not None:
            self._launcher.close()
            self._launcher = None

    def _launch(self) -> Launcher:
        if self._launcher is None:
            # The worker's end of the launcher, which joins shim and runtime in one process.
            from mooring.runtime.launching import Launcher

            self._launcher = Launcher(self._environment, self._cgroup)
        return self._launcher

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._rested)

    def _rested(self) -> None:
        if self._users:
            self._rest()
        else:
            self.close()


async def _writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(sock.fileno(), ready.set)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await ready.wait()
    finally:
        loop.remove_writer(sock.fileno())

"""The worker's end of the launcher and of its warm shims (docs/ARCHITECTURE.md, 3)."""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import json
import logging
import os
import signal
import socket
import sys
from collections import deque
from typing import Any

from mooring.kit import cgroups as kit_cgroups
from mooring.kit import faults
from mooring.kit.errors import EngineError, Unavailable

from .oci import interpreter
from .runs import start_time

logger = logging.getLogger(__name__)

PACKET = 256 << 10
BARE = b"bare"
SUCCESSOR = b"successor "
FACTORY = b"factory"
"""The launcher's BARE, SUCCESSOR and FACTORY; that module is for its own process."""
FORK_TIMEOUT = 10.0
"""Seconds; a fork takes a few milliseconds."""
START_TIMEOUT = 60.0
"""Seconds that a shim may take to start its container's program: file systems may hang."""


class ShimDied(EngineError):
    """A shim ended before it answered."""


class WarmShim:
    """A shim that waits for its container; it ends by itself when this socket closes.

    The socket's other end is its helper's, which makes the container (see shim/warm.py).
    """

    __slots__ = ("code", "pid", "socket", "start")

    def __init__(self, pid: int, sock: socket.socket, code: str = "") -> None:
        """code: what it runs, see mooring.shim.version."""
        self.pid = pid
        self.code = code
        self.start = start_time(pid)
        self.socket = sock
        sock.setblocking(False)

    def alive(self) -> bool:
        """Whether it still holds its end of the socket."""
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    async def run(self, message: dict[str, Any]) -> dict[str, Any]:
        """Hand it its container and wait for the outcome; ShimDied if it ends before."""
        loop = asyncio.get_running_loop()
        readable = loop.create_future()
        descriptor = self.socket.fileno()
        loop.add_reader(descriptor, _wake, readable)
        try:
            packet = {**message, "code": self.code}
            self.socket.send(json.dumps(packet, separators=(",", ":")).encode())
            faults.point("runtime.start.sent")
            async with asyncio.timeout(START_TIMEOUT):
                await readable
            received = self.socket.recv(PACKET)
        except (BrokenPipeError, ConnectionResetError) as exc:
            raise ShimDied("the shim died") from exc
        except TimeoutError as exc:
            # It may still come to it: whoever takes its run directory away prevents that.
            raise Unavailable("the shim did not answer in time") from exc
        finally:
            loop.remove_reader(descriptor)
        if not received:
            raise ShimDied("the shim died")
        answer: dict[str, Any] = json.loads(received)
        return answer

    def close(self) -> None:
        """Let go of it: a warm one ends, a started one goes on."""
        self.socket.close()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def source_roots() -> list[str]:
    """The directories from which the launcher imports `mooring.runtime` and `mooring.shim`."""
    roots = []
    for package in ("mooring.runtime", "mooring.shim"):
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise EngineError(f"{package} is not installed")
        root = os.path.dirname(os.path.dirname(next(iter(found.submodule_search_locations))))
        if root not in roots:
            roots.append(root)
    return roots


def spawn(code: str, environment: dict[str, str]) -> tuple[int, socket.socket]:
    """Run Python code (standard library and our two packages only) with a socket as fd 3."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    program = f"import sys; sys.path[:0]={source_roots()!r}; {code}"
    # Read-only, as a container could else come to write to it; the same pages of memory.
    mount = interpreter.read_only(sys.executable)
    descriptor = -1
    try:
        # The child's 3 is the socket by the time it is executed.
        descriptor = fcntl.fcntl(mount, fcntl.F_DUPFD_CLOEXEC, 4)
        pid = os.posix_spawn(
            f"/proc/self/fd/{descriptor}",
            [sys.executable, "-I", "-S", "-c", program],
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)],
            setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM],
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        os.close(mount)
        if descriptor >= 0:
            os.close(descriptor)
    ours.setblocking(False)
    return pid, ours


class Launcher:
    """The process that forks shims, started again whenever it dies."""

    def __init__(self, environment: dict[str, str], cgroup: str = "") -> None:
        self._environment = environment
        self._cgroup = cgroup
        self._socket: socket.socket | None = None
        self._pid = 0
        self._waiting: deque[asyncio.Future[tuple[dict[str, Any], list[int]]]] = deque()

    @property
    def pid(self) -> int:
        """The process that runs now, 0 for none."""
        return self._pid

    def start(self) -> None:
        """Start it if it does not run."""
        if self._socket is not None:
            return
        self._pid, self._socket = spawn(
            "from mooring.runtime.launcher import main; main()", self._environment
        )
        if self._cgroup:
            # Before it forks anything: what it forks is born there, and outlives the worker's unit.
            kit_cgroups.move(self._pid, self._cgroup)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)
        logger.info("launcher started, pid %d", self._pid)

    async def fork(self, cgroup: str | None) -> WarmShim:
        """A fresh warm shim; Unavailable if two launchers in a row die over it."""
        try:
            answer, descriptors = await self._ask({"op": "fork", "cgroup": cgroup})
        except ShimDied:
            answer, descriptors = await self._ask({"op": "fork", "cgroup": cgroup})
        sock = socket.socket(fileno=descriptors[0])
        return WarmShim(int(answer["pid"]), sock, str(answer["code"]))

    async def fork_successor(self, directory: str) -> socket.socket:
        """A shim to take over the run of a directory: the socket that it is spoken to over."""
        request = SUCCESSOR + os.fsencode(directory)
        try:
            _, descriptors = await self._ask(request)
        except ShimDied:
            _, descriptors = await self._ask(request)
        return socket.socket(fileno=descriptors[0])

    async def fork_bare(self) -> tuple[int, list[int], str]:
        """A shim without a helper: its pid, the descriptors of a bare.BareShim, its code."""
        try:
            answer, descriptors = await self._ask(BARE)
        except ShimDied:
            answer, descriptors = await self._ask(BARE)
        return int(answer["pid"]), descriptors, str(answer["code"])

    async def fork_factory(self) -> socket.socket:
        """A process that makes network sandboxes: its socket, with which it ends."""
        try:
            _, descriptors = await self._ask(FACTORY)
        except ShimDied:
            _, descriptors = await self._ask(FACTORY)
        sock = socket.socket(fileno=descriptors[0])
        sock.setblocking(False)
        return sock

    async def _ask(self, request: dict[str, Any] | bytes) -> tuple[dict[str, Any], list[int]]:
        self.start()
        assert self._socket is not None
        future: asyncio.Future[tuple[dict[str, Any], list[int]]] = (
            asyncio.get_running_loop().create_future()
        )
        self._waiting.append(future)
        try:
            packet = request if isinstance(request, bytes) else json.dumps(request).encode()
            self._socket.send(packet)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            # Its queue holds hundreds of requests: one that is full is not being read.
            self._lost()
        try:
            async with asyncio.timeout(FORK_TIMEOUT):
                answer, descriptors = await future
        except TimeoutError as exc:
            self._lost()
            raise Unavailable("the launcher does not answer") from exc
        if error := answer.get("error"):
            for descriptor in descriptors:
                os.close(descriptor)
            raise EngineError(f"the launcher cannot fork: {error}")
        return answer, descriptors

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            packet, descriptors, _, _ = socket.recv_fds(
                self._socket, PACKET, 4, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            packet, descriptors = b"", []
        if not packet:
            self._lost()
            return
        future = self._waiting.popleft()
        if future.done():
            for descriptor in descriptors:
                os.close(descriptor)
        else:
            future.set_result((json.loads(packet), list(descriptors)))

    def _lost(self) -> None:
        """The launcher died or is not to be trusted any more; shims do not notice."""
        if self._socket is None:
            return
        logger.warning("launcher %d is gone", self._pid)
        waiting, self._waiting = self._waiting, deque()
        self.close()
        for future in waiting:
            if not future.done():
                future.set_exception(ShimDied("the launcher died"))

    def close(self) -> None:
        """End it: it has nothing but what it is asked for."""
        if self._socket is None:
            return
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()
        self._socket = None
        pid, self._pid = self._pid, 0
        # Its socket has closed, so it ends by itself; the signal is for one that hangs.
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass

"""Shims whose containers the worker makes: its ends of one, and of the prepared process."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import struct

from mooring.kit.errors import EngineError, Unavailable

from .launching import FORK_TIMEOUT, Launcher, ShimDied
from .oci import ahead, machine
from .oci.cgroup import Cgroup
from .oci.cgroups import attach
from .oci.program import Program
from .oci.template import DEVICE_RULES
from .runs import start_time

_CREDENTIALS = struct.Struct("<iII")
_MESSAGE = 64


class StepFailed(EngineError):
    """A step of a program failed: the message names the call and the reason."""


class BareShim:
    """A warm shim, and the process below it that waits to become a container.

    The shim ends when `socket` closes before it was given a container; see ARCHITECTURE.md, 3.
    """

    __slots__ = (
        "_prepared", "_used", "cgroup", "channel", "code", "init", "pid", "pidfd", "sleeper",
        "socket", "start",
    )  # fmt: skip

    def __init__(
        self, pid: int, fds: list[int], cgroup: Cgroup | None, program: Program, code: str = ""
    ) -> None:
        """fds: the shim's socket, the channel of its process, what the shim sleeps on.

        cgroup: that of its process; None on v2, where this is the parent of the container's.
        """
        self.pid = pid
        self.code = code
        self.start = start_time(pid)
        self.socket = socket.socket(fileno=fds[0])
        self.channel = socket.socket(fileno=fds[1])
        self.sleeper = fds[2]
        self.cgroup = cgroup
        self.init = 0
        self.pidfd = -1
        """The process that becomes the container, once it is `ready`."""
        self._used = False
        self._prepared = program
        self.socket.setblocking(False)
        self.channel.setblocking(False)

    def alive(self) -> bool:
        """Whether the shim and its process are there."""
        return _open(self.socket) and _open(self.channel)

    async def ready(self) -> None:
        """Wait until its process is prepared. StepFailed, ShimDied, Unavailable."""
        self._used = True
        await self.expect(ahead.PREPARED, self._prepared)

    async def expect(self, letter: bytes, program: Program) -> bool:
        """Wait for the next word of its process; False at the end of the channel.

        StepFailed if it is that a step of `program` failed. ShimDied if the channel ends where a
        letter is expected.
        """
        loop = asyncio.get_running_loop()
        try:
            message, ancillary = self._receive()
        except BlockingIOError:
            readable = loop.create_future()
            loop.add_reader(self.channel.fileno(), _wake, readable)
            try:
                async with asyncio.timeout(FORK_TIMEOUT):
                    await readable
            except TimeoutError as exc:
                raise Unavailable("the container's first process did not answer in time") from exc
            finally:
                loop.remove_reader(self.channel.fileno())
            message, ancillary = self._receive()
        if message in (ahead.PREPARED, ahead.READY):
            self._meet(ancillary)
        if message[:1] == machine.FAILED:
            error = program.explain(message)
            raise StepFailed(str(error.strerror))
        if message == letter:
            return bool(letter)
        raise ShimDied("the container's first process died while it was being set up")

    def _meet(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        """The kernel says who has sent this: on v2 the parent, and then its child."""
        sender = self.init
        for _, kind, data in ancillary:
            if kind == socket.SCM_CREDENTIALS:
                sender = _CREDENTIALS.unpack(data)[0]
        if sender == self.init:
            return
        self.init = sender
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        try:
            self.pidfd = os.pidfd_open(self.init)
        except (OSError, OverflowError) as exc:
            raise ShimDied("the container's first process is gone") from exc

    def _receive(self) -> tuple[bytes, list[tuple[int, int, bytes]]]:
        space = socket.CMSG_SPACE(_CREDENTIALS.size)
        try:
            message, ancillary, _, _ = self.channel.recvmsg(_MESSAGE, space)
        except ConnectionResetError:
            return b"", []
        return message, ancillary

    def close(self) -> None:
        """Let go of it: a warm one ends and its cgroup goes, one that was started goes on."""
        self.socket.close()
        self.channel.close()
        for fd in (self.sleeper, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.sleeper = self.pidfd = -1
        if not self._used:
            self._used = True
            if self.cgroup is not None:
                self.cgroup.remove()

    def kill(self) -> None:
        """End its process, which has not executed anything."""
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass


class BareForks:
    """What makes bare shims, for a pool."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._program: tuple[bytes, Program] | None = None
        self._placeholder = ""
        self._numbers = itertools.count(1)

    async def fork(self, cgroup: str | None) -> BareShim:
        """A fresh one, its process on the way to being prepared, in a cgroup of that name.

        None on v2: it is the parent of one that will be born where the container's cgroup is.
        """
        if cgroup is None:
            return await self._fork(None, *self._prepare_parent())
        made = attach(cgroup)
        # Its child enters it; this process makes it, which has no copied pages to pay for that.
        made.create()
        try:
            made.apply({"devices": DEVICE_RULES})
            packet, program = self._prepare(made)
            return await self._fork(made, packet, program)
        except BaseException:
            made.remove()
            raise

    async def _fork(self, cgroup: Cgroup | None, packet: bytes, program: Program) -> BareShim:
        pid, fds, code = await self._launcher.fork_bare()
        shim = BareShim(pid, fds, cgroup, program, code)
        try:
            shim.channel.send(packet)
        except OSError as exc:
            shim.close()
            raise EngineError(f"a new shim is gone already: {exc.strerror}") from exc
        return shim

    def _prepare(self, cgroup: Cgroup) -> tuple[bytes, Program]:
        """The program of a waiting process: made once, with the name of its cgroup put in."""
        # Only the version that this host has is loaded.
        from .oci.cgroup1 import names_of

        above, _, name = cgroup.path.rpartition("/")
        if self._program is None or len(self._placeholder) != len(name):
            self._placeholder = "@" * len(name)
            program = ahead.prepare(names_of(f"{above}/{self._placeholder}"))
            self._program = program.build(), program
        packet, program = self._program
        return packet.replace(self._placeholder.encode(), name.encode()), program

    def _prepare_parent(self) -> tuple[bytes, Program]:
        """The program of a waiting parent: made once."""
        if self._program is None:
            program = ahead.prepare_parent()
            self._program = program.build(), program
        return self._program


def _open(channel: socket.socket) -> bool:
    try:
        return bool(channel.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)

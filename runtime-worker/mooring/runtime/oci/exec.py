"""A further process in a running container, from the fork to execve."""

from __future__ import annotations

import os

from . import process as setup
from . import terminal
from .channel import GO, READY, TERMINAL, Channel
from .errors import OciError, because
from .init import forbid_imports
from .linux import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUTS,
    close_range,
    new_session_keyring,
    setns,
)
from .rootfs import open_terminal
from .seccomp import filter_flags

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .container import Running

JOINED = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWCGROUP
"""The namespaces of init that an exec joins; that of pids it is born in."""


class Exec:
    """What the child needs to know; it has it from the fork."""

    __slots__ = ("_keep", "_process", "_running", "_seccomp", "_size", "_spec", "_stdio")

    def __init__(
        self,
        running: Running,
        spec: dict[str, Any],
        process: dict[str, Any],
        stdio: tuple[int, int, int],
        size: tuple[int, int] | None,
        seccomp: bytes | None,
        keep: int,
    ) -> None:
        self._running = running
        self._spec = spec
        self._process = process
        self._stdio = stdio
        self._size = size
        self._seccomp = seccomp
        self._keep = keep

    def run(self, channel: Channel) -> None:
        """In the child, which was born in the container's pid namespace (and v2 cgroup)."""
        capabilities = setup.check(self._process)
        pidfd = self._arrange(channel)
        self._join(pidfd)
        if self._process.get("terminal"):
            channel.send(TERMINAL, None, [self._take_terminal()])
        close_range(channel.fileno() + 1)
        setup.become_user(self._process, capabilities)
        program = setup.find_program(self._process)
        flags = filter_flags(self._spec)
        channel.send(READY)
        if channel.receive()[0] != GO:
            return  # The caller is gone, or does not want it any more.
        setup.execute(self._process, program, capabilities, self._seccomp, flags, self._keep)

    def _arrange(self, channel: Channel) -> int:
        """Stdio and the channel to their places; returns where init's pidfd is now."""
        high = 64 + self._keep
        # First out of each other's way, then down: any of these may have any number now.
        moved = [_duplicate(fd, high) for fd in (*self._stdio, self._running.pidfd)]
        channel.move(high - 1)
        for number in range(3):
            os.dup2(moved[number], number)
        channel.move(3 + self._keep)
        return moved[3]

    def _join(self, pidfd: int) -> None:
        from .cgroups import version

        try:
            if version() == 1:
                self._running.cgroup.enter()
        except OSError as error:
            raise because(f"cannot enter cgroup {self._running.cgroup.path}", error) from error
        try:
            new_session_keyring(b"mooring")
        except OSError:
            pass
        setup.set_host_side(self._process)
        forbid_imports()
        try:
            setns(pidfd, JOINED)
        except OSError as error:
            raise because("cannot join the container's namespaces", error) from error

    def _take_terminal(self) -> int:
        root = os.open("/", os.O_PATH | os.O_CLOEXEC)
        master = open_terminal(root)
        if self._size:
            terminal.resize(master, *self._size)
        user = self._process.get("user") or {}
        terminal.take(terminal.open_slave(master, user.get("uid") or 0))
        return master


def _duplicate(fd: int, least: int) -> int:
    import fcntl

    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)
    except OSError as error:
        raise OciError(f"descriptor {fd} of the caller is not open") from error

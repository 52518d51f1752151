"""A further process in a running container, by `machine`: exec.py's work as a program.

A fork of the interpreter copies hundreds of pages before it can execute anything; this has ten.
On cgroup v1 it moves itself into the container's cgroup; on v2 it has a sibling that is born there
and does the rest (see ahead.py).
Only what most execs ask for: where a step fails, or can't be done so, the caller begins again with
`exec_process`, which has a way around it or knows the words for what is impossible.
"""

from __future__ import annotations

import os
from _socket import (
    AF_UNIX,
    CMSG_SPACE,
    SCM_CREDENTIALS,
    SCM_RIGHTS,
    SO_PASSCRED,
    SOCK_CLOEXEC,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socket,
    socketpair,
)

from . import ahead, cgroups, job, machine, process
from .ahead import A
from .errors import OciError
from .exec import JOINED
from .linux import (
    AT_FDCWD,
    KEYCTL_JOIN_SESSION_KEYRING,
    PR_SET_DUMPABLE,
    PR_SET_NAME,
    SIGKILL,
    permitted_capabilities,
)
from .program import TRY, WAIT, Program, received
from .stub import PidNamespace, bury

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .container import Running

_INIT = job.STDIO
"""Number of init's pidfd among the descriptors that come with the program."""
_NOT_HERE = ("terminal", "apparmorProfile", "selinuxLabel")
_CREDENTIALS_BYTES = 12
_BORN_SECONDS = 1.0
"""A birth takes 0.2 ms. It takes for ever in a cgroup that somebody has frozen above ours."""
_executable = -1


class Entering:
    """A process on its way into a container: a child of the caller, with the host's number for it.

    When `channel` is readable `executed` says what became of it.
    """

    __slots__ = ("_fds", "_packet", "_socket", "_waits", "channel", "pid", "pidfd")

    def __init__(
        self, pid: int, pidfd: int, channel: socket, packet: bytes, fds: Sequence[int]
    ) -> None:
        """packet: what it is to do, with the descriptors `fds`; open until `go`."""
        self.pid = pid
        self.pidfd = pidfd
        self._socket = channel
        self._packet = packet
        self._fds = fds
        self._waits = False
        self.channel = channel.fileno()

    def come(self) -> None:
        """Have a program that waits before its last steps come to that point."""
        self._waits = True
        self._send(self._packet, self._fds)

    def go(self) -> None:
        """Have it do all that is left. Whose caller dies before does nothing, and ends."""
        if self._waits:
            self._send(ahead.GO, ())
        else:
            self._send(self._packet, self._fds)

    def _send(self, packet: bytes, fds: Sequence[int]) -> None:
        rights = b"".join(fd.to_bytes(4, "little") for fd in fds)
        ancillary = [(SOL_SOCKET, SCM_RIGHTS, rights)] if fds else []
        try:
            self._socket.sendmsg([packet], ancillary)
        except OSError:
            pass  # It is dead: `executed` tells.

    def abandon(self) -> None:
        """It is not to do anything any more."""
        self._socket.close()
        bury(self.pid, self.pidfd)

    def executed(self) -> bool:
        """Whether it has executed its program; if not, it is buried. Closes the channel."""
        try:
            failed = bool(self._socket.recv(64))
        except OSError:
            failed = True
        self._socket.close()
        if failed:
            bury(self.pid, self.pidfd)
        return not failed


def enter(
    running: Running,
    values: dict[str, Any],
    stdio: Sequence[int],
    seccomp: bytes | None,
    *,
    early: bool = False,
) -> Entering | None:
    """Make the process that is to run a program in a container, and does when it is told to `go`;
    None where that needs `exec_process`.

    values: OCI's process. seccomp: a filter without flags. early: it enters the container now, and
    waits there.
    """
    if any(values.get(key) for key in _NOT_HERE):
        return None
    if not machine.available() or running.cgroup.frozen():
        return None
    directories, born_in = running.cgroup.directories(), ""
    if cgroups.version() == 2:
        directories, born_in = [], directories[0]
    try:
        packet = _program(directories, values, seccomp, early).build()
        entering = _begin(running.pidfd, packet, (*stdio, running.pidfd), born_in)
        if early:
            entering.come()
        return entering
    except (OciError, OSError, ValueError):
        return None


def executable() -> int:
    """The machine, as a descriptor that this process keeps."""
    global _executable
    if _executable < 0:
        _executable = machine.executable()
    return _executable


def _program(
    directories: Sequence[str], values: dict[str, Any], seccomp: bytes | None, waits: bool
) -> Program:
    capabilities = process.check(values)
    program = Program()
    call = program.call
    # Before the container can look at it: all that it has of the host's are its descriptors.
    call("prctl", PR_SET_DUMPABLE, 0)
    call("prctl", PR_SET_NAME, machine.NAME.encode())
    ahead.reset_signals(program)
    call("setsid")
    for directory in directories:
        path = os.fsencode(f"{directory}/tasks")
        call("openat", AT_FDCWD, path, os.O_WRONLY | os.O_CLOEXEC, result=A)
        call("write", A, b"0", 1)
        call("close", A)
    call("keyctl", KEYCTL_JOIN_SESSION_KEYRING, b"mooring", flags=TRY)
    job.set_host_side(program, values)
    call("setns", received(_INIT), JOINED)
    for number in range(job.STDIO):
        call("dup3", received(number), number, 0)
    call("close_range", 4, 0xFFFFFFFF, 0)
    call("chdir", os.fsencode(values["cwd"]))
    job.become_user(program, values, capabilities)
    if waits:
        call("read", 3, bytes(8), 1, flags=WAIT)
    own = permitted_capabilities()
    job.execute(program, values, capabilities, seccomp, 0, own)
    return program


def _begin(init: int, packet: bytes, fds: Sequence[int], born_in: str) -> Entering:
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    try:
        moves = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)]
        # As vfork(2) does, this copies no page of ours.
        with PidNamespace(init):
            path = f"/proc/self/fd/{executable()}"
            pid = os.posix_spawn(path, [machine.NAME], {}, file_actions=moves)
        if born_in:
            pid = _sibling(ours, pid, born_in)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return Entering(pid, os.pidfd_open(pid), ours, packet, fds)


def _sibling(channel: socket, pid: int, directory: str) -> int:
    """Have a process replaced by one in that cgroup (v2), also a child of ours; its pid.

    OSError where that can't be: then the channel's end is its end, too.
    """
    program = Program()
    # Before the container can look at it.
    program.call("prctl", PR_SET_DUMPABLE, 0)
    ahead.enter_cgroup(program, directory)
    channel.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)
    channel.settimeout(_BORN_SECONDS)
    try:
        channel.send(program.build())
        message, ancillary, _, _ = channel.recvmsg(64, CMSG_SPACE(_CREDENTIALS_BYTES))
    finally:
        # It has ended, or is not wanted any more.
        os.kill(pid, SIGKILL)
        os.waitpid(pid, 0)
    channel.settimeout(None)
    if message != ahead.PREPARED:
        raise program.explain(message)
    found = [data for _, kind, data in ancillary if kind == SCM_CREDENTIALS]
    # As the kernel numbers it for us.
    return int.from_bytes(found[0][:4], "little")

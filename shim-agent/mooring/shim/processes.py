"""A process of a container as its shim holds it: standard streams, pidfd, exit status."""

from __future__ import annotations

import os
from fcntl import F_GETFL, F_SETFL, fcntl, ioctl
from struct import pack, unpack_from
from time import sleep

from .loop import Loop
from .stdin import Input
from .stdio import NAMES, Recorder

TIOCSWINSZ = 0x5414
NOT_EXECUTED = 249
"""The exit code of a process that was to become the container's init and never did: of a machine
that was left alone, too."""
_FORK = "fork "
NULL = 0
"""The shim's descriptors 0 to 2 are /dev/null."""

_PIDFD_GET_INFO = (3 << 30) | (64 << 16) | (0xFF << 8) | 11
_PIDFD_INFO_EXIT = 1 << 3
_REAP_LOOKS = 200


class Streams:
    """Both ends of a process's standard streams, made before the process is.

    `child` is what the process gets as 0, 1 and 2. `ours` are the other ends by name: `stdin`,
    `stdout`, `stderr`; with a terminal, `inlet` and `outlet` of the pipe that its output takes.
    """

    __slots__ = ("child", "ours")

    def __init__(self, tty: bool, wants_input: bool, wants_output: bool) -> None:
        self.ours: dict[str, int] = {}
        stdin = stdout = stderr = NULL
        if tty and wants_output:
            self.ours["outlet"], self.ours["inlet"] = os.pipe2(os.O_CLOEXEC)
        if not tty and wants_input:
            stdin, self.ours["stdin"] = os.pipe2(os.O_CLOEXEC)
        if not tty and wants_output:
            self.ours["stdout"], stdout = os.pipe2(os.O_CLOEXEC)
            self.ours["stderr"], stderr = os.pipe2(os.O_CLOEXEC)
        self.child = (stdin, stdout, stderr)

    def close_child(self) -> None:
        """The process has its own copies, or never will: end of file must be seen."""
        for fd in self.child:
            if fd != NULL:
                os.close(fd)
        self.child = (NULL, NULL, NULL)

    def close(self) -> None:
        """There is no process."""
        self.close_child()
        for fd in self.ours.values():
            os.close(fd)
        self.ours = {}


def record_streams(recorder: Recorder, fds: dict[str, int]) -> None:
    """Read the streams (or the terminal) of `fds` into the log."""
    if "outlet" in fds and "master" in fds:
        set_nonblocking(fds["master"])
        recorder.add_terminal(fds["master"], (fds["outlet"], fds["inlet"]))
    for stream, name in NAMES.items():
        if name in fds:
            lane = fds.get(f"{name}_outlet", -1), fds.get(f"{name}_inlet", -1)
            recorder.add(stream, fds[name], lane)


def open_input(
    loop: Loop, fds: dict[str, int], wants_input: bool, once: bool, directory: str
) -> Input:
    """The input that clients write to: a pipe, or the terminal."""
    if wants_input and "master" in fds:
        return Input(loop, os.dup(fds["master"]), once, directory, fds)
    return Input(loop, fds.get("stdin", -1), once, directory, fds)


def set_nonblocking(fd: int) -> None:
    """Reads and splices of this file return instead of waiting."""
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | os.O_NONBLOCK)


def resize(master: int, rows: int, columns: int) -> None:
    """Set the size of a terminal in characters."""
    ioctl(master, TIOCSWINSZ, pack("<HHHH", rows, columns, 0, 0))


def exit_status(pidfd: int) -> tuple[int | None, int]:
    """(exit code, signal) of a process that has ended; 128+n for a signal.

    Of a process that is not our child (its shim was killed, this one took over) the kernel tells
    from 6.15 on; before, nobody can know: None.
    """
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        return _status_of_another(pidfd)
    if result is None:
        return None, 0
    if result.si_code == os.CLD_EXITED:
        return result.si_status, 0
    return 128 + result.si_status, result.si_status


def executed(pid: int, unexecuted: str = "") -> bool | None:
    """Whether a process forked by us (or by our helper) runs another program by now.

    None if it has ended. unexecuted: its /proc/<pid>/exe before, or its `fork_mark`. Of a fork
    without that: the kernel chooses another place for the stack of each program executed, and a
    fork has the place of its parent.
    """
    if unexecuted.startswith(_FORK):
        mark = fork_mark(pid)
        return None if not mark else mark != unexecuted
    if unexecuted:
        try:
            return os.readlink(f"/proc/{pid}/exe") != unexecuted
        except (FileNotFoundError, ProcessLookupError):
            return None
    theirs, ours = _stack(pid), _stack(os.getpid())
    return None if not theirs else theirs != ours


def fork_mark(pid: int) -> str:
    """What another program than this would change: the name, the place of the stack (where that
    is chosen by chance); empty if the process has ended."""
    stack, name = _stack_and_name(pid)
    return f"{_FORK}{stack} {name}" if stack else ""


def _stack(pid: int) -> int:
    return _stack_and_name(pid)[0]


def _stack_and_name(pid: int) -> tuple[int, str]:
    try:
        with open(f"/proc/{pid}/stat", "rb", 0) as file:
            text = file.read(4096)
    except (FileNotFoundError, ProcessLookupError):
        return 0, ""
    end = text.rindex(b")")
    name = text[text.index(b"(") + 1 : end].decode(errors="replace")
    return int(text[end + 2 :].split(None, 27)[25]), name


def _status_of_another(pidfd: int) -> tuple[int | None, int]:
    info = bytearray(64)
    for _ in range(_REAP_LOOKS):
        info[0:8] = pack("<Q", _PIDFD_INFO_EXIT)
        try:
            ioctl(pidfd, _PIDFD_GET_INFO, info)
        except OSError:
            return None, 0
        (mask,) = unpack_from("<Q", info)
        if mask & _PIDFD_INFO_EXIT:
            break
        # Its parent has not reaped it yet; there is nothing else to do for us now.
        sleep(0.01)
    else:
        return None, 0
    (status,) = unpack_from("<i", info, 60)
    if signal := status & 0x7F:
        return 128 + signal, signal
    return status >> 8 & 0xFF, 0

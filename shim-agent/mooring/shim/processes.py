"""A process of a container as its shim holds it: standard streams, pidfd, exit status."""

from __future__ import annotations

import os
from fcntl import F_GETFL, F_SETFL, fcntl, ioctl
from struct import pack, unpack_from

from .frames import STDERR, STDOUT
from .loop import Loop
from .stdin import Input
from .stdio import Recorder

TIOCSWINSZ = 0x5414
NULL = 0
"""The shim's descriptors 0 to 2 are /dev/null."""

_PIDFD_GET_INFO = (3 << 30) | (64 << 16) | (0xFF << 8) | 11
_PIDFD_INFO_EXIT = 1 << 3


class Streams:
    """Both ends of a process's standard streams, until the process has its own.

    `child` is what the process gets as 0, 1 and 2. With a terminal it gets that instead, and
    `use_terminal` is called with its master.
    """

    __slots__ = ("_tty", "_wants_input", "child", "input")

    def __init__(self, tty: bool, wants_input: bool, recorder: Recorder | None) -> None:
        self._tty = tty
        self._wants_input = wants_input
        self.input = -1
        stdin = stdout = stderr = NULL
        if not tty and wants_input:
            stdin, self.input = os.pipe2(os.O_CLOEXEC)
        if not tty and recorder is not None:
            out, stdout = os.pipe2(os.O_CLOEXEC)
            err, stderr = os.pipe2(os.O_CLOEXEC)
            recorder.add(STDOUT, out)
            recorder.add(STDERR, err)
        self.child = (stdin, stdout, stderr)

    def close_child(self) -> None:
        """The process has its own copies, or never will: end of file must be seen."""
        for fd in self.child:
            if fd != NULL:
                os.close(fd)
        self.child = (NULL, NULL, NULL)

    def abandon(self) -> None:
        """There is no process: close the input; the outputs belong to the recorder."""
        if self.input >= 0:
            os.close(self.input)
            self.input = -1

    def use_terminal(self, master: int, recorder: Recorder | None) -> None:
        """Read the terminal into the log, by way of a pipe; write to it what clients send."""
        fcntl(master, F_SETFL, fcntl(master, F_GETFL) | os.O_NONBLOCK)
        if recorder is not None:
            out, inlet = os.pipe2(os.O_CLOEXEC)
            recorder.add(STDOUT, out, inlet, master)
        if self._wants_input:
            self.input = os.dup(master)

    def open_input(self, loop: Loop, once: bool) -> Input:
        """The input that clients write to."""
        return Input(loop, self.input, once)


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


def _status_of_another(pidfd: int) -> tuple[int | None, int]:
    info = bytearray(64)
    info[0:8] = pack("<Q", _PIDFD_INFO_EXIT)
    try:
        ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:
        return None, 0
    (mask,) = unpack_from("<Q", info)
    if not mask & _PIDFD_INFO_EXIT:
        return None, 0
    (status,) = unpack_from("<i", info, 60)
    if signal := status & 0x7F:
        return 128 + signal, signal
    return status >> 8 & 0xFF, 0

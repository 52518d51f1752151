"""Terminals of the command: handed over on a console socket, or relayed in the foreground."""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import termios
import tty

from mooring.runtime.oci.errors import OciError, because
from mooring.runtime.oci.terminal import resize


def hand_over(master: int, path: str) -> None:
    """Send a terminal's master to whoever listens on the unix socket at `path`."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(path)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [master]))]
            connection.sendmsg([b"/dev/ptmx"], rights)
    except OSError as error:
        raise because(f"cannot hand the terminal over on {path}", error) from error


def check(terminal: bool, detached: bool, path: str | None) -> None:
    """A detached terminal needs a taker, and a taker needs a terminal."""
    if terminal and detached and not path:
        raise OciError("a detached container with a terminal needs a console socket")
    if path and not (terminal and detached):
        raise OciError("a console socket is only for a detached container with a terminal")


def size() -> tuple[int, int] | None:
    """Rows and columns of our own terminal, if we have one."""
    try:
        columns, rows = os.get_terminal_size(0)
    except OSError:
        return None
    return rows, columns


def relay(master: int) -> None:
    """Be the terminal's other side until it ends, with our own stdin in raw mode."""
    settings = termios.tcgetattr(0) if os.isatty(0) else None
    if settings is not None:
        tty.setraw(0)
        signal.signal(signal.SIGWINCH, lambda *_: _follow_size(master))
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(master, select.POLLIN)
    try:
        while _relay_once(master, poll):
            pass
    finally:
        if settings is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, settings)


def _relay_once(master: int, poll: select.poll) -> bool:
    for fd, _ in poll.poll():
        try:
            data = os.read(fd, 65536)
        except OSError:
            # EIO: the last process has closed the terminal.
            return False
        if fd == master:
            _write(1, data)
        elif data:
            _write(master, data)
        else:
            poll.unregister(0)
    return True


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _follow_size(master: int) -> None:
    if (now := size()) is not None:
        resize(master, *now)

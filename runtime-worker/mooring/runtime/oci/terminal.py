"""Pseudo-terminals: opening the slave, making it the controlling terminal, its size."""

from __future__ import annotations

import fcntl
import os

from .errors import because

_TIOCSCTTY = 0x540E
_TIOCSWINSZ = 0x5414
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441


def open_slave(master: int, uid: int) -> int:
    """The other end of a master, unlocked and owned by the user of the process."""
    try:
        fcntl.ioctl(master, _TIOCSPTLCK, b"\0\0\0\0")
        # By descriptor, so that no path of the container is walked.
        slave: int = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        if uid:
            os.fchown(slave, uid, -1)
        return slave
    except OSError as error:
        raise because("cannot open the terminal", error) from error


def resize(master: int, rows: int, columns: int) -> None:
    """Set the size that programs see, in characters."""
    size = b"".join(n.to_bytes(2, "little") for n in (rows & 0xFFFF, columns & 0xFFFF, 0, 0))
    fcntl.ioctl(master, _TIOCSWINSZ, size)


def take(slave: int) -> None:
    """Make it stdin, stdout, stderr and the controlling terminal of the calling session leader."""
    try:
        fcntl.ioctl(slave, _TIOCSCTTY, 0)
        for number in range(3):
            os.dup2(slave, number)
    except OSError as error:
        raise because("cannot take the terminal", error) from error
    if slave > 2:
        os.close(slave)

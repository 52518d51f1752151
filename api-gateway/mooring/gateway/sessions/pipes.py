"""A pipe that counts: bytes go through it, so that after a kill the kernel knows how many went."""

from __future__ import annotations

import array
import fcntl
import os
import termios
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pipe:
    """Both ends, non-blocking."""

    reading: int
    writing: int
    capacity: int

    @classmethod
    def new(cls) -> Pipe:
        """A fresh one."""
        return cls.of(list(os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)))

    @classmethod
    def of(cls, ends: list[int]) -> Pipe:
        """The one with these two ends, in whichever order they were kept."""
        writing = [fd for fd in ends if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE]
        reading = [fd for fd in ends if fd not in writing]
        return cls(reading[0], writing[0], fcntl.fcntl(writing[0], fcntl.F_GETPIPE_SZ))

    def ends(self) -> tuple[int, int]:
        """Both descriptors."""
        return self.reading, self.writing

    def held(self) -> int:
        """Bytes that are in it."""
        count = array.array("i", [0])
        fcntl.ioctl(self.reading, termios.FIONREAD, count)
        return count[0]

    def drop(self) -> None:
        """Empty it."""
        try:
            while os.read(self.reading, self.capacity):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Close both ends."""
        os.close(self.reading)
        os.close(self.writing)

"""A file that another process still writes: read as far as it is known to have come."""

from __future__ import annotations

import os
import threading


class BrokenOff(OSError):
    """Whoever wrote the file went away before it was whole."""


class Growing:
    """Reads a file from its start; `grown` and `end` come from another thread."""

    def __init__(self, fd: int, *, whole: bool = False) -> None:
        """whole: nothing is added to the file any more."""
        self._fd = fd
        self._position = 0
        self._known = 0
        self._ended = whole
        self._broken = False
        self._changed = threading.Condition()

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self._position

    def grown(self, size: int) -> None:
        """The file has that many bytes now."""
        with self._changed:
            self._known = max(self._known, size)
            self._changed.notify()

    def end(self, *, broken: bool = False) -> None:
        """Nothing more will come; broken: and something is missing."""
        with self._changed:
            self._ended, self._broken = True, broken
            self._changed.notify()

    def read(self, limit: int) -> bytes:
        """Wait for more; empty at the end. BrokenOff."""
        while True:
            with self._changed:
                while not self._ended and self._known <= self._position:
                    self._changed.wait()
                if self._broken:
                    raise BrokenOff("the layer was broken off")
                ended, available = self._ended, self._known - self._position
            piece = os.pread(self._fd, limit if ended else min(limit, available), self._position)
            self._position += len(piece)
            if piece or ended:
                return piece

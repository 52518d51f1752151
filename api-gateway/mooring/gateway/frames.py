"""The frames of a container's log, as they arrive in pieces of any size.

A frame is a 16-byte head and its payload (docs/ARCHITECTURE.md, 4). A payload is passed on as it
comes: a frame may be larger than what anybody wants to hold.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

HEAD = struct.Struct("<HBBIQ")
MAGIC = 0x4D52

STDOUT = 1
STDERR = 2
RUN_BEGINS = 16
RUN_ENDS = 17


class FrameError(Exception):
    """What was read is no log; the message says where."""


class Piece(NamedTuple):
    """A part of a frame's payload."""

    stream: int
    time_ns: int
    data: memoryview
    first: bool
    """Whether the frame begins here."""
    last: bool
    """Whether it ends here."""


class FrameReader:
    """Cuts a stream of log bytes, which begins at a frame, into pieces of frames."""

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        """Of the next byte to be fed."""
        self._head = b""
        self._left = 0
        self._stream = 0
        self._time_ns = 0

    def position(self) -> tuple[int, int, int, int]:
        """What is left of the frame that was begun, its stream and time; bytes of a head held."""
        return self._left, self._stream, self._time_ns, len(self._head)

    def go_on(self, left: int, stream: int, time_ns: int) -> None:
        """What is fed next begins inside a frame (or at one: left 0)."""
        self._left, self._stream, self._time_ns = left, stream, time_ns

    def feed(self, data: bytes | memoryview) -> list[Piece]:
        """The pieces in data; FrameError if a frame does not begin where one should."""
        view = memoryview(data)
        size = len(view)
        pieces: list[Piece] = []
        at = 0
        if self._left:
            at = min(self._left, size)
            self._left -= at
            pieces.append(
                Piece(self._stream, self._time_ns, view[:at], False, self._left == 0),
            )
        elif self._head:
            missing = HEAD.size - len(self._head)
            self._head += view[:missing]
            if len(self._head) < HEAD.size:
                self.offset += size
                return pieces
            head, self._head = self._head, b""
            at = self._frame(head, 0, view, missing, pieces)
        while at + HEAD.size <= size:
            at = self._frame(view, at, view, at + HEAD.size, pieces)
        if at < size:
            self._head = bytes(view[at:])
        self.offset += size
        return pieces

    def _frame(
        self, head: bytes | memoryview, head_at: int, view: memoryview, at: int, out: list[Piece]
    ) -> int:
        """Begin a frame whose payload starts at `at`; returns where this frame's part ends."""
        magic, stream, _, length, time_ns = HEAD.unpack_from(head, head_at)
        if magic != MAGIC:
            raise FrameError(f"no log frame at {self.offset + at - HEAD.size}")
        end: int = at + length
        if end <= len(view):
            out.append(Piece(stream, time_ns, view[at:end], True, True))
            return end
        out.append(Piece(stream, time_ns, view[at:], True, False))
        self._stream, self._time_ns, self._left = stream, time_ns, end - len(view)
        return len(view)

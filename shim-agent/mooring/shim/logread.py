"""Reading a container's log while its shim writes it: by logical offset, by lines, by time, by run.

Offsets count every byte of the log, headers too, and never change; rotation only takes whole
segments away at the front. Nothing here is the writer's: what it needs it finds in the files.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from .frames import (
    HEADER,
    HEADER_SIZE,
    MAGIC,
    RUN_BEGINS,
    RUN_ENDS,
    STDERR,
    STDOUT,
    read_index,
    segment_name,
    segments,
    whole_end,
)

_BLOCK = 256 << 10
_NEWLINE = 10
_FEW = 1000
"""Lines that are looked for one by one; more are counted first."""


class RotatedAway(Exception):
    """The bytes asked for were deleted by rotation; the log now begins at `first`."""

    def __init__(self, first: int) -> None:
        super().__init__(f"the log now begins at offset {first}")
        self.first = first


class LogReader:
    """One reader of the log in `directory`. A log that is not there yet is an empty one."""

    __slots__ = ("_base", "_bases", "_end", "_fd", "_next", "directory")

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._fd = -1
        self._base = 0
        self._bases: list[int] = []
        """Where the segments began when they were last looked for."""
        self._next: int | None = None
        """Where the segment that is open ends, if it is not the last."""
        self._end = 0
        """A known frame boundary; the whole frames end here or beyond."""

    def first(self) -> int:
        """The lowest offset that can be read."""
        bases = segments(self.directory)
        return bases[0] if bases else 0

    def known_end(self, offset: int) -> None:
        """The shim said that whole frames reach to `offset`: spares looking for the end."""
        self._end = max(self._end, offset)

    def end(self) -> int:
        """Where the last whole frame ends now."""
        bases = segments(self.directory)
        if not bases:
            return self._end
        position = max(self._end, bases[0])
        for base, following in zip(bases, [*bases[1:], None], strict=True):
            if following is not None:
                # Segments end between frames, so all of this one is whole.
                position = max(position, following)
            elif self._open(base, None):
                if position <= base:
                    # Nothing is known of it yet: not all of a long segment need be walked.
                    position = self._last_hint(base)
                position = base + whole_end(self._fd, position - base)[0]
        self._end = max(self._end, position)
        return self._end

    def _last_hint(self, base: int) -> int:
        """The last frame of the open segment that the index knows of, or where it begins."""
        for offset, _ in reversed(read_index(self.directory)):
            if offset <= base:
                break
            header = os.pread(self._fd, HEADER_SIZE, offset - base)
            if len(header) == HEADER_SIZE and HEADER.unpack(header)[0] == MAGIC:
                return offset
        return base

    def read(self, offset: int, limit: int) -> bytes:
        """Up to `limit` bytes of the log from `offset`; b"" at its end. RotatedAway."""
        if offset >= self._end and offset >= self.end():
            return b""
        while self._locate(offset):
            size = min(limit, self._end - offset)
            if self._next is not None:
                size = min(size, self._next - offset)
            if data := os.pread(self._fd, size, offset - self._base):
                return data
            if self._next is not None or segments(self.directory)[-1:] == [self._base]:
                return b""
            self._base = -1  # The writer has gone on to another segment: look again.
        return b""

    def offset_of_tail(
        self, lines: int, streams: Sequence[int] = (STDOUT, STDERR)
    ) -> tuple[int, bytes]:
        """Where the last `lines` lines of `streams` begin: an offset, and the header to put there.

        A line may begin inside a frame. Then the 16 bytes at the offset returned are to be taken
        from the second value instead of the log: the header of a frame that holds the rest. If it
        is empty, the log itself has a frame there.
        """
        upper = self.end()
        if lines <= 0:
            return upper, b""
        # A last line without its newline counts as well.
        newlines = lines + 1
        seen: set[int] = set()
        for anchor in reversed(self._anchors(upper)):
            data = self._bytes(anchor, upper - anchor)
            for position, stream, time_ns, payload in reversed(list(frames(data))):
                if stream not in streams or not payload:
                    continue
                begin = position + HEADER_SIZE
                end = begin + len(payload)
                if stream not in seen:
                    seen.add(stream)
                    if data[end - 1] != _NEWLINE:
                        newlines -= 1
                # A frame may hold a megabyte, and the lines be a few at its end.
                if newlines > _FEW and (found := data.count(b"\n", begin, end)) < newlines:
                    newlines -= found
                    continue
                at = end
                while newlines and (before := data.rfind(b"\n", begin, at)) >= 0:
                    at, newlines = before, newlines - 1
                if newlines:
                    continue
                left = end - at - 1
                header = HEADER.pack(MAGIC, stream, 0, left, time_ns) if left else b""
                return anchor + at + 1 - (HEADER_SIZE if left else 0), header
            upper = anchor
        return upper, b""

    def head_within(self, offset: int) -> bytes:
        """What stands at an offset that `offset_of_tail` gave out: the header it was given with."""
        upper = self.end()
        start = max((a for a in self._anchors(upper) if a <= offset), default=None)
        if start is None:
            return b""
        for position, stream, time_ns, length in self._walk(start, upper):
            if position >= offset:
                return b""
            left = position + HEADER_SIZE + length - (offset + HEADER_SIZE)
            if left > 0:
                return HEADER.pack(MAGIC, stream, 0, left, time_ns)
        return b""

    def offset_since(self, time_ns: int) -> int:
        """The first frame written at or after `time_ns`; the end if there is none."""
        upper = self.end()
        start = None
        for anchor in reversed(self._anchors(upper)):
            start = anchor
            header = self._header(anchor)
            if header is not None and header[2] < time_ns:
                break
        if start is None:
            return upper
        for position, _, written, _ in self._walk(start, upper):
            if written >= time_ns:
                return position
        return upper

    def offset_of_run(self, run: int) -> int | None:
        """The offset of the start frame of a run; None if it has none here (any more)."""
        upper = self.end()
        payload = b"%d" % run
        anchors = self._anchors(upper)
        for anchor in reversed(anchors):
            if self._begins(anchor, payload):
                return anchor
        if not anchors:
            return None
        # The index is only a hint: one that could not be written may have left a run out.
        for position, stream, _, length in self._walk(anchors[0], upper):
            if stream == RUN_BEGINS and self._payload(position, length) == payload:
                return position
        return None

    def end_of_run(self, run: int) -> int | None:
        """The offset behind the end frame of a run; None if it goes on, or ended without one."""
        start = self.offset_of_run(run)
        if start is None:
            return None
        upper = self.end()
        anchors = [a for a in self._anchors(upper) if a >= start]
        for anchor in anchors:
            header = self._header(anchor)
            if anchor > start and header is not None and header[0] == RUN_BEGINS:
                upper = anchor
                break
        below = [a for a in anchors if a < upper] or [start]
        found = None
        for position, stream, _, length in self._walk(below[-1], upper):
            if stream == RUN_ENDS and b'"run":%d,' % run in self._payload(position, length):
                found = position + HEADER_SIZE + length
        return found

    def has_run(self, run: int) -> bool:
        """Whether there is more of a run than a start that was undone leaves, and is made again:
        the start frame, and perhaps an end frame that says so."""
        start = self.offset_of_run(run)
        if start is None:
            return False
        for position, stream, _, length in self._walk(start, self.end()):
            if position == start:
                continue
            if stream != RUN_ENDS or b'"undone":true' not in self._payload(position, length):
                return True
        return False

    def close(self) -> None:
        """Close the segment that is open; the reader can be used again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # --- segments ---

    def _open(self, base: int, following: int | None) -> bool:
        if self._fd >= 0 and self._base == base:
            self._next = following
            return True
        try:
            fd = os.open(self.directory + "/" + segment_name(base), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        self.close()
        self._fd, self._base, self._next = fd, base, following
        return True

    def _locate(self, offset: int) -> bool:
        """Have the segment open that holds `offset`; False at the end of the log. RotatedAway."""
        if (
            self._fd >= 0
            and 0 <= self._base <= offset
            and (self._next is None or offset < self._next)
        ):
            return True
        while True:
            number = bisect_right(self._bases, offset) - 1
            # Where a segment ends never changes; only the last one may have got a successor.
            if not 0 <= number < len(self._bases) - 1:
                self._bases = segments(self.directory)
                number = bisect_right(self._bases, offset) - 1
                if number < 0:
                    raise RotatedAway(self._bases[0] if self._bases else 0)
            following = self._bases[number + 1 : number + 2]
            if self._open(self._bases[number], following[0] if following else None):
                return True
            self._bases = []

    # --- frames ---

    def _anchors(self, upper: int) -> list[int]:
        """Offsets below `upper` at which a frame is known to begin, ascending."""
        bases = segments(self.directory)
        if not bases:
            return []
        hints = {offset for offset, _ in read_index(self.directory) if bases[0] < offset < upper}
        hints.update(base for base in bases if base < upper)
        return sorted(hints)

    def _header(self, offset: int) -> tuple[int, int, int] | None:
        """(stream, length, time_ns) of the frame at `offset`; None if there is none."""
        try:
            data = self.read(offset, HEADER_SIZE)
        except RotatedAway:
            return None
        if len(data) < HEADER_SIZE:
            return None
        magic, stream, _, length, time_ns = HEADER.unpack(data)
        return (stream, length, time_ns) if magic == MAGIC else None

    def _begins(self, offset: int, payload: bytes) -> bool:
        header = self._header(offset)
        return (
            header is not None
            and header[0] == RUN_BEGINS
            and self._payload(offset, header[1]) == payload
        )

    def _payload(self, position: int, length: int) -> bytes:
        return self._bytes(position + HEADER_SIZE, length)

    def _bytes(self, offset: int, size: int) -> bytes:
        parts = []
        while size:
            data = self.read(offset, size)
            if not data:
                break
            parts.append(data)
            offset += len(data)
            size -= len(data)
        return b"".join(parts)

    def _walk(self, start: int, upper: int) -> Iterator[tuple[int, int, int, int]]:
        """(offset, stream, time_ns, length) of every frame from `start` below `upper`."""
        block, first = b"", start
        while start < upper:
            at = start - first
            if at < 0 or at + HEADER_SIZE > len(block):
                first, at = start, 0
                block = self._bytes(start, min(_BLOCK, upper - start))
                if len(block) < HEADER_SIZE:
                    return
            magic, stream, _, length, time_ns = HEADER.unpack_from(block, at)
            if magic != MAGIC:
                return
            yield start, stream, time_ns, length
            start += HEADER_SIZE + length


def frames(data: bytes) -> Iterator[tuple[int, int, int, memoryview]]:
    """(position, stream, time_ns, payload) of the whole frames that `data` begins with."""
    view = memoryview(data)
    position = 0
    while position + HEADER_SIZE <= len(data):
        magic, stream, _, length, time_ns = HEADER.unpack_from(data, position)
        following = position + HEADER_SIZE + length
        if magic != MAGIC or following > len(data):
            return
        yield position, stream, time_ns, view[position + HEADER_SIZE : following]
        position = following

"""Writing the log of a container: bytes move from a pipe into the file inside the kernel.

A byte is in the pipe or in the file, never only in this process, so a shim killed at any
instruction loses nothing: the header says how much was to come, the pipe still holds the rest.
"""

from __future__ import annotations

import os
from errno import EAGAIN, ENOSPC
from time import time_ns

from .frames import (
    HEADER,
    HEADER_SIZE,
    INDEX_ENTRY,
    INDEX_EVERY,
    MAGIC,
    RUN_BEGINS,
    RUN_ENDS,
    read_index,
    segment_name,
    segments,
    whole_end,
)

_NONBLOCK = os.SPLICE_F_NONBLOCK if hasattr(os, "SPLICE_F_NONBLOCK") else 2
_LEAST_FRAME = 64 << 10
FREE = 1 << 62
"""An offset beyond any log: nobody holds anything."""
SURPLUS_BYTES = 64 << 20
"""How much more than its limits allow a log may hold for who still reads it."""
_SLACK_BYTES = 8 << 20
"""What may come on top while a container ends: what its pipes hold."""


class LogWriter:
    """Appends frames to one log directory. One writer at a time.

    `limit` is the size in bytes at which a segment ends, `keep` how many segments stay (0: all).
    `end` is the logical offset after the last whole frame. What lies beyond `hold` stays as well.
    """

    __slots__ = (
        "_bases",
        "_fd",
        "_index_fd",
        "_index_size",
        "_indexed",
        "_position",
        "directory",
        "end",
        "hold",
        "keep",
        "limit",
        "missing",
        "torn",
    )

    def __init__(self, directory: str, limit: int, keep: int) -> None:
        self.directory = directory
        self.limit = limit
        self.keep = keep
        self.hold = FREE
        self._fd = self._index_fd = -1
        self._indexed = self._index_size = 0
        self.torn = self.missing = 0
        self._bases = segments(directory)
        if self._bases:
            self._recover()
            return
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass
        self._open(0)
        self._bases.append(0)
        self._position = self.end = 0

    def begin_run(self, run: int) -> int:
        """Write the start frame of a run; returns its offset. A frame torn before is cut off."""
        self.cut()
        start = self.end
        self.note(RUN_BEGINS, b"%d" % run)
        if start != self._bases[-1]:
            # A reader finds runs at the heads of segments and in the index.
            self._index(start, time_ns())
        return start

    def end_run(self, record: bytes) -> None:
        """Write the end frame of a run, with the JSON of its run and exit_code."""
        self.note(RUN_ENDS, record)

    def note(self, stream: int, payload: bytes) -> None:
        """Append a frame of our own; OSError if the disk is full, the log then as before."""
        if self.end - self._bases[-1] >= self.limit:
            self._rotate()
        start = self._position
        now = time_ns()
        data = HEADER.pack(MAGIC, stream, 0, len(payload), now) + payload
        self._write(data, start)
        self._commit(start, start + len(data), now)

    def take(self, pipe: int, stream: int, size: int) -> int:
        """Move `size` bytes that are in `pipe` into one frame; returns how many it took.

        It takes fewer where the segment is to end, or where someone else read the pipe. OSError
        if the file can't take more (disk full); what had been moved then is a whole frame.
        """
        room = self.limit - self._position
        if room <= 0:
            self._rotate()
            room = self.limit
        if size > room:
            size = max(min(size, _LEAST_FRAME), room)
        start = self._position
        now = time_ns()
        self._write(HEADER.pack(MAGIC, stream, 0, size, now), start)
        position = start + HEADER_SIZE
        left = size
        fd = self._fd
        try:
            while left:
                # Not blocking: the container may have taken its own bytes back through /proc.
                moved = os.splice(pipe, fd, left, offset_dst=position, flags=_NONBLOCK)
                if not moved:
                    break
                position += moved
                left -= moved
        except OSError as error:
            self._settle(start, position, stream, now)
            if error.errno == EAGAIN:
                return size - left
            raise
        if left:
            self._settle(start, position, stream, now)
        else:
            self._commit(start, position, now)
        return size - left

    def complete(self, *pipes: int) -> None:
        """Finish the torn frame, whose bytes are still in `pipes`, in this order (its stream is
        `torn`)."""
        start = self._position
        _, stream, _, length, now = HEADER.unpack(os.pread(self._fd, HEADER_SIZE, start))
        position = start + HEADER_SIZE + length - self.missing
        for pipe in pipes:
            try:
                while self.missing:
                    moved = os.splice(
                        pipe, self._fd, self.missing, offset_dst=position, flags=_NONBLOCK
                    )
                    if not moved:
                        break
                    position += moved
                    self.missing -= moved
            except BlockingIOError:
                pass
        self.torn = 0
        if self.missing:
            self._settle(start, position, stream, now)
        else:
            self._commit(start, position, now)
        self.missing = 0

    def cut(self) -> None:
        """Drop what follows the last whole frame: its pipe is gone."""
        if os.fstat(self._fd).st_size > self._position:
            os.ftruncate(self._fd, self._position)
        self.torn = self.missing = 0

    def trim(self, offset: int) -> None:
        """Delete the segments that end at or below `offset`; the last one stays."""
        while len(self._bases) > 1 and self._bases[1] <= offset:
            self._unlink_first()

    @property
    def surplus(self) -> int:
        """Bytes that are there beyond the limits, because they are held."""
        if not self.keep or len(self._bases) <= self.keep:
            return 0
        return max(1, self.end - self._bases[0] - self.keep * self.limit)

    def shed(self, room: int = 0) -> None:
        """Delete the oldest segments, but `keep` less `room`, and what is held within bounds."""
        if not self.keep:
            return
        most = max(self.keep - room, 1)
        bound = self.keep * self.limit + SURPLUS_BYTES + _SLACK_BYTES
        while len(self._bases) > most and (
            self._bases[1] <= self.hold or self.end - self._bases[0] > bound
        ):
            self._unlink_first()

    @property
    def first(self) -> int:
        """The lowest offset that is there."""
        return self._bases[0]

    def close(self) -> None:
        """Close the files; the log stays."""
        for fd in (self._fd, self._index_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._index_fd = -1

    # --- the files ---

    def _recover(self) -> None:
        base = self._bases[-1]
        self._open(base)
        # Entries of frames that never became whole are dropped with those frames.
        entries = [e for e in read_index(self.directory) if base <= e[0]]
        size = os.fstat(self._fd).st_size
        while entries:
            at = entries[-1][0] - base
            if at + HEADER_SIZE <= size and self._is_frame(at):
                break
            entries.pop()
        at = entries[-1][0] - base if entries else 0
        self._position, self.torn, self.missing = whole_end(self._fd, at)
        self.end = base + self._position
        self._indexed = base + at

    def _is_frame(self, position: int) -> bool:
        data = os.pread(self._fd, HEADER_SIZE, position)
        return len(data) == HEADER_SIZE and HEADER.unpack(data)[0] == MAGIC

    def _open(self, base: int) -> None:
        fd = os.open(
            self.directory + "/" + segment_name(base),
            os.O_RDWR | os.O_CREAT | os.O_CLOEXEC,
            0o600,
        )
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd

    def _rotate(self) -> None:
        # The oldest goes first, so that a full disk has room for the next.
        self.shed(1)
        base = self.end
        self._open(base)
        self._bases.append(base)
        self._position = 0
        # The head of a segment is found by its name.
        self._indexed = base
        self.shed()
        if self._index_size > 1 << 16:
            self._shorten_index()

    def _unlink_first(self) -> None:
        try:
            os.unlink(self.directory + "/" + segment_name(self._bases[0]))
        except FileNotFoundError:
            pass
        del self._bases[0]

    def _write(self, data: bytes, position: int) -> None:
        """All of `data` at `position`, or nothing."""
        try:
            written = os.pwrite(self._fd, data, position)
        except OSError:
            os.ftruncate(self._fd, position)
            raise
        if written != len(data):
            os.ftruncate(self._fd, position)
            raise OSError(ENOSPC, os.strerror(ENOSPC))

    def _settle(self, start: int, position: int, stream: int, now: int) -> None:
        """A frame got less than its header says: make the header true."""
        length = position - start - HEADER_SIZE
        if not length:
            os.ftruncate(self._fd, start)
            return
        os.pwrite(self._fd, HEADER.pack(MAGIC, stream, 0, length, now), start)
        self._commit(start, position, now)

    def _commit(self, start: int, position: int, now: int) -> None:
        base = self._bases[-1]
        self._position = position
        self.end = base + position
        if base + start - self._indexed >= INDEX_EVERY:
            self._index(base + start, now)

    def _index(self, offset: int, now: int) -> None:
        self._indexed = offset
        try:
            if self._index_fd < 0:
                self._index_fd = os.open(
                    self.directory + "/index", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
                )
                self._index_size = self._sound_index()
            data = INDEX_ENTRY.pack(offset, now)
            if os.pwrite(self._index_fd, data, self._index_size) == len(data):
                self._index_size += len(data)
        except OSError:
            pass  # A hint, never needed; the next one is written over what this one left.

    def _sound_index(self) -> int:
        """The size of the index up to its last entry below the end of the log."""
        entries = read_index(self.directory)
        while entries and entries[-1][0] >= self._indexed:
            entries.pop()
        size = len(entries) * 16
        os.ftruncate(self._index_fd, size)
        return size

    def _shorten_index(self) -> None:
        first = self._bases[0]
        entries = [e for e in read_index(self.directory) if e[0] >= first]
        if len(entries) * 32 > self._index_size:
            return
        path = self.directory + "/index"
        try:
            fd = os.open(path + ".tmp", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            data = b"".join([INDEX_ENTRY.pack(*e) for e in entries])
            if os.write(fd, data) != len(data):
                os.close(fd)
                return
            os.rename(path + ".tmp", path)
        except OSError:
            return
        os.close(self._index_fd)
        self._index_fd = fd
        self._index_size = len(data)

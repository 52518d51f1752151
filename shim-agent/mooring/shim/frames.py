"""The layout of the log: frames in segments, and how to walk over them.

Shared by the writer (log.py, in the shim) and the reader (logread.py, in the agent). Standard
library only, and little of it: every shim carries this module.
"""

from __future__ import annotations

import os
from struct import Struct

MAGIC = 0x4D52
HEADER = Struct("<HBBIQ")
"""magic, stream, flags, length of the payload, time in ns (Unix)."""
HEADER_SIZE = 16

STDOUT = 1
"""Also what a pty gives."""
STDERR = 2
RUN_BEGINS = 16
RUN_ENDS = 17

INDEX_ENTRY = Struct("<QQ")
INDEX_EVERY = 256 << 10
"""Bytes of log between two entries of the index; no walk is longer than this and a frame."""

_BLOCK = 64 << 10
_SUFFIX = ".log"


def segment_name(base: int) -> str:
    """The file name of the segment whose first byte has the logical offset `base`."""
    return f"{base:020d}{_SUFFIX}"


def segments(directory: str) -> list[int]:
    """The bases of all segments, ascending; empty if there is no log."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    found = [int(n[:20]) for n in names if len(n) == 24 and n.endswith(_SUFFIX)]
    found.sort()
    return found


def whole_end(fd: int, position: int) -> tuple[int, int, int]:
    """Walk frames of a segment from `position`: where the last whole one ends, and what is torn.

    Returns (end, stream, missing): `missing` payload bytes of a frame of `stream` that begins at
    `end`; stream 0 if nothing, or not even a header, follows.
    """
    unpack = HEADER.unpack_from
    size = os.fstat(fd).st_size
    block = b""
    start = position
    while True:
        at = position - start
        if at < 0 or at + HEADER_SIZE > len(block):
            start = position
            at = 0
            block = os.pread(fd, _BLOCK, start)
            if len(block) < HEADER_SIZE:
                return position, 0, 0
        magic, stream, _, length, _ = unpack(block, at)
        if magic != MAGIC:
            return position, 0, 0
        following = position + HEADER_SIZE + length
        if following > size:
            # The writer may have appended since: what counts is the size at the start.
            return position, stream, following - size
        position = following


def read_index(directory: str) -> list[tuple[int, int]]:
    """The (offset, time_ns) pairs of the index; only a hint, so a damaged tail is left out."""
    try:
        fd = os.open(directory + "/index", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    try:
        data = os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)
    entries: list[tuple[int, int]] = []
    last = -1
    for offset, time_ns in INDEX_ENTRY.iter_unpack(data[: len(data) // 16 * 16]):
        if not last < offset < 1 << 62:
            break
        entries.append((offset, time_ns))
        last = offset
    return entries

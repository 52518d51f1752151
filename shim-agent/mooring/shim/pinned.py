"""A log that is being deleted, kept readable for who is still reading it."""

from __future__ import annotations

import itertools
import os

from .frames import segment_name, segments


class PinnedLog:
    """Every segment from an offset on, open: the bytes stay until the last reader has them."""

    __slots__ = ("_descriptors", "end")

    def __init__(self, directory: str, offset: int, end: int) -> None:
        self.end = end
        """Where the log ends for good."""
        self._descriptors: list[tuple[int, int]] = []
        bases = segments(directory)
        for base, following in itertools.zip_longest(bases, bases[1:]):
            if base >= end or (following is not None and following <= offset):
                continue
            try:
                path = f"{directory}/{segment_name(base)}"
                self._descriptors.append((base, os.open(path, os.O_RDONLY | os.O_CLOEXEC)))
            except FileNotFoundError:
                continue

    def read(self, offset: int, limit: int) -> bytes:
        """Up to `limit` bytes from `offset`; empty at the end, or where nothing was left."""
        for base, descriptor in reversed(self._descriptors):
            if base <= offset < self.end:
                return os.pread(descriptor, min(limit, self.end - offset), offset - base)
        return b""

    def close(self) -> None:
        """Let the bytes go."""
        for _, descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

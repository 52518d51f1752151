"""The root file system of a container as a value, and reading from it without mounting it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKS = 40
"""As many symbolic links as the kernel follows."""
_OPAQUE = "trusted.overlay.opaque"


@dataclass(frozen=True, slots=True)
class Overlay:
    """What is mounted as a root file system; the uppermost lower directory comes first."""

    lowers: tuple[str, ...]
    upper: str
    work: str


class View:
    """The files of an overlay as the container would see them, below its mounts.

    Every component is opened by itself, without following links, so nothing that a container does
    meanwhile leads out of its directories. Close it, or use it as a context manager.
    """

    def __init__(self, overlay: Overlay) -> None:
        self._open = ExitStack()
        try:
            self._root = tuple(self._keep(path) for path in (overlay.upper, *overlay.lowers))
        except OSError:
            self.close()
            raise

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every descriptor."""
        self._open.close()

    def read(self, path: str, limit: int) -> bytes | None:
        """A regular file, through links; None if there is none. ValueError above limit bytes."""
        found = self._find(path)
        if found is None:
            return None
        fd = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ValueError(f"{path} is larger than {limit} bytes")
        return data

    def entry(self, path: str) -> int | None:
        """What is at a path, following no link, as an O_PATH descriptor of this view; or None."""
        entries = self.merged(path)
        return entries[0] if entries else None

    def merged(self, path: str) -> tuple[int, ...]:
        """The same with all directories that are merged at the path, topmost first; or nothing."""
        entries = self._root
        for name in filter(None, path.split("/")):
            if not stat.S_ISDIR(os.fstat(entries[0]).st_mode):
                return ()
            entries = self._lookup(entries, name)
            if not entries:
                return ()
        return entries

    def _find(self, path: str) -> int | None:
        """The O_PATH descriptor of a regular file."""
        parents: list[tuple[int, ...]] = [self._root]
        pending = path.split("/")[::-1]
        links = 0
        while pending:
            name = pending.pop()
            if name in ("", "."):
                continue
            if name == "..":
                if len(parents) > 1:
                    parents.pop()
                continue
            entries = self._lookup(parents[-1], name)
            if not entries:
                return None
            mode = os.fstat(entries[0]).st_mode
            if stat.S_ISDIR(mode):
                parents.append(entries)
            elif stat.S_ISLNK(mode):
                links += 1
                if links > _LINKS:
                    return None
                target = os.readlink("", dir_fd=entries[0])
                if target.startswith("/"):
                    del parents[1:]
                pending += target.split("/")[::-1]
            else:
                return entries[0] if stat.S_ISREG(mode) and not any(pending) else None
        return None

    def _lookup(self, directory: Iterable[int], name: str) -> tuple[int, ...]:
        """What has this name: one file or link, or the directories that are merged; or nothing."""
        merged: list[int] = []
        for layer in directory:
            try:
                fd = os.open(name, _PATH, dir_fd=layer)
            except FileNotFoundError:
                continue
            self._open.callback(os.close, fd)
            status = os.fstat(fd)
            if not stat.S_ISDIR(status.st_mode):
                # A whiteout is a device 0:0 and hides what is below; so does any other file.
                is_whiteout = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
                return tuple(merged) if merged or is_whiteout else (fd,)
            merged.append(fd)
            if _is_opaque(fd):
                break
        return tuple(merged)

    def _keep(self, path: str) -> int:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open.callback(os.close, fd)
        return fd


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(f"/proc/self/fd/{fd}", _OPAQUE) == b"y"
    except OSError:
        return False

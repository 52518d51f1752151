"""The root file system of an image or a stage: mounted for nobody else, read as a Tree."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mooring.runtime.oci.linux import (
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
)
from mooring.runtime.oci.rootsource import Overlay, mount_overlay

from .tree import Entry, Kind

_WITHIN = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS
_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 1 << 20
_CAPABILITY = "security.capability"


@contextmanager
def mounted(
    lowers: Sequence[str], empty: Path, upper: Path | None = None, work: Path | None = None
) -> Iterator[int]:
    """An overlay of layers (the uppermost first) as a descriptor of its root; OSError.

    Without an upper directory it is read-only. empty stands in for an image without layers.
    """
    below = list(lowers) or [str(empty)]
    if upper is None and len(lowers) == 1:
        # A single layer is no overlay, but overlayfs wants two: the empty one changes nothing.
        below.append(str(empty))
    if upper is None and not lowers:
        # Nor is no layer at all, and overlayfs takes nothing twice.
        fd = os.open(empty, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    else:
        fd = mount_overlay(Overlay(below, str(upper or ""), str(work or "")))
    try:
        yield fd
    finally:
        os.close(fd)


class RootTree:
    """A mounted root file system; a Tree."""

    def __init__(self, root: int) -> None:
        self._root = root

    def entry(self, path: str) -> Entry | None:
        """See Tree."""
        fd = self._open(path, _PATH)
        if fd is None:
            return None
        try:
            return _entry(fd)
        finally:
            os.close(fd)

    def names(self, path: str) -> list[str]:
        """See Tree."""
        fd = self._open(path, os.O_RDONLY | os.O_DIRECTORY)
        if fd is None:
            return []
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def hashed(self, path: str, entry: Entry) -> bytes:
        """See Tree."""
        digest = hashlib.sha256()
        fd, _, _ = self.open(path, entry)
        with open(fd, "rb", buffering=0) as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
        return digest.digest()

    def open(self, path: str, entry: Entry) -> tuple[int, int, bool]:
        """See Tree."""
        fd = self._open(path, os.O_RDONLY | os.O_NOFOLLOW)
        if fd is None:
            raise FileNotFoundError(2, f"{path}: no such file or directory")
        return fd, 0, True

    def read(self, path: str, limit: int) -> bytes | None:
        """A small regular file, links followed inside the root; None if there is none."""
        try:
            fd = openat2(
                self._root,
                path,
                os.O_RDONLY | os.O_NONBLOCK,
                RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
            )
        except OSError:
            return None
        with open(fd, "rb") as file:
            return file.read(limit) if stat.S_ISREG(os.fstat(fd).st_mode) else None

    def _open(self, path: str, flags: int) -> int | None:
        try:
            return openat2(self._root, path or "/", flags, _WITHIN)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            # A link on the way, which the caller did not resolve: it is not there by this name.
            if exc.errno == 40:
                return None
            raise


def _entry(fd: int) -> Entry:
    found = os.fstat(fd)
    mode = found.st_mode
    entry = Entry(
        _kind(mode),
        stat.S_IMODE(mode),
        found.st_uid,
        found.st_gid,
        found.st_size if stat.S_ISREG(mode) else 0,
        found.st_mtime_ns,
    )
    if stat.S_ISLNK(mode):
        entry.link = os.readlink("", dir_fd=fd)
    elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        entry.device = (os.major(found.st_rdev), os.minor(found.st_rdev))
    elif stat.S_ISREG(mode):
        with suppress(OSError):
            entry.xattrs = {_CAPABILITY: os.getxattr(f"/proc/self/fd/{fd}", _CAPABILITY)}
    return entry


def _kind(mode: int) -> Kind:
    kinds = {
        stat.S_IFDIR: Kind.DIRECTORY,
        stat.S_IFLNK: Kind.SYMLINK,
        stat.S_IFIFO: Kind.FIFO,
        stat.S_IFCHR: Kind.CHARACTER,
        stat.S_IFBLK: Kind.BLOCK,
    }
    return kinds.get(stat.S_IFMT(mode), Kind.FILE)

"""`docker diff`: what a container's upper directory changes, by Docker's rules."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from mooring.runtime.oci.linux import RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS, openat2
from mooring.runtime.oci.rootsource import Overlay, mount_overlay

MODIFIED, ADDED, DELETED = 0, 1, 2
"""Docker's numbers."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPAQUE = "trusted.overlay.opaque"
_WITHIN = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS
_CHANGED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""Nothing there, or a container has made another thing of it."""


@dataclass(frozen=True, slots=True)
class Change:
    """One path that is not as in the image; kind is MODIFIED, ADDED or DELETED."""

    path: str
    kind: int


def differences(upper: str, lowers: Sequence[str]) -> list[Change]:
    """All changes in the order of their paths; OSError.

    By Docker's rule a directory counts as changed when it has another mode or owner, or when
    anything below it was changed: not because it was only touched.
    """
    written = os.open(upper, _DIRECTORY)
    try:
        # One directory is no overlay.
        if len(lowers) > 1:
            below = mount_overlay(Overlay(list(lowers)))
        else:
            below = os.open(lowers[0], _DIRECTORY)
        try:
            found = _with_parents(dict(_walk(written, below)))
        finally:
            os.close(below)
    finally:
        os.close(written)
    return [Change(f"/{path}", found[path]) for path in sorted(found, key=lambda p: p.split("/"))]


def _walk(upper: int, below: int) -> Iterator[tuple[str, int]]:
    """Paths and kinds, without the directories in which something was changed."""
    pending = [""]
    while pending:
        directory = pending.pop()
        entries, opaque = _entries(upper, directory)
        for name, status in entries.items():
            path = f"{directory}/{name}" if directory else name
            kind = _kind(path, status, upper, below)
            if kind is not None:
                yield path, kind
            if stat.S_ISDIR(status.st_mode):
                pending.append(path)
        if opaque:
            # Made again: nothing of the image's directory is seen any more.
            for name in _entries(below, directory)[0].keys() - entries.keys():
                yield f"{directory}/{name}", DELETED


def _with_parents(found: dict[str, int]) -> dict[str, int]:
    """Together with the directories that are changed as something in them is."""
    changed = dict(found)
    for path in found:
        while (path := path.rpartition("/")[0]) and path not in changed:
            changed[path] = MODIFIED
    return changed


def _entries(root: int, directory: str) -> tuple[dict[str, os.stat_result], bool]:
    """What is in a directory, and whether that hides all that an image has there."""
    try:
        fd = openat2(root, directory or ".", _DIRECTORY, _WITHIN)
    except OSError as exc:
        if exc.errno in _CHANGED:
            return {}, False
        raise
    found = {}
    try:
        for name in os.listdir(fd):
            with suppress(FileNotFoundError):
                found[name] = os.stat(name, dir_fd=fd, follow_symlinks=False)
        return found, bool(directory) and _attribute(fd, _OPAQUE) == b"y"
    finally:
        os.close(fd)


def _kind(path: str, status: os.stat_result, upper: int, below: int) -> int | None:
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        return DELETED
    before = _lookup(below, path)
    if before is None:
        return ADDED
    if _looks(status) != _looks(before):
        return MODIFIED
    if stat.S_ISREG(status.st_mode) and _capability(upper, path) != _capability(below, path):
        return MODIFIED
    return None


def _looks(status: os.stat_result) -> tuple[int, ...]:
    """What makes another file of one; the size and times of a directory say nothing."""
    owned = status.st_mode, status.st_uid, status.st_gid, status.st_rdev
    if stat.S_ISDIR(status.st_mode):
        return owned
    return *owned, status.st_size, status.st_mtime_ns


def _capability(root: int, path: str) -> bytes:
    try:
        fd = openat2(root, path, _FILE, _WITHIN)
    except OSError as exc:
        if exc.errno in _CHANGED:
            return b""
        raise
    try:
        return _attribute(fd, "security.capability")
    finally:
        os.close(fd)


def _attribute(fd: int, name: str) -> bytes:
    try:
        return os.getxattr(fd, name)
    except OSError as exc:
        if exc.errno in (errno.ENODATA, errno.ENOTSUP):
            return b""
        raise


def _lookup(root: int, path: str) -> os.stat_result | None:
    """What is at a path, following no link; None if there is nothing."""
    try:
        fd = openat2(root, path, os.O_PATH | os.O_NOFOLLOW, _WITHIN)
    except OSError as exc:
        if exc.errno in _CHANGED:
            return None
        raise
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)

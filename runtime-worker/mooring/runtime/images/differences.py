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

    A directory counts as changed when something in it was added or deleted, or it has become
    another one itself; not because something further below was changed.
    """
    written = os.open(upper, _DIRECTORY)
    try:
        # One directory is no overlay.
        if len(lowers) > 1:
            below = mount_overlay(Overlay(list(lowers)))
        else:
            below = os.open(lowers[0], _DIRECTORY)
        try:
            found = dict(_walk(written, below))
        finally:
            os.close(below)
    finally:
        os.close(written)
    return [Change(f"/{path}", found[path]) for path in sorted(found, key=lambda p: p.split("/"))]


def _walk(upper: int, below: int) -> Iterator[tuple[str, int]]:
    """Paths and kinds; a directory may come again, changed."""
    pending = [""]
    while pending:
        directory = pending.pop()
        changed = False
        for name, status in _entries(upper, directory):
            path = f"{directory}/{name}" if directory else name
            kind = _kind(path, status, below)
            if kind is not None:
                yield path, kind
            changed |= kind in (ADDED, DELETED)
            if stat.S_ISDIR(status.st_mode):
                pending.append(path)
        if changed and directory and _lookup(below, directory) is not None:
            yield directory, MODIFIED


def _entries(root: int, directory: str) -> list[tuple[str, os.stat_result]]:
    try:
        fd = openat2(root, directory or ".", _DIRECTORY, _WITHIN)
    except OSError as exc:
        if exc.errno in _CHANGED:
            return []
        raise
    found = []
    try:
        for name in os.listdir(fd):
            with suppress(FileNotFoundError):
                found.append((name, os.stat(name, dir_fd=fd, follow_symlinks=False)))
    finally:
        os.close(fd)
    return found


def _kind(path: str, status: os.stat_result, below: int) -> int | None:
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        return DELETED
    before = _lookup(below, path)
    if before is None:
        return ADDED
    if stat.S_ISDIR(before.st_mode) and stat.S_ISDIR(status.st_mode):
        same = (before.st_mode, before.st_mtime_ns) == (status.st_mode, status.st_mtime_ns)
        return None if same else MODIFIED
    return MODIFIED


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

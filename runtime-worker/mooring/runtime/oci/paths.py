"""Paths inside a container's root: whatever an image's links say, nothing leads out of it.

Every walk is one openat2(RESOLVE_IN_ROOT) from a descriptor of the root, so `..` and absolute
links count from there, and the magic links of procfs are not followed.
"""

from __future__ import annotations

import os

from .linux import O_PATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2

_LINKS = 40


def locate(root: int, path: str) -> int:
    """What is at path inside root, as an O_PATH descriptor."""
    return openat2(root, path, O_PATH, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def locate_without_links(root: int, path: str) -> int:
    """The same, but ELOOP for a path with any symbolic link in it."""
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS
    return openat2(root, path, O_PATH, resolve)


def make(root: int, path: str, *, directory: bool) -> int:
    """Locate a mount point, making it and the directories above it if they are missing."""
    try:
        return locate(root, path)
    except FileNotFoundError:
        return _make(root, path, directory, _LINKS)


def _make(root: int, path: str, directory: bool, links: int) -> int:
    above, _, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        raise FileNotFoundError(2, f"cannot make {path}: No such file or directory")
    try:
        parent = locate(root, above or "/")
    except FileNotFoundError:
        parent = _make(root, above, True, links)
    try:
        try:
            if directory:
                os.mkdir(name, 0o755, dir_fd=parent)
            else:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(name, flags, 0o644, dir_fd=parent))
        except FileExistsError:
            return _behind_link(root, path, directory, links, parent)
    finally:
        os.close(parent)
    return locate(root, path)


def _behind_link(root: int, path: str, directory: bool, links: int, parent: int) -> int:
    """The name exists after all: another made it, or it is a link to where nothing is yet."""
    above, _, name = path.rstrip("/").rpartition("/")
    try:
        target = os.readlink(name, dir_fd=parent)
    except OSError:
        return locate(root, path)
    if not links:
        raise OSError(40, f"cannot make {path}: Too many levels of symbolic links")
    goal = target if target.startswith("/") else f"{above}/{target}"
    try:
        return locate(root, goal)
    except FileNotFoundError:
        return _make(root, goal, directory, links - 1)


def is_directory(fd: int) -> bool:
    """Whether an open descriptor is of a directory."""
    return (os.fstat(fd).st_mode & 0o170000) == 0o040000

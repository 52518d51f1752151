"""Putting files into a root file system that is mounted somewhere, never following it outside.

Paths that come from a Dockerfile are resolved inside the root with openat2; below that, names are
only ever used relative to an open directory, and what is there under a name is never followed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

from mooring.runtime.oci import paths
from mooring.runtime.oci.linux import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2

from .tree import Entry, Kind

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 24
_FALLBACK = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF}


class Owner(NamedTuple):
    """Who owns what is copied."""

    uid: int = 0
    gid: int = 0


ROOT = Owner()


class Root:
    """A root directory by its descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def directory(self, path: str) -> int | None:
        """The directory at a path, links followed inside the root; None if there is none."""
        try:
            return openat2(
                self.fd, path or "/", _DIRECTORY, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
            )
        except (FileNotFoundError, NotADirectoryError):
            return None

    def is_directory(self, path: str) -> bool:
        """Whether a path leads to a directory."""
        fd = self.directory(path)
        if fd is None:
            return False
        os.close(fd)
        return True

    def make_directories(self, path: str, owner: Owner = ROOT) -> int:
        """The directory at a path, made with all that is missing above it; OSError."""
        found = self.directory(path)
        if found is not None:
            return found
        done = ""
        for part in filter(None, path.split("/")):
            done += f"/{part}"
            if self.is_directory(done):
                continue
            fd = paths.make(self.fd, done, directory=True)
            try:
                if not paths.is_directory(fd):
                    raise NotADirectoryError(errno.ENOTDIR, f"{done}: not a directory")
                if owner != ROOT:
                    os.chown(f"/proc/self/fd/{fd}", *owner)
            finally:
                os.close(fd)
        found = self.directory(path)
        if found is None:
            raise NotADirectoryError(errno.ENOTDIR, f"{path}: not a directory")
        return found


class Times:
    """Times of directories, set last: every entry made in one changes its time."""

    def __init__(self) -> None:
        self._times: list[tuple[int, int]] = []

    def later(self, directory: int, mtime_ns: int) -> None:
        """Set this one in the end."""
        self._times.append((os.dup(directory), mtime_ns))

    def set(self) -> None:
        """Set them all."""
        while self._times:
            fd, mtime_ns = self._times.pop()
            try:
                os.utime(fd, ns=(mtime_ns, mtime_ns))
            finally:
                os.close(fd)


Data = Callable[[int], None]
"""Writes a file's data to an open descriptor."""


def put(directory: int, name: str, entry: Entry, owner: Owner, data: Data | None) -> None:
    """Make one entry that is no directory; whatever has its name goes."""
    _clear(directory, name)
    if entry.kind is Kind.FILE:
        fd = os.open(name, _NEW_FILE, 0o600, dir_fd=directory)
        try:
            if data is not None:
                data(fd)
            os.fchown(fd, *owner)
            os.fchmod(fd, entry.mode)
            _set_xattrs(fd, entry)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)
        return
    if entry.kind is Kind.SYMLINK:
        os.symlink(entry.link, name, dir_fd=directory)
    elif entry.kind is Kind.FIFO:
        os.mkfifo(name, 0o600, dir_fd=directory)
    else:
        kind = stat.S_IFCHR if entry.kind is Kind.CHARACTER else stat.S_IFBLK
        os.mknod(name, kind | 0o600, os.makedev(*entry.device), dir_fd=directory)
    os.chown(name, *owner, dir_fd=directory, follow_symlinks=False)
    if entry.kind is not Kind.SYMLINK:
        os.chmod(name, entry.mode, dir_fd=directory)
    times = (entry.mtime_ns, entry.mtime_ns)
    os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)


def put_directory(directory: int, name: str, entry: Entry, owner: Owner, times: Times) -> int:
    """Make a directory, or give the one there these attributes; open. Close it."""
    try:
        os.mkdir(name, 0o700, dir_fd=directory)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode):
            os.unlink(name, dir_fd=directory)
            os.mkdir(name, 0o700, dir_fd=directory)
    fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
    try:
        os.fchown(fd, *owner)
        os.fchmod(fd, entry.mode)
        _set_xattrs(fd, entry)
        times.later(fd, entry.mtime_ns)
    except OSError:
        os.close(fd)
        raise
    return fd


def _set_xattrs(fd: int, entry: Entry) -> None:
    for key, value in entry.xattrs.items():
        try:
            os.setxattr(fd, key, value)
        except OSError as exc:
            # A file system that has none loses what it cannot hold.
            if exc.errno != errno.EOPNOTSUPP:
                raise


def copy_data(source: int, offset: int, size: int) -> Data:
    """Copy bytes of an open file inside the kernel, shared with the source where it can."""

    def copy(target: int) -> None:
        at, left = offset, size
        while left:
            try:
                count = os.copy_file_range(source, target, min(left, _CHUNK), offset_src=at)
            except OSError as exc:
                if exc.errno not in _FALLBACK:
                    raise
                count = os.sendfile(target, source, at, min(left, _CHUNK))
            if not count:
                raise OSError(errno.EIO, "a file became shorter while it was copied")
            at += count
            left -= count

    return copy


def copy_bytes(data: bytes) -> Data:
    """Write bytes."""

    def copy(target: int) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]

    return copy


def _clear(directory: int, name: str) -> None:
    try:
        found = os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(found.st_mode):
        remove_tree(directory, name)
    else:
        os.unlink(name, dir_fd=directory)


def remove_tree(directory: int, name: str) -> None:
    """Remove a directory and all below it, following nothing, whatever its depth."""
    stack = [(os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory), name)]
    try:
        while stack:
            fd, own = stack[-1]
            deeper = _empty(fd)
            if deeper is not None:
                stack.append((os.open(deeper, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fd), deeper))
                continue
            os.close(stack.pop()[0])
            os.rmdir(own, dir_fd=stack[-1][0] if stack else directory)
    finally:
        for fd, _ in stack:
            os.close(fd)


def _empty(fd: int) -> str | None:
    """Unlink what is no directory; one that is, or None."""
    found: str | None = None
    with os.scandir(fd) as entries:
        names: Iterable[os.DirEntry[str]] = list(entries)
    for entry in names:
        if entry.is_dir(follow_symlinks=False):
            found = entry.name
        else:
            with suppress(FileNotFoundError):
                os.unlink(entry.name, dir_fd=fd)
    return found

"""Copying a tree: a new tmpfs (tmpcopyup) or volume begins with what the image has there."""

from __future__ import annotations

import errno
import os
import stat

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WITHOUT = (errno.EOPNOTSUPP, errno.EPERM)


def copy_tree(source: int, target: int) -> None:
    """Copy what is in one directory into another (descriptors), with all that can be kept of it:
    owners, modes, times, extended attributes, hard links, devices; sockets are left out."""
    _Copy(target).directory(source, target, "")


def copy_attributes(source: int, target: int) -> None:
    """Give one directory or file the owner, mode, extended attributes and times of another."""
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, status.st_mode & 0o7777)
    _copy_xattrs(source, target)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


class _Copy:
    """One tree being copied; `top` is where to."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._linked: dict[tuple[int, int], str] = {}

    def directory(self, source: int, target: int, path: str) -> None:
        # An O_PATH descriptor can't be listed.
        listing = os.open(".", _FLAGS, dir_fd=source)
        try:
            for name in os.listdir(listing):
                self._entry(source, target, name, f"{path}/{name}" if path else name)
        finally:
            os.close(listing)

    def _entry(self, source: int, target: int, name: str, path: str) -> None:
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=target)
            below = os.open(name, _FLAGS, dir_fd=source)
            into = os.open(name, _FLAGS, dir_fd=target)
            try:
                self.directory(below, into, path)
                copy_attributes(below, into)
            finally:
                os.close(below)
                os.close(into)
            return
        if kind == stat.S_IFSOCK:
            return
        if status.st_nlink > 1:
            inode = (status.st_dev, status.st_ino)
            if known := self._linked.get(inode):
                os.link(known, name, src_dir_fd=self._top, dst_dir_fd=target, follow_symlinks=False)
                return
            self._linked[inode] = path
        if kind == stat.S_IFREG:
            _copy_file(source, target, name)
            return
        if kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        else:
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target)
        os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
        if kind != stat.S_IFLNK:
            os.chmod(name, status.st_mode & 0o7777, dir_fd=target)
        times = (status.st_atime_ns, status.st_mtime_ns)
        os.utime(name, ns=times, dir_fd=target, follow_symlinks=False)


def _copy_file(source: int, target: int, name: str) -> None:
    reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    writer = os.open(name, flags, 0o600, dir_fd=target)
    try:
        while os.sendfile(writer, reader, None, 1 << 20):
            pass
        copy_attributes(reader, writer)
    finally:
        os.close(reader)
        os.close(writer)


def _copy_xattrs(source: int, target: int) -> None:
    try:
        names = os.listxattr(source)
    except OSError:
        return
    for name in names:
        # Those say how layers lie upon each other.
        if name.startswith(("trusted.overlay.", "user.overlay.")):
            continue
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError as error:
            if error.errno not in _WITHOUT:
                raise

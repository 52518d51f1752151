"""tmpcopyup: a new tmpfs begins with what the image has in that directory."""

from __future__ import annotations

import os
import stat

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_tree(source: int, target: int) -> None:
    """Copy what is in one directory into another (descriptors); owners, modes and times kept."""
    # An O_PATH descriptor can't be listed.
    listing = os.open(".", _FLAGS, dir_fd=source)
    try:
        for name in os.listdir(listing):
            _copy(source, target, name)
    finally:
        os.close(listing)


def _copy(source: int, target: int, name: str) -> None:
    status = os.stat(name, dir_fd=source, follow_symlinks=False)
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        os.mkdir(name, 0o700, dir_fd=target)
        below = os.open(name, _FLAGS, dir_fd=source)
        into = os.open(name, _FLAGS, dir_fd=target)
        try:
            copy_tree(below, into)
        finally:
            os.close(below)
            os.close(into)
        _take_attributes(status, name, target)
        return
    if kind == stat.S_IFLNK:
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
        return
    if kind == stat.S_IFREG:
        _copy_file(source, target, name)
    elif kind == stat.S_IFSOCK:
        return
    else:
        os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target)
    _take_attributes(status, name, target)


def _copy_file(source: int, target: int, name: str) -> None:
    reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    writer = os.open(name, flags, 0o600, dir_fd=target)
    try:
        while os.sendfile(writer, reader, None, 1 << 20):
            pass
    finally:
        os.close(reader)
        os.close(writer)


def _take_attributes(status: os.stat_result, name: str, directory: int) -> None:
    os.chown(name, status.st_uid, status.st_gid, dir_fd=directory)
    os.chmod(name, status.st_mode & 0o7777, dir_fd=directory)
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=directory)

"""Device nodes and the links every container's /dev has."""

from __future__ import annotations

import os

from . import paths
from .errors import OciError, because

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# OCI runtime specification, "Default Devices": name, major, minor; mode 0666.
DEFAULT = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)
_KINDS = {"c": 0o020000, "u": 0o020000, "b": 0o060000, "p": 0o010000}


def populate(directory: int) -> None:
    """The default devices and links, into the descriptor of a /dev; the umask must be 0."""
    for name, major, minor in DEFAULT:
        _node(directory, name, 0o020666, os.makedev(major, minor))
    for name, target in LINKS:
        try:
            os.symlink(target, name, dir_fd=directory)
        except FileExistsError:
            pass
    if not _exists(directory, "core") and os.path.exists("/proc/kcore"):
        os.symlink("/proc/kcore", "core", dir_fd=directory)


def create(root: int, device: dict[str, Any]) -> None:
    """One device of linux.devices."""
    path = device.get("path") or ""
    kind = _KINDS.get(device.get("type") or "")
    if kind is None or not path:
        raise OciError(f"device {path!r} has an unknown type {device.get('type')!r}")
    above, _, name = path.rpartition("/")
    mode = device.get("fileMode")
    try:
        directory = paths.make(root, above or "/", directory=True)
        try:
            number = os.makedev(device.get("major") or 0, device.get("minor") or 0)
            _node(directory, name, kind | (0o666 if mode is None else mode & 0o7777), number)
            uid, gid = device.get("uid") or 0, device.get("gid") or 0
            if uid or gid:
                os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
        finally:
            os.close(directory)
    except OSError as error:
        raise because(f"cannot create device {path}", error) from error


def _node(directory: int, name: str, mode: int, device: int) -> None:
    try:
        os.mknod(name, mode, device, dir_fd=directory)
    except FileExistsError:
        there = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if (there.st_mode & 0o170000, there.st_rdev) == (mode & 0o170000, device):
            os.chmod(name, mode & 0o7777, dir_fd=directory)
            return
        os.unlink(name, dir_fd=directory)
        os.mknod(name, mode, device, dir_fd=directory)


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True

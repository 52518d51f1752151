"""The kernel's mount calls, old and new, one thin function each."""

from __future__ import annotations

import ctypes
import os

from .linux import AT_EMPTY_PATH, AT_FDCWD, _libc, failed, syscall

_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _FSPICK = 428, 429, 430, 431, 432, 433
_MOUNT_SETATTR = 442

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
AT_RECURSIVE = 0x8000
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40

FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6

MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_RELATIME = 0x00
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20

MNT_DETACH = 2


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    code = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        fstype.encode() or None,
        ctypes.c_ulong(flags),
        os.fsencode(data) or None,
    )
    if code < 0:
        raise failed("mount", target)


def unmount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    if _libc.umount2(os.fsencode(target), ctypes.c_int(flags)) < 0:
        raise failed("umount", target)


def clone_tree(path: str, *, recursive: bool, directory: int = AT_FDCWD) -> int:
    """open_tree(2): a detached copy of what is at path, of `directory` if that is empty."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
    if recursive:
        flags |= AT_RECURSIVE
    if not path:
        flags |= AT_EMPTY_PATH
    return syscall("open_tree", _OPEN_TREE, directory, os.fsencode(path), ctypes.c_uint(flags))


def attach(tree: int, target: int) -> None:
    """move_mount(2): put the mount `tree` onto the directory or file `target`, both descriptors."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    syscall("move_mount", _MOVE_MOUNT, tree, b"", target, b"", ctypes.c_uint(flags))


class _MountAttr(ctypes.Structure):
    _fields_ = [
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


def set_attributes(
    tree: int, set_: int = 0, clear: int = 0, *, propagation: int = 0, recursive: bool = False
) -> None:
    """mount_setattr(2) on the mount a descriptor is of."""
    attr = _MountAttr(set=set_, clear=clear, propagation=propagation)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    syscall(
        "mount_setattr",
        _MOUNT_SETATTR,
        tree,
        b"",
        ctypes.c_uint(flags),
        ctypes.byref(attr),
        ctypes.c_size_t(32),
    )


class NewFilesystem:
    """A file system being made with fsopen(2): options first, then `mount`."""

    __slots__ = ("_fd", "fstype")

    def __init__(self, fstype: str) -> None:
        self.fstype = fstype
        self._fd = syscall("fsopen", _FSOPEN, fstype.encode(), ctypes.c_uint(1))

    def __enter__(self) -> NewFilesystem:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def option(self, key: str, value: str | None = None) -> None:
        """Set a flag, or a key to a string of at most 255 bytes."""
        kind = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
        text = None if value is None else os.fsencode(value)
        self._configure(kind, key.encode(), text)

    def mount(self, attributes: int = 0) -> int:
        """fsmount(2): the new file system as a detached mount."""
        self._configure(FSCONFIG_CMD_CREATE, None, None)
        return syscall("fsmount", _FSMOUNT, self._fd, ctypes.c_uint(1), ctypes.c_uint(attributes))

    def _configure(self, command: int, key: bytes | None, value: bytes | None) -> None:
        try:
            syscall("fsconfig", _FSCONFIG, self._fd, ctypes.c_uint(command), key, value, 0)
        except OSError as error:
            raise OSError(error.errno, self._explain(key, error)) from None

    def _explain(self, key: bytes | None, error: OSError) -> str:
        # The kernel leaves its reasons to be read from the descriptor, one to a read, "e " first.
        reasons: list[str] = []
        try:
            while len(reasons) < 4:
                reasons.append(os.read(self._fd, 1024).decode(errors="replace").strip()[2:])
        except OSError:
            pass
        what = f"{self.fstype} option {key.decode()}" if key else self.fstype
        return f"{what}: {'; '.join(reasons) or os.strerror(error.errno or 0)}"

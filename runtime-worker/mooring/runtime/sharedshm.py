"""A /dev/shm that several containers share: a tmpfs on the host, for `--ipc shareable`."""

from __future__ import annotations

import ctypes
import os
from enum import IntFlag

from .defaults import SHM_SIZE

_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


class MountFlag(IntFlag):
    """MS_* of linux/mount.h."""

    NOSUID = 2
    NODEV = 4
    NOEXEC = 8


def share(path: str, size: int) -> None:
    """Mount it at `path` if it is not there; size in bytes, 0 for the default."""
    os.makedirs(path, exist_ok=True)
    if os.path.ismount(path):
        return
    flags = MountFlag.NOSUID | MountFlag.NODEV | MountFlag.NOEXEC
    data = f"mode=1777,size={size or SHM_SIZE}".encode()
    if _libc.mount(b"shm", os.fsencode(path), b"tmpfs", flags, data) < 0:
        raise _failed(f"mount tmpfs {flags!r}", path)


def unshare(path: str) -> None:
    """Unmount it; whoever still has it mounted keeps it. Nothing if it is not there."""
    if not os.path.isdir(path):
        return
    if os.path.ismount(path) and _libc.umount2(os.fsencode(path), _MNT_DETACH) < 0:
        raise _failed("umount2 MNT_DETACH", path)
    os.rmdir(path)


def _failed(call: str, path: str) -> OSError:
    number = ctypes.get_errno()
    error = OSError(number, os.strerror(number), path)
    error.add_note(call)
    return error

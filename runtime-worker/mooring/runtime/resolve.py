"""openat2(2): opening paths that come from an image or a container, without leaving it."""

from __future__ import annotations

import ctypes
import os
from enum import IntFlag

_SYS_OPENAT2 = 437
"""The same number on every architecture: it is newer than the unified table."""

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


class Resolve(IntFlag):
    """RESOLVE_* of linux/openat2.h."""

    NO_XDEV = 0x01
    NO_MAGICLINKS = 0x02
    NO_SYMLINKS = 0x04
    BENEATH = 0x08
    IN_ROOT = 0x10


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def openat2(directory: int, path: bytes, flags: int, resolve: Resolve) -> int:
    """A descriptor (close-on-exec); OSError, also ELOOP and EXDEV for what resolve forbids."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, int(resolve))
    while True:
        fd = _syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(directory),
            ctypes.c_char_p(path),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if fd >= 0:
            return int(fd)
        error = ctypes.get_errno()
        # EAGAIN: something was renamed meanwhile; EINTR: a signal.
        if error not in (11, 4):
            raise OSError(error, os.strerror(error), os.fsdecode(path))

"""The local driver's mounts: `type`, `o` and `device` as mount(2) takes them."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntFlag

from mooring.kit.errors import EngineError

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_MNT_DETACH = 2


class Flag(IntFlag):
    """MS_* of linux/mount.h."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    SYNCHRONOUS = 16
    REMOUNT = 32
    MANDLOCK = 64
    DIRSYNC = 128
    NOATIME = 1024
    NODIRATIME = 2048
    BIND = 4096
    REC = 16384
    UNBINDABLE = 1 << 17
    PRIVATE = 1 << 18
    SLAVE = 1 << 19
    SHARED = 1 << 20
    RELATIME = 1 << 21
    STRICTATIME = 1 << 24


_SET = {
    "ro": Flag.RDONLY, "nosuid": Flag.NOSUID, "nodev": Flag.NODEV, "noexec": Flag.NOEXEC,
    "sync": Flag.SYNCHRONOUS, "dirsync": Flag.DIRSYNC, "noatime": Flag.NOATIME,
    "nodiratime": Flag.NODIRATIME, "relatime": Flag.RELATIME, "strictatime": Flag.STRICTATIME,
    "mand": Flag.MANDLOCK, "bind": Flag.BIND, "rbind": Flag.BIND | Flag.REC,
}  # fmt: skip
_CLEARED = {
    "rw": Flag.RDONLY, "suid": Flag.NOSUID, "dev": Flag.NODEV, "exec": Flag.NOEXEC,
    "async": Flag.SYNCHRONOUS, "atime": Flag.NOATIME, "diratime": Flag.NODIRATIME,
    "norelatime": Flag.RELATIME, "nostrictatime": Flag.STRICTATIME, "nomand": Flag.MANDLOCK,
}  # fmt: skip
_NOTHING = frozenset({"", "defaults"})
_PROPAGATION = {
    "private": Flag.PRIVATE, "shared": Flag.SHARED, "slave": Flag.SLAVE,
    "unbindable": Flag.UNBINDABLE,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LocalMount:
    """One call of mount(2), and the propagation to set after it."""

    device: str
    fstype: str
    flags: Flag
    data: str
    propagation: Flag


def parse(options: Mapping[str, str]) -> LocalMount | None:
    """What a volume's options ask to be mounted; None for a plain directory."""
    if not options.get("device"):
        return None
    flags, propagation, data = Flag(0), Flag(0), []
    for option in options.get("o", "").split(","):
        if option in _SET:
            flags |= _SET[option]
        elif option in _CLEARED:
            flags &= ~_CLEARED[option]
        elif option.removeprefix("r") in _PROPAGATION:
            propagation = _PROPAGATION[option.removeprefix("r")]
            if option.startswith("r"):
                propagation |= Flag.REC
        elif option not in _NOTHING:
            data.append(option)
    return LocalMount(
        options["device"], options.get("type", ""), flags, ",".join(data), propagation
    )


def mount(wanted: LocalMount, target: str) -> None:
    """Mount it; EngineError in Docker's words. It may wait long (nfs)."""
    data = _resolved(wanted)
    fstype = b"" if wanted.fstype == "none" else wanted.fstype.encode()
    try:
        _mount(wanted.device, target, fstype, wanted.flags, data)
        if wanted.flags & Flag.BIND and wanted.flags & ~(Flag.BIND | Flag.REC):
            # A bind takes its own flags only from a second call.
            _mount("", target, b"", wanted.flags | Flag.REMOUNT, "")
        if wanted.propagation:
            _mount("", target, b"", wanted.propagation, "")
    except OSError as exc:
        text = f"mount {wanted.device}:{target}"
        if wanted.flags:
            text += f", flags: {int(wanted.flags):#x}"
        if data:
            text += f", data: {data}"
        raise EngineError(
            f"error while mounting volume '{target}': failed to mount local volume: {text}:"
            f" {os.strerror(exc.errno or 0).lower()}"
        ) from exc


def unmount(target: str) -> None:
    """Unmount whatever is mounted at a directory, however often; whoever uses it keeps it.

    After this the directory is what it seems to be: what is deleted in it is ours.
    """
    while _libc.umount2(os.fsencode(target), _MNT_DETACH) == 0:
        pass
    number = ctypes.get_errno()
    # EINVAL: nothing is mounted there.
    if number not in (errno.EINVAL, errno.ENOENT):
        raise OSError(number, os.strerror(number), target)


def _resolved(wanted: LocalMount) -> str:
    """nfs and cifs in the kernel want the server's address, not its name."""
    if wanted.fstype not in ("nfs", "nfs4", "cifs"):
        return wanted.data
    parts = []
    for option in wanted.data.split(","):
        if option.startswith("addr="):
            name = option.removeprefix("addr=")
            try:
                address = socket.getaddrinfo(name, None)[0][4][0]
            except OSError as exc:
                raise EngineError(
                    f"error resolving passed in network volume address: {exc}"
                ) from exc
            option = f"addr={address}"
        parts.append(option)
    return ",".join(parts)


def _mount(device: str, target: str, fstype: bytes, flags: Flag, data: str) -> None:
    arguments = (os.fsencode(device), os.fsencode(target), fstype or None)
    if _libc.mount(*arguments, int(flags), os.fsencode(data) or None) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)

"""Users of a running container, as its own files have them: for an exec as another user."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mooring.kit.errors import InvalidParameter

_SYS_OPENAT2 = 437
_RESOLVE_IN_ROOT = 0x10
_RESOLVE_NO_MAGICLINKS = 0x02
_OPEN_HOW = struct.Struct("<QQQ")
_LARGEST_ID = (1 << 31) - 1
_LARGEST_FILE = 4 << 20
_NO_ENTRY = "no matching entries in group file"


@dataclass(frozen=True, slots=True)
class Account:
    """Who a process runs as, and where at home."""

    uid: int
    gid: int
    additional: tuple[int, ...] = ()
    home: str = "/"

    def as_oci(self) -> dict[str, Any]:
        """`process.user` of the OCI specification."""
        return {"uid": self.uid, "gid": self.gid, "additionalGids": list(self.additional)}


def look_up(init_pid: int, user: str, group_add: Sequence[str] = ()) -> Account:
    """`user[:group]` and further groups, by name or number, in the root of a process.

    InvalidParameter if there is no such user or group.
    """
    name, _, group = user.partition(":")
    passwd = _read(init_pid, "/etc/passwd")
    groups = _read(init_pid, "/etc/group")
    return resolve(passwd, groups, name, group, group_add)


def home_of(init_pid: int, uid: int) -> str:
    """The home directory of a user id in the root of a process; `/` if it has none."""
    return resolve(_read(init_pid, "/etc/passwd"), "", str(uid), "0").home


def resolve(
    passwd: str, groups: str, name: str, group: str, group_add: Sequence[str] = ()
) -> Account:
    """`name` and `group` (empty: the user's own) by the text of passwd and group."""
    uid, gid, home, login = _user(passwd, name or "0")
    memberships: list[int] = []
    if group:
        gid = _group(groups, group, f"unable to find group {group}: {_NO_ENTRY}")
    else:
        memberships = _memberships(groups, login)
    added = [_group(groups, wanted, f"Unable to find group {wanted}") for wanted in group_add]
    # The primary group is among them, as it is for the container's own user.
    return Account(uid, gid, tuple(dict.fromkeys((gid, *memberships, *added))), home)


def _user(passwd: str, name: str) -> tuple[int, int, str, str]:
    numeric = name.isdecimal()
    by_number = None
    for fields in _entries(passwd, 6):
        if not (fields[2].isdecimal() and fields[3].isdecimal()):
            continue
        found = int(fields[2]), int(fields[3]), fields[5] or "/", fields[0]
        if fields[0] == name:
            return found
        if numeric and by_number is None and found[0] == int(name):
            by_number = found
    if by_number is not None:
        return by_number
    if not numeric:
        raise InvalidParameter(f"unable to find user {name}: no matching entries in passwd file")
    return _within(name), 0, "/", ""


def _group(groups: str, name: str, absent: str) -> int:
    numeric = name.isdecimal()
    for fields in _entries(groups, 3):
        if fields[2].isdecimal() and (fields[0] == name or (numeric and fields[2] == name)):
            return int(fields[2])
    if not numeric:
        raise InvalidParameter(absent)
    return _within(name)


def _within(number: str) -> int:
    if int(number) > _LARGEST_ID:
        raise InvalidParameter("uids and gids must be in range 0-2147483647")
    return int(number)


def _memberships(groups: str, login: str) -> list[int]:
    if not login:
        return []
    return [
        int(fields[2])
        for fields in _entries(groups, 4)
        if fields[2].isdecimal() and login in fields[3].split(",")
    ]


def _entries(text: str, least: int) -> list[list[str]]:
    rows = (line.strip().split(":") for line in text.splitlines() if not line.startswith("#"))
    return [fields for fields in rows if len(fields) >= least]


def _read(pid: int, path: str) -> str:
    """A file below the root of a process; its symbolic links cannot lead out. Empty if away."""
    number = _open_path(pid, path)
    if number < 0:
        return ""
    try:
        # Looked at before it is opened: the container may have put a FIFO or a device there.
        if not stat.S_ISREG(os.fstat(number).st_mode):
            return ""
        with open(f"/proc/self/fd/{number}", "rb") as file:
            return file.read(_LARGEST_FILE).decode(errors="surrogateescape")
    except OSError:
        return ""
    finally:
        os.close(number)


def _open_path(pid: int, path: str) -> int:
    """openat2(2) with O_PATH and RESOLVE_IN_ROOT; negative if it fails."""
    # Not at the top: most agents never need it, and it costs memory.
    import ctypes

    try:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        how = _OPEN_HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
        return int(
            ctypes.CDLL(None).syscall(
                ctypes.c_long(_SYS_OPENAT2),
                ctypes.c_int(root),
                ctypes.c_char_p(path.encode()),
                ctypes.c_char_p(how),
                ctypes.c_size_t(len(how)),
            )
        )
    finally:
        os.close(root)

"""The receiving side of sd_notify: READY, STOPPING, WATCHDOG, STATUS, FDSTORE, FDSTOREREMOVE."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from dataclasses import dataclass

from mooring.kit.listening import bind_privately

_CREDENTIALS = struct.Struct("3i")
_MAX_DESCRIPTORS = 253
"""SCM_MAX_FD: more never travel in one message."""


@dataclass(frozen=True)
class Notification:
    """What one process said, with the descriptors it sent (to be closed by whoever gets this)."""

    pid: int
    fields: dict[str, str]
    descriptors: list[int]


def bind(path: str) -> socket.socket:
    """The socket that our children notify."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    bind_privately(made, path)
    # The kernel adds who sent a message: nobody can speak for another.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return made


def receive(notified: socket.socket, *, peek: bool = False) -> Notification | None:
    """The next message, or None if there is none; peek: which stays until `drop`."""
    space = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(4 * _MAX_DESCRIPTORS)
    try:
        flags = socket.MSG_CMSG_CLOEXEC | (socket.MSG_PEEK if peek else 0)
        data, ancillary, _, _ = notified.recvmsg(4096, space, flags)
    except BlockingIOError:
        return None
    pid = 0
    descriptors: list[int] = []
    for level, kind, content in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
            descriptors.extend(numbers)
        elif kind == socket.SCM_CREDENTIALS:
            pid = _CREDENTIALS.unpack(content[: _CREDENTIALS.size])[0]
    fields = {}
    for line in data.decode(errors="replace").split("\n"):
        name, separator, value = line.partition("=")
        if separator:
            fields[name] = value
    return Notification(pid, fields, descriptors)


def drop(notified: socket.socket) -> None:
    """Take the message away that was peeked at. The descriptors that came with it are ours."""
    notified.recv(1)

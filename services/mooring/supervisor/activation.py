"""The sockets of services that are started on demand: made here, kept here, as systemd does."""

from __future__ import annotations

import contextlib
import os
import socket

from mooring.kit.listening import bind_privately

BACKLOG = 64


def listen(path: str) -> socket.socket:
    """A listening SOCK_SEQPACKET socket that only root can connect to; OSError."""
    with contextlib.suppress(FileNotFoundError):
        # Of a supervisor that was killed: the directory is locked, nobody else answers there.
        os.unlink(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        bind_privately(made, path)
        made.listen(BACKLOG)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def close(path: str, listening: socket.socket) -> None:
    """Close it and remove its file."""
    listening.close()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)

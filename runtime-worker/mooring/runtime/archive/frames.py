"""An archive on a socket between a helper and a gateway of the same host, in frames.

4 bytes, big-endian: how many follow. A frame of none ends the bytes, so that a peer that died is
never taken for the end. Standard library only.
"""

from __future__ import annotations

import json
import os
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LENGTH = 4
_PATIENCE = 15.0
"""Seconds that a gateway has to connect."""
_BUFFER = 1 << 20
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33


class Stalled(Exception):
    """Nothing came for longer than may be waited for."""


def accept(listener: int) -> socket.socket:
    """The gateway's connection; TimeoutError."""
    with socket.socket(fileno=os.dup(listener)) as waiting:
        waiting.settimeout(_PATIENCE)
        connection, _ = waiting.accept()
    connection.setblocking(True)
    for option in (_SO_SNDBUFFORCE, _SO_RCVBUFFORCE):
        try:
            connection.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        except OSError:
            pass
    return connection


def limit(connection: socket.socket, seconds: float) -> None:
    """Reading raises Stalled from now on if nothing comes for so long.

    The kernel's own limit: a time-out of Python's would cost a system call for every read.
    """
    whole = int(seconds)
    pair = struct.pack("ll", whole, int((seconds - whole) * 1_000_000))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, pair)


class FramedInput:
    """The bytes of a copy into a container; `read(n)` gives at most n, none at the end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._left = 0
        self._ended = False

    def read(self, limit: int) -> bytes:
        """See above; EOFError if the other end went away, Stalled if it is silent."""
        if not self._left and not self._ended:
            self._left = int.from_bytes(self._exactly(_LENGTH), "big")
            self._ended = not self._left
        if self._ended:
            return b""
        data = self._receive(min(limit, self._left))
        if not data:
            raise EOFError
        self._left -= len(data)
        return data

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._receive(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def _receive(self, limit: int) -> bytes:
        try:
            return self._connection.recv(limit)
        except BlockingIOError:
            raise Stalled from None


def header(length: int) -> bytes:
    """What goes before `length` bytes."""
    return length.to_bytes(_LENGTH, "big")


def end(connection: socket.socket, result: dict[str, Any], *, ended: bool = False) -> None:
    """Say what came of it; nobody may be there to hear it."""
    text = json.dumps(result).encode()
    try:
        connection.sendall((b"" if ended else header(0)) + header(len(text)) + text)
    except OSError:
        pass

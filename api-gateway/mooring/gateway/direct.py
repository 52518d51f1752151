"""Archives of containers on this very host: their bytes need no bus, only a socket.

Where the gateway can't reach the host's sockets (another host, no permission) the caller goes on
with a stream of the bus.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

from mooring.kit import subjects
from mooring.kit.errors import KINDS, EngineError, Unavailable
from mooring.kit.models.archive import ArchiveOpened, ReadArchive, WriteArchive

from .engine import Engine

_PIECE = 256 << 10
_LENGTH = 4
_LONGEST = 107 - len("/0123456789abcdef")
"""Bytes of the directory's path: a unix socket's is limited."""
_BROKEN = "the archive broke off: the process that copies was ended"


def is_here(engine: Engine, node: str) -> bool:
    """Whether a node's sockets are on this host, as far as can be seen."""
    entry = engine.nodes.get(node)
    place = f"{entry.record.run_dir}/archive" if entry is not None else ""
    return 0 < len(os.fsencode(place)) <= _LONGEST and os.access(place, os.X_OK)


@contextlib.asynccontextmanager
async def reading(
    engine: Engine, message: ReadArchive
) -> AsyncIterator[tuple[dict[str, Any], AsyncIterator[bytes] | None]]:
    """What is at the path, and its archive in pieces; None if the socket can't be reached."""
    subject = subjects.runtime(message.record.node, subjects.RUNTIME_ARCHIVE_OPEN_READ)
    opened = await engine.ask(subject, message, ArchiveOpened)
    connection = await _connect(opened.path)
    if connection is None:
        yield opened.described, None
        return
    with connection:
        yield opened.described, _pieces(connection)


@contextlib.asynccontextmanager
async def writing(engine: Engine, message: WriteArchive) -> AsyncIterator[Sending | None]:
    """Where the bytes of an archive go; None if the socket can't be reached."""
    subject = subjects.runtime(message.record.node, subjects.RUNTIME_ARCHIVE_OPEN_WRITE)
    opened = await engine.ask(subject, message, ArchiveOpened)
    connection = await _connect(opened.path)
    if connection is None:
        yield None
        return
    with connection:
        yield Sending(connection)


class Sending:
    """Bytes on their way into a container."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()

    async def write(self, data: bytes) -> bool:
        """Send; False if no more is wanted: `finish` says why."""
        parts = [len(data).to_bytes(_LENGTH, "big"), data]
        try:
            try:
                # Together, and without putting them together first.
                sent = self._connection.sendmsg(parts)
            except BlockingIOError:
                sent = 0
            if sent < _LENGTH:
                await self._loop.sock_sendall(self._connection, parts[0][sent:])
                sent = _LENGTH
            if sent < _LENGTH + len(data):
                await self._loop.sock_sendall(self._connection, memoryview(data)[sent - _LENGTH :])
        except ConnectionError:
            return False
        return True

    async def finish(self) -> None:
        """That was all: wait until it is extracted; the host's EngineError."""
        with contextlib.suppress(ConnectionError):
            await self._loop.sock_sendall(self._connection, bytes(_LENGTH))
        rest = b""
        with contextlib.suppress(ConnectionError):
            while piece := await self._loop.sock_recv(self._connection, _PIECE):
                rest += piece
                if len(rest) >= _LENGTH and len(rest) >= _LENGTH + _length(rest):
                    break
        _check(rest)


async def _pieces(connection: socket.socket) -> AsyncIterator[bytes]:
    """The payload of the frames; the host's EngineError, Unavailable if they stop too early."""
    loop = asyncio.get_running_loop()
    held, left = b"", 0
    while True:
        data = await loop.sock_recv(connection, _PIECE)
        if not data:
            raise Unavailable(_BROKEN)
        if held:
            data, held = held + data, b""
        if left >= len(data):
            left -= len(data)
            yield data
            continue
        parts, at = [data[:left]], left
        while True:
            if len(data) - at < _LENGTH:
                held, left = data[at:], 0
                break
            length = _length(data, at)
            at += _LENGTH
            if not length:
                if payload := b"".join(parts):
                    yield payload
                _check(await _rest(loop, connection, data[at:]))
                return
            parts.append(data[at : at + length])
            at += length
            if at >= len(data):
                left = at - len(data)
                break
        if payload := b"".join(parts):
            yield payload


async def _rest(loop: asyncio.AbstractEventLoop, connection: socket.socket, data: bytes) -> bytes:
    while piece := await loop.sock_recv(connection, _PIECE):
        data += piece
    return data


def _length(data: bytes, at: int = 0) -> int:
    return int.from_bytes(data[at : at + _LENGTH], "big")


def _check(last: bytes) -> None:
    """The last frame says what came of it."""
    text = last[_LENGTH:]
    if len(last) < _LENGTH or len(text) < _length(last):
        raise Unavailable(_BROKEN)
    result = json.loads(text)
    if error := result.get("error"):
        raise KINDS.get(str(result.get("kind")), EngineError)(error)


async def _connect(path: str) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connection, path)
    except OSError:
        connection.close()
        return None
    return connection

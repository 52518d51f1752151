"""The worker's end of `mooring-network`, which keeps what has to outlive the worker."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Sequence
from typing import Any

from mooring.kit.errors import EngineError, Unavailable

TIMEOUT = 10.0
"""Seconds for an answer; it takes less than a millisecond, or a restart of the service."""
_TRIES = 3
_DESCRIPTORS = 200
_PACKET = 64 << 10


class Attendant:
    """Requests are repeated on a new connection when one breaks: each may be done twice."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._lock = asyncio.Lock()

    async def hold(
        self,
        holder: str,
        targets: Sequence[tuple[str, int]],
        sockets: Sequence[socket.socket],
    ) -> None:
        """Have sockets kept and relayed from; the caller's own may be closed then."""
        for start in range(0, len(sockets), _DESCRIPTORS):
            part = slice(start, start + _DESCRIPTORS)
            request = {"op": "hold", "holder": holder, "targets": targets[part]}
            await self.ask(request, [sock.fileno() for sock in sockets[part]])

    async def move(self, holder: str, address: str) -> None:
        """Have a holder's connections relayed to another address from now on."""
        await self.ask({"op": "move", "holder": holder, "address": address})

    async def release(self, holder: str) -> None:
        """Have a holder's sockets closed."""
        await self.ask({"op": "release", "holder": holder})

    async def ask(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        """One request and its answer; Unavailable, EngineError with what the service says."""
        packet = json.dumps(request).encode()
        async with self._lock:
            for attempt in range(_TRIES):
                try:
                    async with asyncio.timeout(TIMEOUT):
                        answer = await self._exchange(packet, descriptors)
                    break
                except (OSError, TimeoutError) as exc:
                    self.close()
                    if attempt == _TRIES - 1:
                        raise Unavailable("the network service does not answer") from exc
        if error := answer.get("error"):
            raise EngineError(f"the network service cannot {request['op']}: {error}")
        return answer

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _exchange(self, packet: bytes, descriptors: Sequence[int]) -> dict[str, Any]:
        if self._socket is None:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            made.setblocking(False)
            self._socket = made
            made.connect(self._path)
        socket.send_fds(self._socket, [packet], list(descriptors))
        answer = await _receive(self._socket)
        if not answer:
            raise ConnectionResetError("the network service hung up")
        value: dict[str, Any] = json.loads(answer)
        return value


async def _receive(sock: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock.fileno())
    return sock.recv(_PACKET)

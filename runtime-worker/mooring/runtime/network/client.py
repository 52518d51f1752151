"""The worker's end of the factory: one request at a time, descriptors both ways."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

from mooring.kit.errors import EngineError

TIMEOUT = 10.0
"""Seconds; a sandbox takes 2 ms."""
_PACKET = 1 << 16


class FactoryError(EngineError):
    """The factory could not do it; `errno` is the kernel's reason, 0 for none."""

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno


class FactoryClient:
    """A connected socket to network/factory.py, and the order in which it is asked."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket: socket.socket | None = sock
        self._lock = asyncio.Lock()

    @property
    def alive(self) -> bool:
        """Whether it answered when it was asked last."""
        return self._socket is not None

    def close(self) -> None:
        """The factory ends with its socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def ask(
        self, request: dict[str, Any], given: Sequence[int] = ()
    ) -> tuple[dict[str, Any], list[int]]:
        """Its answer and the descriptors in it; FactoryError, EngineError if it is gone."""
        async with self._lock:
            if self._socket is None:
                raise EngineError("the sandbox factory is gone")
            try:
                async with asyncio.timeout(TIMEOUT):
                    await self._send(self._socket, json.dumps(request).encode(), given)
                    packet, descriptors = await self._receive(self._socket)
            except BaseException as exc:
                # An answer that comes late would be taken for the next one's.
                self.close()
                if isinstance(exc, (TimeoutError, OSError)):
                    raise EngineError(f"the sandbox factory does not answer: {exc}") from exc
                raise
        answer: dict[str, Any] = json.loads(packet or b'{"error": "the sandbox factory died"}')
        if not packet:
            self.close()
        if error := answer.get("error"):
            for descriptor in descriptors:
                os.close(descriptor)
            raise FactoryError(str(error), int(answer.get("errno") or 0))
        return answer, descriptors

    async def _send(self, sock: socket.socket, data: bytes, given: Sequence[int]) -> None:
        # Its queue is empty: it is asked one thing at a time.
        if given:
            socket.send_fds(sock, [data], list(given))
        else:
            await asyncio.get_running_loop().sock_sendall(sock, data)

    async def _receive(self, sock: socket.socket) -> tuple[bytes, list[int]]:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(sock.fileno(), ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(sock.fileno())
        data, descriptors, _, _ = socket.recv_fds(sock, _PACKET, 4, socket.MSG_CMSG_CLOEXEC)
        return data, list(descriptors)

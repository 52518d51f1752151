"""The worker's end of `mooring-network`, which keeps what has to outlive the worker."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from mooring.kit.errors import EngineError, Unavailable

from .packets import GOODBYE, PACKET

TIMEOUT = 10.0
"""Seconds for an answer; it takes less than a millisecond, or a restart of the service."""
_TRIES = 3
_DESCRIPTORS = 200


class Attendant:
    """Requests are repeated on a new connection when one breaks: each may be done twice."""

    def __init__(self, path: str, mark: str = "") -> None:
        """mark: a file in memory, made when the service has been asked for the first time."""
        self._path = path
        self._mark = mark
        self._socket: socket.socket | None = None
        self._lock = asyncio.Lock()
        self._answered: asyncio.Event | None = None
        """Of the request that waits for its answer."""
        self.renewed: list[Callable[[], None]] = []
        """Called for each new connection, and when one ends: the service may be another process,
        which has what its store had."""

    @property
    def connected(self) -> bool:
        """Whether there is a connection, and so a service."""
        return self._socket is not None

    def used(self) -> bool:
        """Whether the service may keep anything; one that does not need not be started to see."""
        return os.path.exists(self._mark)

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

    async def holders(self, of: str) -> set[str]:
        """Every holder of `ports` or of `names`."""
        found: set[str] = set()
        last = ""
        while True:
            answer = await self.ask({"op": "holders", "of": of, "after": last})
            found.update(answer["holders"])
            if not answer.get("more"):
                return found
            last = max(found)

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
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    async def _exchange(self, packet: bytes, descriptors: Sequence[int]) -> dict[str, Any]:
        connection, new = self._socket, self._socket is None
        if connection is None:
            connection = self._socket = self._connect()
        self._answered = asyncio.Event()
        try:
            socket.send_fds(connection, [packet], list(descriptors))
            answer = await self._receive(connection, self._answered)
            if not answer or answer == GOODBYE:
                raise ConnectionResetError("the network service hung up")
            value: dict[str, Any] = json.loads(answer)
        except BaseException:
            # Whoever asks next is not to get the answer to this.
            self.close()
            raise
        finally:
            self._answered = None
        if new:
            self._renewed()
        return value

    async def _receive(self, connection: socket.socket, answered: asyncio.Event) -> bytes:
        while True:
            await answered.wait()
            try:
                return connection.recv(PACKET)
            except BlockingIOError:
                # What the loop saw was the answer before.
                answered.clear()

    def _connect(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            made.setblocking(False)
            made.connect(self._path)
            if self._mark:
                os.close(os.open(self._mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            asyncio.get_running_loop().add_reader(made.fileno(), self._readable)
        except BaseException:
            made.close()
            raise
        return made

    def _readable(self) -> None:
        if self._answered is not None:
            self._answered.set()
            return
        assert self._socket is not None
        try:
            packet = self._socket.recv(PACKET)
        except BlockingIOError:
            return  # An answer, which its asker has read since the loop saw it.
        except OSError:
            packet = b""
        self.close()
        if packet != GOODBYE:
            # It was ended, and who comes next has to be looked at. That is to start it: not where
            # it has said that there is nothing to look at.
            self._renewed()

    def _renewed(self) -> None:
        for look in self.renewed:
            look()

"""UDP for what the kernel cannot translate: from [::1], and from IPv6 to a container without it."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

from mooring.runtime.network.loop import Loop

IDLE = 90.0
"""Seconds without a datagram after which a client is forgotten, as docker-proxy has it."""
CLIENTS = 1024
"""Of one port; the one that has been silent longest makes room."""
_TURN = 64
_LARGEST = 65535


@dataclass(slots=True)
class _Client:
    socket: socket.socket
    """Connected to the container."""
    used: float
    ancillary: list[tuple[int, int, bytes]]
    """Which of the host's addresses the client spoke to: it is answered from there."""


class Datagrams:
    """Relays the datagrams of one held socket."""

    def __init__(self, loop: Loop, held: socket.socket, target: tuple[str, int]) -> None:
        self._loop = loop
        self._held = held
        self._target = target
        self._clients: dict[object, _Client] = {}
        self._sweeping = False
        if held.family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        loop.watch(held.fileno(), self._arrived)

    def close(self) -> None:
        """Forget every client; the held socket is the caller's."""
        self._loop.forget(self._held.fileno())
        for address in list(self._clients):
            self._drop(address)

    def _arrived(self) -> None:
        for _ in range(_TURN):
            try:
                data, ancillary, _, address = self._held.recvmsg(_LARGEST, 256)
            except OSError:
                return
            client = self._clients.pop(address, None) or self._client(address)
            # Taken out and put in again: the first is the one silent longest.
            self._clients[address] = client
            client.used = time.monotonic()
            client.ancillary = [
                item for item in ancillary if item[:2] == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)
            ]
            try:
                client.socket.send(data)
            except OSError:
                pass  # nobody listens there: a lost datagram, as UDP may lose any

    def _client(self, address: object) -> _Client:
        if len(self._clients) >= CLIENTS:
            self._drop(next(iter(self._clients)))
        family = socket.AF_INET6 if ":" in self._target[0] else socket.AF_INET
        made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        made.connect(self._target)
        self._loop.watch(made.fileno(), lambda: self._answered(address))
        if not self._sweeping:
            self._sweeping = True
            self._loop.later(IDLE, self._sweep)
        return _Client(made, 0.0, [])

    def _answered(self, address: object) -> None:
        client = self._clients[address]
        for _ in range(_TURN):
            try:
                data = client.socket.recv(_LARGEST)
            except OSError:
                return
            client.used = time.monotonic()
            try:
                self._held.sendmsg([data], client.ancillary, 0, address)  # type: ignore[arg-type]
            except OSError:
                return

    def _sweep(self) -> None:
        limit = time.monotonic() - IDLE
        for address, client in list(self._clients.items()):
            if client.used <= limit:
                self._drop(address)
        self._sweeping = bool(self._clients)
        if self._sweeping:
            self._loop.later(IDLE, self._sweep)

    def _drop(self, address: object) -> None:
        client = self._clients.pop(address)
        self._loop.forget(client.socket.fileno())
        client.socket.close()

"""The name server of this host's containers: a UDP and a TCP socket in each one's namespace.

What it knows is in files that the worker writes (names.Sandbox), read at the start and when the
worker says that one has changed: names work while the bus, the worker or the gateway is away.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import socket
import struct
from collections.abc import Callable

from mooring.runtime.network.loop import Loop, Timer
from mooring.runtime.network.manager import Manager

from . import redirect, wire
from .names import Names, Sandbox
from .upstream import Upstream

logger = logging.getLogger(__name__)

PREFIX = "dns."
CONNECTIONS = 128
"""TCP connections of one container at a time."""
IDLE = 10.0
"""Seconds that a TCP connection may be silent."""
_TURN = 64


class _Resolver:
    """The sockets of one container."""

    def __init__(self, server: NameServer, holder: str, sockets: list[socket.socket]) -> None:
        self.sockets = sockets
        self.connections: set[_Connection] = set()
        self._server = server
        self._holder = holder
        for sock in sockets:
            sock.setblocking(False)
            if sock.type & socket.SOCK_STREAM:
                self._listener = sock
                server.loop.watch(sock.fileno(), self._accept)
            else:
                self._datagrams = sock
                server.loop.watch(sock.fileno(), self._arrived)

    def close(self) -> None:
        for connection in list(self.connections):
            connection.close()
        for sock in self.sockets:
            self._server.loop.forget(sock.fileno())
            sock.close()

    def _arrived(self) -> None:
        for _ in range(_TURN):
            try:
                packet, client = self._datagrams.recvfrom(65535, socket.MSG_PEEK)
            except OSError:
                return
            try:
                self._server.ask(self._holder, packet, functools.partial(self._send, client))
            finally:
                # Only now: should this process be killed first, the next one is asked the same.
                with contextlib.suppress(OSError):
                    self._datagrams.recv(1)

    def _send(self, client: tuple[str, int], data: bytes) -> None:
        try:
            self._datagrams.sendto(data, client)
        except OSError:
            pass  # it has gone, or its container has

    def _accept(self) -> None:
        for _ in range(_TURN):
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if len(self.connections) >= CONNECTIONS:
                client.close()
                continue
            self.connections.add(_Connection(self._server, self, self._holder, client))


class _Connection:
    """One TCP client: messages with their length in front."""

    def __init__(
        self, server: NameServer, owner: _Resolver, holder: str, client: socket.socket
    ) -> None:
        self._server, self._owner, self._holder, self._client = server, owner, holder, client
        self._buffer = b""
        self._closed = False
        client.setblocking(False)
        server.loop.watch(client.fileno(), self._read)
        self._timer: Timer = server.loop.later(IDLE, self.close)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._timer.cancel()
            self._owner.connections.discard(self)
            self._server.loop.forget(self._client.fileno())
            self._client.close()

    def _read(self) -> None:
        try:
            data = self._client.recv(65535)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._timer.cancel()
        self._timer = self._server.loop.later(IDLE, self.close)
        self._buffer += data
        while len(self._buffer) >= 2:
            length = int.from_bytes(self._buffer[:2], "big")
            if len(self._buffer) < 2 + length:
                return
            packet, self._buffer = self._buffer[2 : 2 + length], self._buffer[2 + length :]
            self._server.ask(self._holder, packet, self._send, tcp=True)

    def _send(self, data: bytes) -> None:
        if self._closed:
            return
        try:
            # An answer fits into the socket's buffer, or the client does not read.
            self._client.sendall(struct.pack(">H", len(data)) + data)
        except OSError:
            self.close()


class NameServer:
    """All resolvers; see service.py for who asks it what."""

    def __init__(self, loop: Loop, manager: Manager, directory: str) -> None:
        self.loop = loop
        self._manager = manager
        self._directory = directory
        self._names = Names()
        self._resolvers: dict[str, _Resolver] = {}
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._upstream = Upstream(loop, self._socket_for)

    def __len__(self) -> int:
        return len(self._resolvers)

    def holders(self) -> set[str]:
        """Who is answered."""
        return set(self._resolvers)

    def load(self) -> None:
        """Read what the worker has written."""
        try:
            holders = os.listdir(self._directory)
        except FileNotFoundError:
            return
        for holder in holders:
            if not holder.endswith(".new"):
                self._read(holder)

    def join(self, holder: str, namespace: int) -> None:
        """Answer a container; namespace is its own. Asked again, only what is new is done."""
        self._read(holder)
        if holder in self._resolvers:
            return
        redirect.enter(namespace)
        try:
            sockets = redirect.open_here()
        finally:
            redirect.enter(self._home)
        self._manager.store(PREFIX + holder, [sock.fileno() for sock in sockets])
        self._resolvers[holder] = _Resolver(self, holder, sockets)

    def leave(self, holder: str) -> None:
        """Forget a container."""
        self._names.drop(holder)
        resolver = self._resolvers.pop(holder, None)
        if resolver is not None:
            resolver.close()
            self._manager.unstore(PREFIX + holder)

    def take(self, name: str, descriptors: list[int]) -> bool:
        """Take back what an earlier process had stored; False for a name that is not ours."""
        if not name.startswith(PREFIX):
            return False
        sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        holder = name.removeprefix(PREFIX)
        self._resolvers[holder] = _Resolver(self, holder, sockets)
        return True

    def ask(
        self, holder: str, packet: bytes, reply: Callable[[bytes], None], *, tcp: bool = False
    ) -> None:
        """One question from a container; anything that is none is not answered."""
        try:
            query = wire.parse(packet)
        except wire.NotAQuery:
            return
        sandbox = self._names.sandboxes.get(holder)
        if sandbox is None:
            reply(wire.refusal(query, wire.SERVFAIL))
            return
        own = self._names.answer(sandbox, query, 65535 if tcp else query.limit)
        if own is not None:
            reply(own)
        elif not sandbox.outside or not sandbox.servers:
            reply(wire.refusal(query, wire.SERVFAIL))
        else:
            self._upstream.ask(holder, sandbox.servers, query, packet, reply, tcp=tcp)

    def _read(self, holder: str) -> None:
        try:
            with open(f"{self._directory}/{holder}", "rb") as file:
                self._names.put(Sandbox.loads(holder, file.read()))
        except FileNotFoundError:
            self._names.drop(holder)
        except (ValueError, TypeError) as exc:
            logger.warning("cannot read the names of %s: %s", holder, exc)

    def _socket_for(self, holder: str, kind: int, server: str) -> tuple[socket.socket, str]:
        """A socket to a server, in the container's namespace; `host:` servers from the host's."""
        address = server.removeprefix("host:")
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        kind |= socket.SOCK_NONBLOCK
        if address != server or holder not in self._resolvers:
            return socket.socket(family, kind), address
        inside = self._resolvers[holder].sockets[0]
        namespace = fcntl.ioctl(inside.fileno(), redirect.SIOCGSKNS)
        try:
            redirect.enter(namespace)
            try:
                return socket.socket(family, kind), address
            finally:
                redirect.enter(self._home)
        finally:
            os.close(namespace)

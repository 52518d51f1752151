"""The host's sockets of published ports: held, so that the ports are taken, and relayed from.

What the kernel translates (firewall.py) never arrives at these sockets. What it cannot does: from
[::1], and over IPv6 to a container that has none.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from collections.abc import Sequence

from mooring.runtime.network.loop import Loop
from mooring.runtime.network.manager import Manager

from . import flow
from .datagrams import Datagrams

logger = logging.getLogger(__name__)

PREFIX = "port."
FLOWS = 1024
"""Relayed connections at a time; more wait in their socket's backlog."""


class _Held:
    """One socket of one published port."""

    def __init__(self, owner: HeldPorts, sock: socket.socket, target: tuple[str, int]) -> None:
        self.socket = sock
        self.target = target
        self.inode = os.fstat(sock.fileno()).st_ino
        self._owner = owner
        self._datagrams: Datagrams | None = None
        sock.setblocking(False)
        if sock.type & socket.SOCK_DGRAM:
            self._datagrams = Datagrams(owner.loop, sock, target)
        else:
            owner.loop.watch(sock.fileno(), self._accept)

    def close(self) -> None:
        if self._datagrams is not None:
            self._datagrams.close()
        self._owner.loop.forget(self.socket.fileno())
        if self._datagrams is None:
            # Duplicates of it exist for a moment still: no longer listening, it is in nobody's way.
            try:
                self.socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self.socket.close()

    def redirect(self, target: tuple[str, int]) -> None:
        """Relay to another target from now on."""
        self.target = target
        if self._datagrams is not None:
            self._datagrams.close()
            self._datagrams = Datagrams(self._owner.loop, self.socket, target)

    def pause(self, *, paused: bool) -> None:
        """Accept nothing for now, or again."""
        if self._datagrams is None:
            self._owner.loop.forget(self.socket.fileno())
            if not paused:
                self._owner.loop.watch(self.socket.fileno(), self._accept)

    def _accept(self) -> None:
        # One to a turn: the container is connected first, and not for a client that is not there.
        self._owner.relay(self.socket, self.target)


class HeldPorts:
    """All of them. A holder is `<container id>.<run>`."""

    def __init__(self, loop: Loop, manager: Manager) -> None:
        self.loop = loop
        self._manager = manager
        self._held: dict[str, list[_Held]] = {}
        """By the name in the descriptor store, which says all there is to know."""
        self._flows: dict[str, flow.Flow] = {}
        self._paused = False

    def __len__(self) -> int:
        return len(self._held) + len(self._flows)

    def count(self) -> int:
        """Sockets held."""
        return sum(map(len, self._held.values()))

    def holders(self) -> set[str]:
        """Whose ports are held."""
        return {_parse(name)[0] for name in self._held}

    def hold(
        self, holder: str, targets: Sequence[tuple[str, int]], sockets: Sequence[socket.socket]
    ) -> None:
        """Keep sockets, each with what it relays to; one that is held already is closed."""
        for sock, target in zip(sockets, targets, strict=True):
            name = _name(holder, target)
            if self._add(name, sock):
                self._manager.store(name, [sock.fileno()])
            else:
                sock.close()

    def release(self, holder: str) -> None:
        """Close a holder's sockets; connections that are relayed go on until one side ends."""
        for name in [name for name in self._held if _parse(name)[0] == holder]:
            for held in self._held.pop(name):
                held.close()
            self._manager.unstore(name)

    def move(self, holder: str, address: str) -> None:
        """Relay new connections of a holder to another address."""
        for name in [name for name in self._held if _parse(name)[0] == holder]:
            moved = _name(holder, (address, _parse(name)[1][1]))
            if moved == name:
                continue
            mine = self._held.pop(name)
            self._manager.store(moved, [held.socket.fileno() for held in mine])
            self._manager.unstore(name)
            for held in mine:
                held.redirect(_parse(moved)[1])
            self._held.setdefault(moved, []).extend(mine)

    def take(self, name: str, descriptors: list[int]) -> bool:
        """Take back what an earlier process had stored; False for a name that is not ours."""
        if name.startswith(PREFIX):
            for descriptor in descriptors:
                self._add(name, socket.socket(fileno=descriptor))
            return True
        if not name.startswith("flow."):
            return False
        if (made := flow.resume(self.loop, name, descriptors, self._over)) is None:
            self._manager.unstore(name)
        else:
            self._flows[name] = made
        return True

    def relay(self, listener: socket.socket, target: tuple[str, int]) -> None:
        """Connect the next client through; there may be none any more."""
        try:
            made = flow.begin(self.loop, self._manager, listener, target, self._over)
        except BlockingIOError:
            return
        except OSError as exc:
            logger.warning("cannot relay to %s port %d: %s", *target, exc)
            self._refuse(listener)
            return
        self._flows[made.name] = made
        if len(self._flows) >= FLOWS and not self._paused:
            self._pause(paused=True)

    def _refuse(self, listener: socket.socket) -> None:
        try:
            listener.accept()[0].close()
        except OSError:
            pass

    def _over(self, ended: flow.Flow) -> None:
        self._flows.pop(ended.name, None)
        self._manager.unstore(ended.name)
        if self._paused and len(self._flows) < FLOWS:
            self._pause(paused=False)

    def _pause(self, *, paused: bool) -> None:
        self._paused = paused
        for mine in self._held.values():
            for held in mine:
                held.pause(paused=paused)

    def _add(self, name: str, sock: socket.socket) -> bool:
        mine = self._held.setdefault(name, [])
        inode = os.fstat(sock.fileno()).st_ino
        if any(held.inode == inode for held in mine):
            return False
        mine.append(_Held(self, sock, _parse(name)[1]))
        return True


def _name(holder: str, target: tuple[str, int]) -> str:
    """A name for the store: no colon, at most 255 characters."""
    return f"{PREFIX}{holder}.{ipaddress.ip_address(target[0]).packed.hex()}.{target[1]}"


def _parse(name: str) -> tuple[str, tuple[str, int]]:
    holder, address, port = name.removeprefix(PREFIX).rsplit(".", 2)
    return holder, (str(ipaddress.ip_address(bytes.fromhex(address))), int(port))

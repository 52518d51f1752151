"""What the agent holds of containers, kept with the process manager for the agent after this one.

The descriptors of a run (or of an exec) are put into a socket, as a packet that is never taken out,
and that one socket is stored: one descriptor and one name, however much it stands for.
"""

from __future__ import annotations

import array
import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable
from typing import NamedTuple, Protocol

logger = logging.getLogger(__name__)

NAMES = 5000
"""How many are kept; their names go through one variable of the environment, of 128 KiB at most."""
_LISTENER = "agent"
_PACKET_BYTES = 4096
_ANCILLARY_BYTES = socket.CMSG_SPACE(16 * 4)


class Keeper(Protocol):
    """What keeps descriptors for us; see kit.process.Service."""

    def store(self, name: str, descriptor: int, *, poll: bool = True) -> None: ...
    def unstore(self, name: str) -> None: ...
    def stored(self) -> dict[str, list[int]]: ...
    def listeners(self) -> dict[str, list[socket.socket]]: ...


class Nobody:
    """Keeps nothing: an agent that nobody would start again."""

    def store(self, name: str, descriptor: int, *, poll: bool = True) -> None:
        """See Keeper."""

    def unstore(self, name: str) -> None:
        """See Keeper."""

    def stored(self) -> dict[str, list[int]]:
        """See Keeper."""
        return {}

    def listeners(self) -> dict[str, list[socket.socket]]:
        """See Keeper."""
        return {}


class Key(NamedTuple):
    """A run of a container, or (exec not empty) an exec of one."""

    id: str
    run: int
    exec: str = ""


class Keeping:
    """The descriptors of every run and exec, with the process manager."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._names: set[str] = set()
        self._found: dict[Key, tuple[str, dict[str, int]]] = {}
        self._waiting: dict[Key, Callable[[], None]] = {}
        self._turn: asyncio.Handle | None = None
        for name, descriptors in keeper.stored().items():
            self._names.add(name)
            for descriptor in descriptors:
                self._find(name, descriptor)

    def soon(self, key: Key, keep: Callable[[], None]) -> None:
        """Call `keep` when what has arrived by now is dealt with: output goes first."""
        self._waiting[key] = keep
        if self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self.settle)

    def settle(self) -> None:
        """Keep now what is waiting to be kept."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        waiting, self._waiting = self._waiting, {}
        for keep in waiting.values():
            keep()

    def keep(self, key: Key, named: dict[str, int], before: str) -> str:
        """Keep these in place of what was kept by the name `before`; the name, empty if refused."""
        self.drop(before)
        name = f"{key.exec[:12]}.x" if key.exec else f"{key.id[:12]}.{key.run}"
        if len(self._names) >= NAMES or name in self._names:
            logger.warning("%s could not be kept for the next agent", name)
            return ""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            packet = json.dumps([*key, *named], separators=(",", ":")).encode()
            socket.send_fds(ours, [packet], list(named.values()))
            ours.close()
            # Not to be polled: it has hung up, and so may have what it stands for.
            self._keeper.store(name, theirs.fileno(), poll=False)
        self._names.add(name)
        return name

    def drop(self, name: str) -> None:
        """What is kept by this name is over."""
        if name in self._names:
            self._names.discard(name)
            self._keeper.unstore(name)

    def take(self, key: Key) -> tuple[str, dict[str, int]]:
        """What an agent before this one kept: its name and the descriptors, the caller's now."""
        return self._found.pop(key, ("", {}))

    def execs(self, id_: str, run: int) -> list[str]:
        """Execs of a run that something is left of to take."""
        return [key.exec for key in self._found if key[:2] == (id_, run) and key.exec]

    def forget_rest(self) -> None:
        """All that nobody took belongs to what is over."""
        for name, named in self._found.values():
            self.drop(name)
            for descriptor in named.values():
                os.close(descriptor)
        self._found.clear()

    def listener(self, listener: socket.socket) -> list[socket.socket]:
        """Keep the socket that shims connect to; those of agents before, with who waits at them."""
        before = self._keeper.listeners().get(_LISTENER, [])
        self._keeper.unstore(_LISTENER)
        self._keeper.store(_LISTENER, listener.fileno())
        return before

    def _find(self, name: str, descriptor: int) -> None:
        with socket.socket(fileno=descriptor) as kept:
            try:
                # Not socket.recv_fds: that of Python 3.11 forgets the flags, and takes it out.
                flags = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                data, ancillary, _, _ = kept.recvmsg(_PACKET_BYTES, _ANCILLARY_BYTES, flags)
                id_, run, exec_, *names = json.loads(data)
            except (OSError, ValueError) as exc:
                logger.warning("%s was kept and can't be read: %s", name, exc)
                return
        numbers = array.array("i")
        for _, _, rights in ancillary:
            numbers.frombytes(rights)
        named = dict(zip(names, numbers, strict=True))
        self._found[Key(id_, run, exec_)] = name, named

"""What the agent holds of containers, kept with the process manager for the agent after this one.

The descriptors of a run (or of an exec) are put into a socket, as a packet that is never taken out,
and that one socket is stored: one descriptor and one name, however much it stands for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Protocol

from mooring.kit import faults

from . import vestibule
from .vestibule import Ancillary, Key, Unreadable, Vestibule

logger = logging.getLogger(__name__)

NAMES = 5000
"""How many are kept; their names go through one variable of the environment, of 128 KiB at most."""
_LISTENER = "agent"
_LATER = 0.25
"""Seconds until what came is stored by its own name. What is over by then never is: most execs, and
containers that do one thing. Each store, and its undoing, wakes the process manager."""


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


class Keeping:
    """The descriptors of every run and exec, with the process manager."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._names: set[str] = set()
        self._found: dict[Key, tuple[str, dict[str, int]]] = {}
        self._waiting: dict[Key, Callable[[], None]] = {}
        self._turn: asyncio.Handle | None = None
        stored = keeper.stored()
        unsettled = stored.pop(vestibule.NAME, [])
        left = stored.pop(vestibule.PORCH, [])
        for name, descriptors in stored.items():
            self._names.add(name)
            for descriptor in descriptors:
                self._find(name, descriptor)
        for descriptor in unsettled:
            for key, named in vestibule.left(descriptor):
                self._settle_left(key, named)
        for descriptor in left:
            for key, named in vestibule.left(descriptor):
                # What an agent has got to know of may be more by now.
                if key in self._found:
                    _close(named)
                else:
                    self._settle_left(key, named)
        if unsettled:
            keeper.unstore(vestibule.NAME)
        if left:
            keeper.unstore(vestibule.PORCH)
        self._vestibule = Vestibule(keeper)
        self._porch = Vestibule(keeper, vestibule.PORCH)

    def close(self) -> None:
        """This agent keeps nothing more."""
        self.settle()
        self._vestibule.close()
        self._porch.close()

    @property
    def porch(self) -> int:
        """For a shim to leave in what an exec is made of, before it executes anything."""
        return self._porch.inlet

    def left_of(self, run: Key) -> list[tuple[Key, dict[str, int]]]:
        """Take what a shim of this run has left on the porch and not told of."""
        return self._porch.take(lambda key: key[:2] == run[:2])

    def came(self, hello: memoryview, ancillary: Ancillary) -> None:
        """A shim's hello, with which nothing else has been done yet."""
        self._vestibule.put_hello(hello, ancillary)
        faults.point("agent.keeping.came")

    def soon(
        self, key: Key, named: dict[str, int], keep: Callable[[], None], *, less: bool = False
    ) -> None:
        """Call `keep` in a while. Killed before that, this agent has left `named` to the next one.

        less: than what came before, which nobody may hold any more. It is called when what has
        arrived by now is dealt with, then: output goes first.
        """
        self._waiting[key] = keep
        loop = asyncio.get_running_loop()
        if not self._vestibule.put(key, named):
            self.settle()
        elif less:
            if self._turn is not None:
                self._turn.cancel()
            self._turn = loop.call_soon(self.settle)
        elif self._turn is None:
            self._turn = loop.call_later(_LATER, self.settle)
        faults.point("agent.keeping.put")

    def settle(self) -> None:
        """Keep now what is waiting to be kept."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        waiting, self._waiting = self._waiting, {}
        for keep in waiting.values():
            keep()
        faults.point("agent.keeping.stored")
        self._vestibule.clear()
        if any(key.exec for key in waiting):
            for _, named in self._porch.take(lambda key: key in waiting):
                _close(named)

    def keep(self, key: Key, named: dict[str, int], before: str) -> str:
        """Keep these in place of what was kept by the name `before`; the name, empty if refused."""
        self.drop(before)
        faults.point("agent.keeping.dropped")
        name = f"{key.exec[:12]}.x" if key.exec else f"{key.id[:12]}.{key.run}"
        if len(self._names) >= NAMES or name in self._names:
            logger.warning("%s could not be kept for the next agent", name)
            return ""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            vestibule.send(ours, key, named)
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
            _close(named)
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
                found = vestibule.peek(kept)
            except (OSError, Unreadable) as exc:
                logger.warning("%s was kept and can't be read: %s", name, exc)
                return
        if found is not None:
            self._found[found[0]] = name, found[1]

    def _settle_left(self, key: Key, named: dict[str, int]) -> None:
        """It came after what is stored by this name, or is the same."""
        name, before = self._found.pop(key, ("", {}))
        _close(before)
        self._found[key] = self.keep(key, named, name), named


def _close(named: dict[str, int]) -> None:
    for descriptor in named.values():
        os.close(descriptor)

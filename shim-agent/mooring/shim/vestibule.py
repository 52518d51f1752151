"""What has come and is not with the process manager yet, in case the agent is killed at once.

Descriptors that a shim hands over are sent, before anything else is done with them, into a socket
of the agent's own whose other end is stored for as long as the agent lives. That wakes nobody: the
output that came with them goes first. They are taken out once each is stored by its own name. A
hello is sent on as it came: to find out whose it is would take ten times as long.

Execs are handed over through the *porch*, the same for shims to use: each is given the inlet with
the request, and leaves there what the exec is made of before it executes anything.
"""

from __future__ import annotations

import array
import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

logger = logging.getLogger(__name__)

NAME, PORCH = "vestibule", "porch"
_PACKET_BYTES = 64 << 10
_ANCILLARY_BYTES = socket.CMSG_SPACE(16 * 4)
_SO_PEEK_OFF = 42


Ancillary = list[tuple[int, int, bytes]]
"""What recvmsg(2) gives beside the bytes."""


class Stores(Protocol):
    """What keeps descriptors for us; see keeping.Keeper."""

    def store(self, name: str, descriptor: int, *, poll: bool = True) -> None: ...


class Key(NamedTuple):
    """A run of a container, or (exec not empty) an exec of one."""

    id: str
    run: int
    exec: str = ""


class Unreadable(Exception):
    """A packet of another form than this version's."""


class Vestibule:
    """Where descriptors are until they are stored."""

    def __init__(self, keeper: Stores, name: str = NAME) -> None:
        kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
        self._inlet, self._outlet = socket.socketpair(socket.AF_UNIX, kind)
        self._inside = 0
        # Not to be polled: with this agent it hangs up, and is what the next one looks for.
        keeper.store(name, self._outlet.fileno(), poll=False)

    def put(self, key: Key, named: dict[str, int]) -> bool:
        """Have the next agent find these; False if there is no room: store them at once."""
        try:
            send(self._inlet, key, named)
        except OSError:
            return False
        self._inside += 1
        return True

    def put_hello(self, packet: memoryview, ancillary: Ancillary) -> None:
        """The same for a shim's hello; `put` follows, and says whether there is room."""
        with contextlib.suppress(OSError):
            self._inlet.sendmsg([packet], ancillary)
            self._inside += 1

    def clear(self) -> None:
        """All is stored that was put in."""
        for _ in range(self._inside):
            # Without room for what is with it the kernel lets go of that.
            self._outlet.recv(1)
        self._inside = 0

    @property
    def inlet(self) -> int:
        """For others to put something in as well."""
        return self._inlet.fileno()

    def take(self, wanted: Callable[[Key], bool]) -> list[tuple[Key, dict[str, int]]]:
        """Take out what is wanted of what others have put in."""
        found: list[tuple[Key, dict[str, int]]] = []
        rest: list[tuple[Key, dict[str, int]]] = []
        with contextlib.suppress(OSError):
            while True:
                try:
                    each = receive(self._outlet)
                except Unreadable as exc:
                    logger.warning("what a shim has left is lost: %s", exc)
                    continue
                if each is None:
                    break
                (found if wanted(each[0]) else rest).append(each)
        for key, named in rest:
            with contextlib.suppress(OSError):
                send(self._inlet, key, named)
            for descriptor in named.values():
                os.close(descriptor)
        return found

    def close(self) -> None:
        """For this agent; what is still inside is for the next one."""
        self._inlet.close()
        self._outlet.close()


def left(descriptor: int) -> Iterator[tuple[Key, dict[str, int]]]:
    """What an agent before this one has left in its vestibule, in the order in which it came.

    It stays there: this agent may be killed as well before it has stored it.
    """
    with socket.socket(fileno=descriptor) as outlet:
        # With that, each look is at the packet after the one before.
        outlet.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
        while True:
            try:
                found = peek(outlet)
            except OSError:
                return  # There is no more.
            except Unreadable as exc:
                logger.warning("what the agent before this one was handed is lost: %s", exc)
                continue
            if found is None:
                return
            yield found


def send(to: socket.socket, key: Key, named: dict[str, int]) -> None:
    """Send descriptors, and what they are. OSError."""
    packet = json.dumps([*key, *named], separators=(",", ":")).encode()
    socket.send_fds(to, [packet], list(named.values()))


def peek(sock: socket.socket) -> tuple[Key, dict[str, int]] | None:
    """What `send` sent or a shim said, not taken out; None at the end. OSError, Unreadable."""
    return receive(sock, socket.MSG_PEEK)


def receive(sock: socket.socket, more: int = 0) -> tuple[Key, dict[str, int]] | None:
    """The same, taken out."""
    # Not socket.recv_fds: that of Python 3.11 forgets the flags, and takes it out.
    flags = more | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    data, ancillary, _, _ = sock.recvmsg(_PACKET_BYTES, _ANCILLARY_BYTES, flags)
    if not data:
        return None
    numbers = array.array("i")
    for _, _, rights in ancillary:
        numbers.frombytes(rights)
    try:
        said = json.loads(data)
        if isinstance(said, dict):
            id_, run, exec_, names = said["id"], said["run"], "", said["names"]
        else:
            id_, run, exec_, *names = said
        return Key(id_, run, exec_), dict(zip(names, numbers, strict=True))
    except (KeyError, ValueError, TypeError) as exc:
        for number in numbers:
            os.close(number)
        raise Unreadable(f"{exc}: {data[:200]!r}") from exc

"""Bytes on their way into a stdin, each written once though shims are killed under them.

    record: moving `count` bytes of a session, to its offset `end`    killed: the pipe is empty,
    write(pipe)                                                           nothing was written;
                                                                          or it has all of them
    record: at rest at `end`                                          killed: what the pipe still
    splice(pipe -> stdin)                                                 has goes on from there

The pipe is empty before each write, and what is written is less than it holds. The agent has a
duplicate of it; the record is a file of slots, one to a session.
"""

from __future__ import annotations

import os
from fcntl import ioctl
from struct import Struct

FIONREAD = 0x541B
STEP = 64 << 10
"""Bytes at a time: what an empty pipe holds at least."""
_SLOT = Struct("<QIB107s")
"""Offset reached, how many of it are moving, length of the session's name, the name; 120 bytes."""
_SLOTS = 16


class Staging:
    """The pipe and the record of one stdin. `fds`: the pipe of a shim that is no more."""

    __slots__ = ("_file", "_slots", "_turn", "reading", "sessions", "writing")

    def __init__(self, path: str, fds: dict[str, int]) -> None:
        self.sessions: dict[str, int] = {}
        """How much of each session was written before."""
        self._slots: list[str] = []
        self._turn = 0
        if "stage_out" in fds:
            self.reading, self.writing = fds["stage_out"], fds["stage_in"]
        else:
            self.reading, self.writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        content = os.read(self._file, _SLOT.size * _SLOTS)
        for at in range(0, len(content) - _SLOT.size + 1, _SLOT.size):
            end, moving, length, name = _SLOT.unpack_from(content, at)
            session = name[:length].decode()
            self._slots.append(session)
            self.sessions[session] = end if self.held() else end - moving
            if moving:
                self._note(session, self.sessions[session], 0)

    def descriptors(self) -> dict[str, int]:
        """What a successor needs."""
        return {"stage_out": self.reading, "stage_in": self.writing}

    def held(self) -> int:
        """Bytes that are in the pipe."""
        number = bytearray(4)
        ioctl(self.reading, FIONREAD, number)
        return int.from_bytes(number, "little")

    def put(self, session: str, have: int, data: memoryview) -> int:
        """Take bytes of a session, behind the `have` that were written; returns how many."""
        size = min(len(data), STEP)
        self._note(session, have + size, size)
        written = os.write(self.writing, data[:size])
        self._note(session, have + written, 0)
        return written

    def move(self, fd: int) -> bool:
        """Move all that it has to `fd`; False if there is no room. OSError."""
        left = self.held()
        while left:
            try:
                left -= os.splice(self.reading, fd, left, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                return False
        return True

    def close(self) -> None:
        """Nothing more is to be written."""
        for fd in (self.reading, self.writing, self._file):
            os.close(fd)

    def _note(self, session: str, end: int, moving: int) -> None:
        if session not in self._slots:
            if len(self._slots) < _SLOTS:
                self._slots.append(session)
            else:
                self._slots[self._turn] = session
                self._turn = (self._turn + 1) % _SLOTS
        slot = self._slots.index(session)
        name = session.encode()[:107]
        os.pwrite(self._file, _SLOT.pack(end, moving, len(name), name), slot * _SLOT.size)

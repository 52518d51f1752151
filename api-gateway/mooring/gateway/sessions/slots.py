"""The records of the sessions, in shared memory that the process manager keeps for us.

A slot is one session: what it is (written once) and two states, of output and of input. A state is
kept twice, and one byte says which copy counts: a process killed in the middle of a change leaves
the state before it.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

SLOT = 8192
"""Bytes of one session."""
SLOTS = 2048
"""Sessions at a time; what comes beyond them ends with this process, like everything used to."""
DESCRIPTION = 6144
"""Bytes that say what a session is."""
STATE = 200
"""Bytes of one state of whoever uses the session."""

_VERSION = 1
_HEAD = struct.Struct("<BBHI")
"""What uses it (written last; 0: nothing), version, nothing, length of the description."""
_COPY = struct.Struct("<BBHI")
"""Phase, nothing, length of the state, count of the bytes that are on their way."""
_OUT, _IN = 512, 1024
_TEXT = 2048


AT_REST, MOVING, EMPTYING = range(3)
SESSION, ERRAND = 1, 2


@dataclass(frozen=True, slots=True)
class State:
    """One state; unless at rest, `value` holds only when `count` bytes more were moved."""

    value: bytes = b""
    phase: int = AT_REST
    count: int = 0


class Half:
    """The state of one direction of one session."""

    __slots__ = ("_at", "_memory")

    def __init__(self, memory: mmap.mmap, at: int) -> None:
        self._memory = memory
        self._at = at

    def set(self, state: State) -> None:
        """Replace the state; it is the old one or the new one at any instant."""
        memory, at = self._memory, self._at
        other = 1 - memory[at]
        start = at + 8 + other * 240
        _COPY.pack_into(memory, start, state.phase, 0, len(state.value), state.count)
        begin = start + _COPY.size
        memory[begin : begin + len(state.value)] = state.value
        memory[at] = other

    def get(self) -> State:
        """The state that counts."""
        return self._copy(self._memory[self._at] & 1)

    def before(self) -> State:
        """The state before the last change."""
        return self._copy(1 - (self._memory[self._at] & 1))

    def _copy(self, which: int) -> State:
        start = self._at + 8 + which * 240
        phase, _, length, count = _COPY.unpack_from(self._memory, start)
        begin = start + _COPY.size
        return State(bytes(self._memory[begin : begin + min(length, STATE)]), phase, count)


class Slots:
    """All slots; `descriptor` is the memory to be kept."""

    def __init__(self, descriptor: int = -1) -> None:
        if descriptor < 0:
            descriptor = os.memfd_create("mooring-sessions", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, SLOT * SLOTS)
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, SLOT * SLOTS)
        used = set(self.used())
        self._free = [number for number in reversed(range(SLOTS)) if number not in used]

    def take(self, description: bytes) -> int | None:
        """A free slot for a session, not in use yet; None if there is none or it does not fit."""
        if not self._free or len(description) > DESCRIPTION:
            return None
        number = self._free.pop()
        at = number * SLOT
        for half in (self.output(number), self.input(number)):
            half.set(State())
        self._memory[at + _TEXT : at + _TEXT + len(description)] = description
        _HEAD.pack_into(self._memory, at, 0, _VERSION, 0, len(description))
        return number

    def use(self, number: int, kind: int = SESSION) -> None:
        """From now on the session, or errand, counts."""
        self._memory[number * SLOT] = kind

    def kind(self, number: int) -> int:
        """What a used slot is of."""
        return self._memory[number * SLOT]

    def free(self, number: int) -> None:
        """The session is over."""
        self._memory[number * SLOT] = 0
        self._free.append(number)

    def used(self) -> Iterator[int]:
        """The slots of sessions that count."""
        return (number for number in self._touched() if self._memory[number * SLOT])

    def _touched(self) -> Iterator[int]:
        """The slots that were ever used: to read the others would give each a page of its own."""
        at = 0
        while at < SLOT * SLOTS:
            try:
                at = os.lseek(self.descriptor, at, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno != errno.ENXIO:
                    raise
                return  # There is nothing but a hole from here on.
            number = at // SLOT
            yield number
            at = (number + 1) * SLOT

    def description(self, number: int) -> bytes:
        """What a session is; b"" if another version of this program wrote it."""
        at = number * SLOT
        _, version, _, length = _HEAD.unpack_from(self._memory, at)
        if version != _VERSION:
            return b""
        return bytes(self._memory[at + _TEXT : at + _TEXT + min(length, DESCRIPTION)])

    def output(self, number: int) -> Half:
        """How far the output is."""
        return Half(self._memory, number * SLOT + _OUT)

    def input(self, number: int) -> Half:
        """How far the input is."""
        return Half(self._memory, number * SLOT + _IN)

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()
        os.close(self.descriptor)

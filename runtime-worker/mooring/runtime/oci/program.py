"""System calls in a row, as values: what a process that runs `machine` is to do."""

from __future__ import annotations

import os
from struct import Struct

from . import machine
from .linux import failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    Argument: TypeAlias = "int | bytes | Cell | Array | Block"

_X86_64 = {
    "write": 1, "close": 3, "read": 0, "ioctl": 16, "socket": 41, "fchdir": 81, "chdir": 80,
    "umask": 95, "setsid": 112, "setgroups": 116, "setresuid": 117, "setresgid": 119,
    "capset": 126, "pivot_root": 155, "prctl": 157, "umount2": 166, "sethostname": 170,
    "setdomainname": 171, "keyctl": 250, "openat": 257, "mkdirat": 258, "mknodat": 259,
    "fchown": 93, "symlinkat": 266, "unshare": 272, "dup3": 292, "prlimit64": 302, "setns": 308,
    "seccomp": 317, "execve": 59, "rt_sigaction": 13, "rt_sigprocmask": 14, "sendmsg": 46,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432,
    "clone3": 435, "close_range": 436, "openat2": 437, "mount_setattr": 442,
}  # fmt: skip
# asm-generic/unistd.h. From 424 on the numbers are the same everywhere.
_GENERIC = {
    "write": 64, "close": 57, "read": 63, "ioctl": 29, "socket": 198, "fchdir": 50, "chdir": 49,
    "umask": 166, "setsid": 157, "setgroups": 159, "setresuid": 147, "setresgid": 149,
    "capset": 91, "pivot_root": 41, "prctl": 167, "umount2": 39, "sethostname": 161,
    "setdomainname": 162, "keyctl": 219, "openat": 56, "mkdirat": 34, "mknodat": 33,
    "fchown": 55, "symlinkat": 36, "unshare": 97, "dup3": 24, "prlimit64": 261, "setns": 268,
    "seccomp": 277, "execve": 221, "rt_sigaction": 134, "rt_sigprocmask": 135, "sendmsg": 211,
    **{name: number for name, number in _X86_64.items() if number >= 424},
}  # fmt: skip
NUMBERS = {"x86_64": _X86_64, "aarch64": _GENERIC}
"""Of system calls by name, by processor."""
CALLS = NUMBERS.get(os.uname().machine, {})
TRY, CHILD, WAIT = 0x100, 0x200, 0x400
"""Whatever comes of it; only who gets 0 goes on; 0 is the end."""
_CALL = Struct("<2I7Q")
"""Number, flags, six arguments, and where the result goes."""
_OP = _CALL.size
_END = b"\xff" * 4 + bytes(60)


class Cell:
    """A 32-bit place in the machine's memory: a descriptor that it will have."""

    __slots__ = ("address",)

    def __init__(self, address: int) -> None:
        self.address = address


class Array:
    """Memory with addresses in it: bytes stay, other bytes objects become pointers to them."""

    __slots__ = ("parts",)

    def __init__(self, parts: Sequence[bytes | int]) -> None:
        """parts: 64-bit words; bytes are kept elsewhere and their address stands here."""
        self.parts = parts


class Block:
    """Bytes of the program's own that stay one piece, for results to be put into them."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class Field:
    """A 32-bit place in a block: a descriptor that a structure has to name."""

    __slots__ = ("block", "offset")

    def __init__(self, block: Block, offset: int) -> None:
        """offset: in bytes."""
        self.block = block
        self.offset = offset


def received(number: int) -> Cell:
    """A descriptor that came with the program."""
    return Cell(machine.RECEIVED + 4 * number)


def slot(number: int) -> Cell:
    """A place that outlasts the program."""
    return Cell(machine.SLOTS + 8 * number)


class Program:
    """Collects system calls; `build` makes the packet of them."""

    __slots__ = ("_calls", "_data", "_known", "_size")

    def __init__(self) -> None:
        self._calls: list[tuple[int, int, tuple[Argument, ...], Cell | Field | None]] = []
        self._data: list[bytes] = []
        self._known: dict[bytes | Block, int] = {}
        self._size = 0

    def call(
        self,
        name: str,
        *arguments: Argument,
        result: Cell | Field | None = None,
        flags: int = 0,
    ) -> None:
        """One call. flags: TRY, CHILD or WAIT; without any, a failure ends it all."""
        self._calls.append((CALLS[name], flags, arguments, result))

    def build(self) -> bytes:
        """The packet; ValueError if it is too long for the machine."""
        base = machine.MEMORY + _OP * (len(self._calls) + 1)
        code = []
        for number, flags, arguments, result in self._calls:
            words = [0, 0, 0, 0, 0, 0]
            for at, argument in enumerate(arguments):
                if type(argument) is int:
                    words[at] = argument & 0xFFFFFFFFFFFFFFFF
                elif type(argument) is Cell:
                    words[at] = argument.address
                    flags |= 1 << at
                else:
                    words[at] = base + self._put(argument, base)
            where = 0
            if type(result) is Cell:
                where = result.address
            elif type(result) is Field:
                where = base + self._put(result.block, base) + result.offset
            code.append(_CALL.pack(number, flags, *words, where))
        packet = b"".join([*code, _END, *self._data])
        if len(packet) > machine.PROGRAM_BYTES:
            raise ValueError("the program is too long")
        return packet

    def explain(self, report: bytes) -> OSError:
        """The failure that the machine reports, as an OSError that names the call."""
        number = int.from_bytes(report[4:8], "little")
        at = int.from_bytes(report[8:12], "little") // _OP
        names = {number: name for name, number in CALLS.items()}
        name = names[self._calls[at][0]] if at < len(self._calls) else "?"
        words = [a for a in self._calls[at][2] if type(a) is bytes] if name != "?" else []
        return failed(name, b" ".join(words)[:200], number)

    def _put(self, value: Argument, base: int) -> int:
        if type(value) is bytes or type(value) is Block:
            known = self._known.get(value)
            if known is None:
                data = value + b"\0" if isinstance(value, bytes) else value.data
                known = self._known[value] = self._append(data)
            return known
        assert type(value) is Array
        words = []
        for part in value.parts:
            word = part if type(part) is int else base + self._put(part, base)
            words.append(word.to_bytes(8, "little"))
        return self._append(b"".join(words))

    def _append(self, data: bytes) -> int:
        at = self._size
        data += bytes(-len(data) % 8)
        self._data.append(data)
        self._size += len(data)
        return at

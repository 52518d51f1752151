"""Runs a classic BPF program on a system call as the kernel does."""

from __future__ import annotations

import struct

_JUMPS = {0x15: int.__eq__, 0x25: int.__gt__, 0x35: int.__ge__}


def run(
    program: bytes, number: int, arguments: tuple[int, ...] = (), architecture: int = 0xC000003E
) -> int:
    """The filter's result, a SECCOMP_RET_* value; ends with an exception for a bad program."""
    values = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number, architecture, 0, *values)
    accumulator, position = 0, 0
    while True:
        code, true, false, value = struct.unpack_from("=HBBI", program, 8 * position)
        position += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x54:
            accumulator &= value
        elif code == 0x05:
            position += value
        else:
            position += true if _JUMPS[code](accumulator, value) else false

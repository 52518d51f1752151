"""A program of a few hundred bytes that makes the system calls it is told to, and nothing else.

A process that is to become a container makes some hundred system calls first. As a fork of a Python
interpreter it copies a thousand pages to make them; as this, it has ten pages in all. What it
shall do is decided in Python, by who has time for it (program.py), and arrives as one packet on
descriptor 3. `machine.S` is the source; a test assembles it again.
"""

from __future__ import annotations

import fcntl
import os

MEMORY = 0x10000000
"""Where a packet arrives, and its addresses count from."""
PROGRAM_BYTES = 0x40000
RECEIVED = MEMORY + 0x40000 + 16
"""The descriptors of the last packet: 32 bits each, the first after the head of its cmsg."""
SLOTS = MEMORY + 0x41100
"""Room for results that later programs use: 32 bits each, 8 bytes apart."""
MOST_DESCRIPTORS = 253
NAME = "mooring-init"
FAILED = b"E"
GAVE_UP = 249
"""Its exit code when it was left alone, or could not go on."""
LINK = f"/memfd:{NAME} (deleted)"
"""What /proc/<pid>/exe says of it, until it has executed what it was made for."""

_CODE = bytes.fromhex(
    "bf03000000be0010041048c746104010041048c746180100000048c746200000041048c746284004"
    "000048c746400000001048c7464800000400ba00000040b82f0000000f054885c00f8ead000000bb"
    "000000108b0383f8ff74a58b4b04488b7b08f6c101740348633f488b7310f6c1027403486336488b"
    "5318f6c10474034863124c8b5320f6c10874034d63124c8b4328f6c11074034d63004c8b4b30f6c1"
    "2074034d63090f05488b4b384885c9740289018b4b044883c340f6c5017595f6c5027544f6c50475"
    "53483d00f0ffff7683f7d8be50100410c706450000008946044881eb40000010895e08bf03000000"
    "ba0c000000b8010000000f05bff9000000b8e70000000f054885c00f8443ffffff78be31ffb8e700"
    "00000f054885c00f8f2fffffffebd5"
)
_TEXT = 0x400000
_MEMORY_BYTES = 0x43000
_MFD_CLOEXEC, _MFD_ALLOW_SEALING, _MFD_EXEC = 1, 2, 16
_F_ADD_SEALS, _SEALS = 1033, 15


def code() -> bytes:
    """The machine code, as assembled from machine.S."""
    return _CODE


def available() -> bool:
    """Whether this processor is the one that it was written for."""
    return os.uname().machine == "x86_64"


def image() -> bytes:
    """The ELF executable: a segment to run, and one of zeros."""
    head = bytearray(64 + 2 * 56)
    head[:20] = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x3e\x00"
    numbers = ((20, 4, 1), (24, 8, _TEXT + len(head)), (32, 8, 64), (52, 2, 64), (54, 2, 56))
    for at, size, value in (*numbers, (56, 2, 2)):
        head[at : at + size] = value.to_bytes(size, "little")
    size = len(head) + len(_CODE)
    read_execute, read_write, load = 5, 6, 1
    text = (load | read_execute << 32, 0, _TEXT, _TEXT, size, size, 4096)
    zeros = (load | read_write << 32, 0, MEMORY, MEMORY, 0, _MEMORY_BYTES, 4096)
    for number, segment in enumerate((text, zeros)):
        at = 64 + number * 56
        head[at : at + 56] = b"".join(value.to_bytes(8, "little") for value in segment)
    return bytes(head) + _CODE


def executable() -> int:
    """A descriptor of it in memory, which nobody can write to any more; OSError."""
    flags = _MFD_CLOEXEC | _MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create(NAME, flags | _MFD_EXEC)
    except OSError:
        fd = os.memfd_create(NAME, flags)  # Linux before 6.3 takes them all for executable.
    os.write(fd, image())
    fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
    return fd

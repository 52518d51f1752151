"""A program of a few hundred bytes that makes the system calls it is told to, and nothing else.

A process that is to become a container makes some hundred system calls first. As a fork of a Python
interpreter it copies a thousand pages to make them; as this, it has ten pages in all. What it
shall do is decided in Python, by who has time for it (program.py), and arrives as one packet on
descriptor 3. `machine.S` and `machine-aarch64.S` are the sources; a test assembles them again.
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
NAME = "mooring-init"
FAILED = b"E"
LINK = f"/memfd:{NAME} (deleted)"
"""What /proc/<pid>/exe says of it, until it has executed what it was made for."""

_CODES = {
    "x86_64": bytes.fromhex(
        "bf03000000be0010041048c746104010041048c746180100000048c746200000041048c746284004"
        "000048c746400000001048c7464800000400ba00000040b82f0000000f054885c00f8ead000000bb"
        "000000108b0383f8ff74a58b4b04488b7b08f6c101740348633f488b7310f6c1027403486336488b"
        "5318f6c10474034863124c8b5320f6c10874034d63124c8b4328f6c11074034d63004c8b4b30f6c1"
        "2074034d63090f05488b4b384885c9740289018b4b044883c340f6c5017595f6c5027544f6c50475"
        "53483d00f0ffff7683f7d8be50100410c706450000008946044881eb40000010895e08bf03000000"
        "ba0c000000b8010000000f05bff9000000b8e70000000f054885c00f8443ffffff78be31ffb8e700"
        "00000f054885c00f8f2fffffffebd5"
    ),
    "aarch64": bytes.fromhex(
        "9400a2d2950640911300a2d2a90201912a0080d2a92a01a90a8880d2b42a02a98a00a0d2b32a04a9"
        "600080d2e10315aa0200a8d2881a80d2010000d41f0000f12d050054682640291f050031e0fdff54"
        "608640a9628e41a9649642a949000036000080b949000836210080b949001036420080b949001836"
        "630080b949002036840080b949002836a50080b9010000d46a1e40f94a0000b4400100b973020191"
        "29fd473769024837c90250371f0440b1a9fcff54aa088052eb03004baa2e0a290a00a2526a020a4b"
        "4a010151aa5a00b9600080d2a1420191820180d2080880d2010000d4201f80d2c80b80d2010000d4"
        "a0faffb400feffb7000080d2fbffff171f0000f10cfaff54f7ffff17"
    ),
}
_ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
_TEXT = 0x400000
_MEMORY_BYTES = 0x43000
_MFD_CLOEXEC, _MFD_ALLOW_SEALING, _MFD_EXEC = 1, 2, 16
_F_ADD_SEALS, _SEALS = 1033, 15


def code(architecture: str) -> bytes:
    """The machine code, as assembled from its source."""
    return _CODES[architecture]


def available() -> bool:
    """Whether this processor is one that it was written for."""
    return os.uname().machine in _CODES


def image(architecture: str = "") -> bytes:
    """The ELF executable, of this host's processor: a segment to run, and one of zeros."""
    architecture = architecture or os.uname().machine
    instructions = _CODES[architecture]
    head = bytearray(64 + 2 * 56)
    head[:18] = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00"
    numbers = (
        (18, 2, _ELF_MACHINES[architecture]),
        (20, 4, 1),
        (24, 8, _TEXT + len(head)),
        (32, 8, 64),
        (52, 2, 64),
        (54, 2, 56),
    )
    for at, size, value in (*numbers, (56, 2, 2)):
        head[at : at + size] = value.to_bytes(size, "little")
    size = len(head) + len(instructions)
    read_execute, read_write, load = 5, 6, 1
    text = (load | read_execute << 32, 0, _TEXT, _TEXT, size, size, 4096)
    zeros = (load | read_write << 32, 0, MEMORY, MEMORY, 0, _MEMORY_BYTES, 4096)
    for number, segment in enumerate((text, zeros)):
        at = 64 + number * 56
        head[at : at + 56] = b"".join(value.to_bytes(8, "little") for value in segment)
    return bytes(head) + instructions


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

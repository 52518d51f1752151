"""Device rules on cgroup v2: a BPF program that the kernel asks at every mknod and open.

The program walks the rules from the last to the first, and the first that matches decides: so a
later rule wins over an earlier one, as with v1's devices.allow and devices.deny. What matches
none is refused. (On v1 a partial denial only takes from what was allowed before; a list that
begins with a denial of everything, as every engine writes it, means the same on both.)
"""

from __future__ import annotations

import ctypes
import os

from .errors import OciError, because
from .linux import bpf
from .template import DEVICE_RULES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BPF_PROG_LOAD, _BPF_PROG_ATTACH, _BPF_PROG_DETACH, _BPF_PROG_GET_FD_BY_ID = 5, 8, 9, 13
_BPF_PROG_QUERY = 16
_PROG_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE = 15, 6
_ALLOW_MULTI = 2

# struct bpf_cgroup_dev_ctx: u32 access_type (access << 16 | type), u32 major, u32 minor.
_KINDS = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}
_EVERYTHING = 7

# Registers 2..5 hold type, access, major and minor; 6 is scratch.
_TYPE, _ACCESSES, _MAJOR, _MINOR, _SCRATCH = 2, 3, 4, 5, 6


def _instruction(code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """struct bpf_insn, little-endian: u8 code, u8 registers, s16 offset, s32 immediate."""
    return (
        bytes((code, to | source << 4))
        + offset.to_bytes(2, "little", signed=True)
        + (value & 0xFFFFFFFF).to_bytes(4, "little")
    )


def _load(to: int, offset: int) -> bytes:
    return _instruction(0x61, to, 1, offset)  # LDX | MEM | W, from the context in r1


def _answer(allow: bool) -> bytes:
    return _instruction(0xB7, 0, value=int(allow)) + _instruction(0x95)  # r0 = allow; exit


def assemble(rules: list[dict[str, Any]]) -> bytes:
    """The program for a list of linux.resources.devices, 8 bytes to an instruction."""
    program = [
        _load(_TYPE, 0),
        _instruction(0x54, _TYPE, value=0xFFFF),  # and, 32 bit
        _load(_ACCESSES, 0),
        _instruction(0x74, _ACCESSES, value=16),  # shift right, 32 bit
        _load(_MAJOR, 4),
        _load(_MINOR, 8),
    ]
    for rule in reversed(rules):
        tests = _tests(rule)
        program += _rule(tests, bool(rule.get("allow")))
        if not tests:
            break  # whatever came before this rule can't matter
    else:
        program.append(_answer(False))
    return b"".join(program)


def _tests(rule: dict[str, Any]) -> list[tuple[int, int, int]]:
    """(jump code, register, value) of every way in which the rule can fail to match."""
    kind = rule.get("type") or "a"
    tests = []
    if kind != "a":
        if kind not in _KINDS:
            raise OciError(f"unknown device type {kind} in linux.resources.devices")
        tests.append((0x55, _TYPE, _KINDS[kind]))  # jump if not equal
    for register, key in ((_MAJOR, "major"), (_MINOR, "minor")):
        value = rule.get(key)
        if value is not None and value >= 0:
            tests.append((0x55, register, value))
    access = sum({_ACCESS[letter] for letter in rule.get("access") or "rwm"})
    if access != _EVERYTHING:
        # Allowed only if all that is asked for is named; denied if any of it is.
        tests.append((-1 if rule.get("allow") else -2, _ACCESSES, access))
    return tests


def _rule(tests: list[tuple[int, int, int]], allow: bool) -> list[bytes]:
    """Its tests, each jumping behind the rule if it fails, and its answer."""
    pieces: list[list[tuple[int, int, int, int]]] = []
    for code, register, value in tests:
        if code >= 0:
            pieces.append([(code, register, 0, value)])
        else:
            keep = ~value & _EVERYTHING if code == -1 else value
            test = 0x55 if code == -1 else 0x15  # anything beyond it; nothing of it
            pieces.append(
                [(0xBF, _SCRATCH, register, 0), (0x54, _SCRATCH, 0, keep), (test, _SCRATCH, 0, 0)]
            )
    flat = [instruction for piece in pieces for instruction in piece]
    end = len(flat) + 2  # the answer is two instructions
    result = []
    for at, (code, register, source, value) in enumerate(flat):
        jump = end - at - 1 if code in (0x55, 0x15) else 0
        result.append(_instruction(code, register, source, jump, value))
    return [*result, _answer(allow)]


class _Load(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("instructions", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log", ctypes.c_uint64),
        ("kernel_version", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    ]


class _Attach(ctypes.Structure):
    _fields_ = [
        ("target", ctypes.c_uint32),
        ("program", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    ]


class _Query(ctypes.Structure):
    _fields_ = [
        ("target", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("ids", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("_pad", ctypes.c_uint32),
    ]


class _ById(ctypes.Structure):
    _fields_ = [("id", ctypes.c_uint32), ("next", ctypes.c_uint32), ("flags", ctypes.c_uint32)]


def load(program: bytes) -> int:
    """Give a program to the kernel, which checks it; its descriptor."""
    code = ctypes.create_string_buffer(program, len(program))
    text = ctypes.create_string_buffer(b"GPL")
    attributes = _Load(
        type=_PROG_TYPE_CGROUP_DEVICE,
        count=len(program) // 8,
        instructions=ctypes.addressof(code),
        license=ctypes.addressof(text),
    )
    return bpf(_BPF_PROG_LOAD, attributes)


def limit_devices(directory: str, rules: list[dict[str, Any]]) -> None:
    """Put the rules on a v2 cgroup in place of those that were on it."""
    try:
        program = load(assemble(rules))
        cgroup = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            former = _attached(cgroup)
            # The new one first: both must agree, so at no moment is too much allowed.
            bpf(_BPF_PROG_ATTACH, _Attach(cgroup, program, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI))
            for number in former:
                _detach(cgroup, number)
        finally:
            os.close(program)
            os.close(cgroup)
    except OSError as error:
        raise because("cannot limit the devices of the container", error) from error


_usual = -1


def limit_usual_devices(directory: str) -> None:
    """Put the rules that most containers have on a v2 cgroup that has none yet.

    Their program is loaded once, and stays: to have one checked and compiled takes 0.25 ms.
    """
    global _usual
    try:
        if _usual < 0:
            _usual = load(assemble(DEVICE_RULES))
        cgroup = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            bpf(_BPF_PROG_ATTACH, _Attach(cgroup, _usual, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI))
        finally:
            os.close(cgroup)
    except OSError as error:
        raise because("cannot limit the devices of the container", error) from error


def _attached(cgroup: int) -> list[int]:
    ids = (ctypes.c_uint32 * 64)()
    query = _Query(target=cgroup, type=_ATTACH_CGROUP_DEVICE, ids=ctypes.addressof(ids), count=64)
    bpf(_BPF_PROG_QUERY, query)
    return list(ids[: query.count])


def _detach(cgroup: int, number: int) -> None:
    program = bpf(_BPF_PROG_GET_FD_BY_ID, _ById(id=number))
    try:
        bpf(_BPF_PROG_DETACH, _Attach(cgroup, program, _ATTACH_CGROUP_DEVICE, 0))
    finally:
        os.close(program)

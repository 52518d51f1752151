"""A seccomp profile as values: what becomes of which system call."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Operator(StrEnum):
    """How an argument is compared; the values are libseccomp's words without SCMP_CMP_."""

    NE = "NE"
    LT = "LT"
    LE = "LE"
    EQ = "EQ"
    GE = "GE"
    GT = "GT"
    MASKED_EQ = "MASKED_EQ"


class Condition(NamedTuple):
    """A test of one argument (64 bits). MASKED_EQ: (argument & value) == masked."""

    argument: int
    operator: Operator
    value: int
    masked: int = 0


class Rule(NamedTuple):
    """The result of a call whose arguments meet every condition. Results: SECCOMP_RET_*."""

    names: tuple[str, ...]
    result: int
    conditions: tuple[Condition, ...] = ()


class Profile(NamedTuple):
    """Rules for one host and one set of capabilities.

    Of several rules for a call one without conditions counts, else the first that is met.
    """

    default: int
    abis: tuple[str, ...]
    """Calling conventions that may be used, by the names in numbers.py."""
    rules: tuple[Rule, ...]


KILL_PROCESS = 0x80000000
KILL_THREAD = 0x00000000
TRAP = 0x00030000
TRACE = 0x7FF00000
LOG = 0x7FFC0000
ALLOW = 0x7FFF0000

EPERM = 1
ENOSYS = 38


def errno(number: int) -> int:
    """The result that makes a call fail with this errno."""
    return 0x00050000 | number & 0xFFFF

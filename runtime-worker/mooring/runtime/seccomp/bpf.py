"""From a profile to a BPF program: short, because every start of a container loads it.

The kernel runs a new filter once for each system call number there is, to learn which are always
allowed; those never run it again. So what counts is the length of the program and the depth of a
decision, and both are least for a binary search over the ranges of numbers with one result. On the
default profile this has a quarter of the instructions that a test for each call has.

A program is assembled from its end: jumps go forwards only, by at most 255 instructions.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from .model import ALLOW, ENOSYS, KILL_THREAD, LOG, Condition, Operator, Profile, Rule, errno

Resolve = Callable[[str, str], int | None]
"""The number of a system call: (ABI, name); None if that ABI has no such call."""

_LOAD, _JUMP, _JEQ, _JGT, _JGE, _AND, _RETURN = 0x20, 0x05, 0x15, 0x25, 0x35, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Offsets in struct seccomp_data."""

_AUDIT = {
    "x86_64": 0xC000003E,
    "x32": 0xC000003E,
    "x86": 0x40000003,
    "aarch64": 0xC00000B7,
    "arm": 0x40000028,
}
NO_X32 = "no x32"
"""In the place of x32 among a profile's ABIs: this kernel has none."""

_X32_BIT = 0x40000000
_END = 1 << 32
_REACH = 255


class _Segment(NamedTuple):
    """Numbers from `start` on (to the next segment's) have one outcome."""

    start: int
    outcome: int | tuple[Rule, ...]
    """A result, or the rules whose conditions decide."""


class _Instruction(NamedTuple):
    code: int
    true: int
    false: int
    value: int


def program(profile: Profile, resolve: Resolve) -> bytes:
    """The filter as an array of struct sock_filter."""
    assembler = _Assembler(profile.default)
    by_audit: dict[int, list[str]] = {}
    for abi in profile.abis:
        if abi == NO_X32:
            continue
        by_audit.setdefault(_AUDIT[abi], []).append(abi)
    following = assembler.result(KILL_THREAD)
    for audit, abis in reversed(by_audit.items()):
        body = assembler.numbers(_segments(profile, abis, resolve))
        following = assembler.branch(_JEQ, audit, body, following)
    assembler.load(_ARCHITECTURE)
    return assembler.bytes()


def _segments(profile: Profile, abis: Iterable[str], resolve: Resolve) -> list[_Segment]:
    """The whole range of numbers of one architecture, neighbours with the same outcome joined."""
    parts = {abi: _outcomes(profile.rules, abi, resolve) for abi in abis}
    if "x86_64" not in parts and "x32" not in parts:
        (outcomes,) = parts.values()
        return _fill(profile, outcomes, 0, _END)
    lower = _fill(profile, parts.get("x86_64"), 0, _X32_BIT)
    if NO_X32 in profile.abis:
        # As the kernel itself answers, and a third shorter.
        return [*lower, _Segment(_X32_BIT, errno(ENOSYS))]
    return lower + _fill(profile, parts.get("x32"), _X32_BIT, _END)


def _fill(
    profile: Profile,
    outcomes: Mapping[int, int | tuple[Rule, ...]] | None,
    start: int,
    end: int,
) -> list[_Segment]:
    if outcomes is None:
        return [_Segment(start, KILL_THREAD)]
    if not outcomes:
        return [_Segment(start, profile.default)]
    beyond = profile.default
    if profile.default not in (ALLOW, LOG):
        # Calls newer than every call that the profile knows: a program that asks for one falls
        # back on what is older if it hears that there is none, and gives up on EPERM.
        beyond = errno(ENOSYS)
    last = max(outcomes)
    segments = [_Segment(start, profile.default)] if start not in outcomes else []
    for number in sorted(outcomes):
        if not segments or segments[-1].outcome != outcomes[number]:
            segments.append(_Segment(number, outcomes[number]))
        if number < last and number + 1 not in outcomes:
            segments.append(_Segment(number + 1, profile.default))
    if last + 1 < end:
        segments.append(_Segment(last + 1, beyond))
    return segments


def _outcomes(
    rules: Sequence[Rule], abi: str, resolve: Resolve
) -> dict[int, int | tuple[Rule, ...]]:
    """By number: the result if it is certain, else the rules to try in their order."""
    outcomes: dict[int, int | tuple[Rule, ...]] = {}
    for rule in rules:
        for name in rule.names:
            number = resolve(abi, name)
            if number is None:
                continue
            known = outcomes.get(number, ())
            if isinstance(known, tuple):
                # Without the name: calls with the same tests share the code for them.
                nameless = Rule((), rule.result, rule.conditions)
                outcomes[number] = (*known, nameless) if rule.conditions else rule.result
    return outcomes


class _Assembler:
    """Emits instructions from the last to the first. A position counts from the end."""

    def __init__(self, default: int) -> None:
        self._code: list[_Instruction] = []
        self._default = default
        self._known: dict[object, int] = {}

    def bytes(self) -> bytes:
        """The program in the order it is run."""
        return b"".join(struct.pack("=HBBI", *i) for i in reversed(self._code))

    def numbers(self, segments: Sequence[_Segment]) -> int:
        """A binary search for the segment that the call's number is in."""
        root = self._search(segments)
        if self._distance(root):
            self._emit(_JUMP, 0, 0, self._distance(root))
        return self.load(_NUMBER)

    def _search(self, segments: Sequence[_Segment]) -> int:
        if len(segments) == 1:
            return self._outcome(segments[0].outcome)
        middle = len(segments) // 2
        above = self._search(segments[middle:])
        below = self._search(segments[:middle])
        return self.branch(_JGE, segments[middle].start, above, below)

    def _outcome(self, outcome: int | tuple[Rule, ...]) -> int:
        if isinstance(outcome, int):
            return self.result(outcome)
        if (known := self._reachable(outcome)) is not None:
            return known
        following = self.result(self._default)
        for rule in reversed(outcome):
            following = self._rule(rule, following)
        self._known[outcome] = following
        return following

    def _rule(self, rule: Rule, otherwise: int) -> int:
        met = self.result(rule.result)
        for condition in reversed(rule.conditions):
            met = self._condition(condition, met, otherwise)
        return met

    def _condition(self, condition: Condition, met: int, unmet: int) -> int:
        """A test of 64 bits in two halves, the upper first."""
        index, operator, value, masked = condition
        match operator:
            case Operator.NE:
                return self._compare(index, Operator.EQ, value, unmet, met)
            case Operator.LT:
                return self._compare(index, Operator.GE, value, unmet, met)
            case Operator.LE:
                return self._compare(index, Operator.GT, value, unmet, met)
            case Operator.MASKED_EQ:
                return self._masked(index, value, masked, met, unmet)
            case _:
                return self._compare(index, operator, value, met, unmet)

    def _compare(self, index: int, operator: Operator, value: int, met: int, unmet: int) -> int:
        low, high = value & 0xFFFFFFFF, value >> 32
        code = {Operator.EQ: _JEQ, Operator.GE: _JGE, Operator.GT: _JGT}[operator]
        self.branch(code, low, met, unmet)
        lower = self.load(_low(index))
        following = self.branch(_JEQ, high, lower, unmet)
        if operator is not Operator.EQ:
            self.branch(_JGT, high, met, following)
        return self.load(_high(index))

    def _masked(self, index: int, mask: int, value: int, met: int, unmet: int) -> int:
        self.branch(_JEQ, value & 0xFFFFFFFF, met, unmet)
        self._emit(_AND, 0, 0, mask & 0xFFFFFFFF)
        lower = self.load(_low(index))
        if not mask >> 32 and not value >> 32:
            return lower
        self.branch(_JEQ, value >> 32, lower, unmet)
        self._emit(_AND, 0, 0, mask >> 32)
        return self.load(_high(index))

    def result(self, value: int) -> int:
        """Return from the filter; one instruction serves whoever is near enough."""
        if (known := self._reachable(value)) is not None:
            return known
        self._known[value] = self._emit(_RETURN, 0, 0, value)
        return self._known[value]

    def load(self, offset: int) -> int:
        """Load 32 bits of the call's data."""
        return self._emit(_LOAD, 0, 0, offset)

    def branch(self, code: int, value: int, true: int, false: int) -> int:
        """Compare, and go on at one of two positions."""
        for far in sorted({true, false}, key=self._distance):
            # Each instruction in between takes the targets one further away.
            if self._distance(far) > _REACH - 2:
                near = self._emit(_JUMP, 0, 0, self._distance(far))
                true = near if true == far else true
                false = near if false == far else false
        return self._emit(code, self._distance(true), self._distance(false), value)

    def _reachable(self, key: object) -> int | None:
        known = self._known.get(key)
        return known if known is not None and self._distance(known) < _REACH // 2 else None

    def _distance(self, position: int) -> int:
        """How many instructions a jump emitted now would skip to get there."""
        return len(self._code) - position - 1

    def _emit(self, code: int, true: int, false: int, value: int) -> int:
        self._code.append(_Instruction(code, true, false, value))
        return len(self._code) - 1


def _low(index: int) -> int:
    return _ARGUMENTS + 8 * index


def _high(index: int) -> int:
    return _ARGUMENTS + 8 * index + 4

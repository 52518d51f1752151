"""Programs decide as their profiles say."""

from __future__ import annotations

import itertools
import random

import pyseccomp
import pytest

from mooring.runtime.seccomp import bpf, numbers
from mooring.runtime.seccomp.model import (
    ALLOW,
    ENOSYS,
    EPERM,
    KILL_THREAD,
    Condition,
    Operator,
    Profile,
    Rule,
    errno,
)

from .simulator import run

X86 = 0x40000003
DENIED = errno(EPERM)
INTERESTING = (0, 1, 5, 7, 0xFFFFFFFF, 1 << 32, (1 << 32) + 5, (5 << 32) + 5, (1 << 64) - 1)


def _numbered(abi: str, name: str) -> int | None:
    return int(name)


def _program(*rules: Rule, default: int = DENIED, abis: tuple[str, ...] = ("x86_64",)) -> bytes:
    return bpf.program(Profile(default, abis, rules), _numbered)


def _holds(operator: Operator, argument: int, value: int, masked: int) -> bool:
    match operator:
        case Operator.NE:
            return argument != value
        case Operator.LT:
            return argument < value
        case Operator.LE:
            return argument <= value
        case Operator.EQ:
            return argument == value
        case Operator.GE:
            return argument >= value
        case Operator.GT:
            return argument > value
        case Operator.MASKED_EQ:
            return argument & value == masked


@pytest.mark.parametrize("operator", Operator)
def test_an_argument_is_compared_in_all_its_bits(operator: Operator) -> None:
    for value, masked in itertools.product(INTERESTING, INTERESTING):
        condition = Condition(2, operator, value, masked)
        program = _program(Rule(("7",), ALLOW, (condition,)))
        for argument in INTERESTING:
            expected = ALLOW if _holds(operator, argument, value, masked) else DENIED
            assert run(program, 7, (0, 0, argument)) == expected, (condition, argument)


def test_every_condition_of_a_rule_has_to_hold() -> None:
    conditions = (Condition(0, Operator.EQ, 1), Condition(1, Operator.GT, 5))
    program = _program(Rule(("7",), ALLOW, conditions))
    assert run(program, 7, (1, 6)) == ALLOW
    assert run(program, 7, (1, 5)) == DENIED
    assert run(program, 7, (2, 6)) == DENIED


def test_the_first_rule_that_is_met_counts_and_one_without_conditions_before_all() -> None:
    special = Rule(("7",), errno(5), (Condition(0, Operator.EQ, 1),))
    broad = Rule(("7",), ALLOW, (Condition(0, Operator.GE, 1),))
    program = _program(special, broad)
    assert [run(program, 7, (n,)) for n in (0, 1, 2)] == [DENIED, errno(5), ALLOW]
    program = _program(special, broad, Rule(("7",), errno(9)))
    assert run(program, 7, (1,)) == errno(9)


def test_a_call_newer_than_the_profile_does_not_exist() -> None:
    program = _program(Rule(("7", "9"), ALLOW))
    results = [run(program, n) for n in (6, 7, 8, 9, 10, 500)]
    assert results == [DENIED, ALLOW, DENIED, ALLOW, errno(ENOSYS), errno(ENOSYS)]


def test_a_profile_that_allows_by_default_allows_what_is_new() -> None:
    program = _program(Rule(("7",), DENIED), default=ALLOW)
    assert [run(program, n) for n in (6, 7, 500)] == [ALLOW, DENIED, ALLOW]
    assert run(_program(default=ALLOW), 3) == ALLOW


def test_another_architecture_kills() -> None:
    program = _program(Rule(("7",), ALLOW))
    assert run(program, 7, architecture=X86) == KILL_THREAD
    assert run(program, 0x40000007) == KILL_THREAD


def test_a_kernel_without_x32_says_so_itself() -> None:
    program = _program(Rule(("7",), ALLOW), abis=("x86_64", bpf.NO_X32))
    assert run(program, 0x40000007) == errno(ENOSYS)
    assert run(program, 7) == ALLOW


def test_a_program_with_far_jumps_still_decides_right() -> None:
    """Hundreds of single calls with results and conditions of their own: no sharing, no ranges."""
    randomly = random.Random(1)
    expected = {n: errno(n % 4000 + 1) for n in randomly.sample(range(2000), 900)}
    rules = [Rule((str(n),), result) for n, result in expected.items()]
    conditional = [n for n in range(2000) if n not in expected][:300]
    rules += [Rule((str(n),), ALLOW, (Condition(1, Operator.EQ, n),)) for n in conditional]
    program = _program(*rules)
    for number in range(max(expected)):
        if number in conditional:
            assert run(program, number, (0, number)) == ALLOW
            assert run(program, number, (0, number + 1)) == DENIED
        else:
            assert run(program, number) == expected.get(number, DENIED)


@pytest.mark.parametrize("abi", ["x86_64", "x86", "x32", "aarch64", "arm"])
def test_the_numbers_of_new_calls_agree_with_libseccomp_where_it_knows_them(abi: str) -> None:
    names = [*numbers._EVERYWHERE, *numbers._OF_ONE.get(abi, {})]
    for name in names:
        number = numbers.resolve(abi, name)
        known = pyseccomp.resolve_syscall(numbers._ARCHITECTURES[abi], name)
        assert number is not None and (known < 0 or known == number), name


def test_calls_of_other_architectures_have_no_number() -> None:
    assert numbers.resolve("x86_64", "socketcall") is None
    assert numbers.resolve("x86_64", "no such call") is None
    assert numbers.resolve("x86", "socket") == 359
    assert numbers.resolve("x32", "statmount") == 0x40000000 + 457

"""Quotes, escapes and variables in the arguments of instructions."""

from __future__ import annotations

import pytest

from mooring.runtime.build.dockerfile.errors import StepError
from mooring.runtime.build.dockerfile.words import expand, expand_words


def test_a_word_does_not_grow_beyond_bounds() -> None:
    value = "x"
    with pytest.raises(StepError, match="the variables of one word are longer than"):
        for _ in range(64):
            value = expand("$A$A", {"A": value})


VARIABLES = {"A": "one", "EMPTY": "", "S": "x y", "B": "${A}"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("plain", "plain"),
        ("$A", "one"),
        ("${A}", "one"),
        ("a$A-b", "aone-b"),
        ("$NOPE", ""),
        ("\\$A", "$A"),
        ("'$A'", "$A"),
        ('"$A b"', "one b"),
        ('"\\$A"', "$A"),
        ('"a\\nb"', "a\\nb"),
        ("a\\ b", "a b"),
        ("'a\\b'", "a\\b"),
        ("${A:-x}", "one"),
        ("${NOPE:-x}", "x"),
        ("${EMPTY:-x}", "x"),
        ("${EMPTY-x}", ""),
        ("${NOPE-x}", "x"),
        ("${A:+x}", "x"),
        ("${EMPTY:+x}", ""),
        ("${EMPTY+x}", "x"),
        ("${NOPE:+x}", ""),
        ("${NOPE:-$A}", "one"),
        ("${NOPE:-${EMPTY:-$A}b}", "oneb"),
        ("${NOPE:-'a b'}", "a b"),
        # What a variable holds is not looked at again.
        ("$B", "${A}"),
        ("$", "$"),
        ("a$", "a$"),
        ("$1x", "x"),
        ("", ""),
    ],
)
def test_a_word_is_expanded(word: str, expected: str) -> None:
    assert expand(word, VARIABLES) == expected


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ('"a', "unexpected end of statement while looking for matching double-quote"),
        ("'a", "unexpected end of statement while looking for matching single-quote"),
        ("${a", "missing ':' in substitution"),
        ("${NOPE?gone}", "NOPE: gone"),
        ("${EMPTY:?gone}", "EMPTY: gone"),
        ("${a:=b}", "unsupported modifier (:=) in substitution"),
        ("${", "syntax error: missing '}'"),
        ("${}", "syntax error: bad substitution"),
        ("${a:-b", "syntax error: missing '}'"),
        ("${a:-" * 200, "substitutions are nested too deeply"),
    ],
)
def test_what_cannot_be_expanded_is_named(word: str, message: str) -> None:
    with pytest.raises(StepError) as failure:
        expand(word, VARIABLES)
    assert str(failure.value).startswith('failed to process "')
    assert str(failure.value).endswith(message)


def test_another_escape_character_leaves_the_backslash_alone() -> None:
    assert expand("`$A a\\b", VARIABLES, "`") == "$A a\\b"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a b", ["a", "b"]), ("$S z", ["x", "y", "z"]), ('"$S" z', ["x y", "z"]), ("$NOPE", [])],
)
def test_a_text_becomes_words_after_its_variables(text: str, expected: list[str]) -> None:
    assert expand_words(text, VARIABLES) == expected

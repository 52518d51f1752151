"""Wildcards of COPY, and .dockerignore."""

from __future__ import annotations

import random

import pytest

from mooring.runtime.build.patterns import BadPattern, compile_match, ignore, read_ignore


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.txt", "a.txt", True),
        ("*.txt", "d/a.txt", False),
        ("d/*", "d/a", True),
        ("?.c", "a.c", True),
        ("?.c", "ab.c", False),
        ("[a-c]x", "bx", True),
        ("[^a-c]x", "bx", False),
        ("[^a-c]x", "dx", True),
        ("[^a]x", "/x", False),
        ("a\\*b", "a*b", True),
        ("a\\*b", "axb", False),
        ("[\\]]", "]", True),
        ("a+b", "a+b", True),
        ("*", "", True),
        ("[!a]", "!", True),
    ],
)
def test_a_pattern_matches_as_gos_filepath_does(pattern: str, path: str, matches: bool) -> None:
    assert (compile_match(pattern).fullmatch(path) is not None) == matches


@pytest.mark.parametrize("pattern", ["[", "[a", "[]", "[-a]", "a\\", "[a-"])
def test_a_bad_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(BadPattern, match="syntax error in pattern"):
        compile_match(pattern)


@pytest.mark.parametrize(
    ("text", "path", "left_out"),
    [
        ("*.log", "a.log", True),
        ("*.log", "d/a.log", False),
        ("**/*.log", "d/e/a.log", True),
        ("**/*.log", "a.log", True),
        ("/a", "a", True),
        ("a/", "a", True),
        ("a", "a/b/c", True),
        ("a/b", "a", False),
        ("*\n!keep", "keep", False),
        ("*\n!keep", "other", True),
        ("*\n!d/keep", "d/keep", False),
        ("d\n!d/keep", "d/keep", False),
        ("d\n!d/keep\nd/keep", "d/keep", True),
        ("# *\n\n  b  ", "a", False),
        ("# *\n\n  b  ", "b", True),
        ("a**b", "axx/yb", True),
        ("./a/../b", "b", True),
        ("d/**", "d/e/f", True),
    ],
)
def test_a_dockerignore_leaves_out(text: str, path: str, left_out: bool) -> None:
    assert ignore(read_ignore(text)).matches(path) == left_out


def _naive(pattern: str, path: str) -> bool:
    """What a .dockerignore's pattern of letters, `*`, `**` and slashes matches, by its meaning."""
    if not pattern:
        return not path
    if pattern.startswith("**/"):
        places = [0, *(i + 1 for i, c in enumerate(path) if c == "/")]
        return any(_naive(pattern[3:], path[i:]) for i in places)
    if pattern.startswith("**"):
        return any(_naive(pattern[2:], path[i:]) for i in range(len(path) + 1))
    if pattern[0] == "*":
        end = path.find("/") if "/" in path else len(path)
        return any(_naive(pattern[1:], path[i:]) for i in range(end + 1))
    return path[:1] == pattern[0] and _naive(pattern[1:], path[1:])


def test_patterns_match_what_they_mean_however_they_are_compiled() -> None:
    chance = random.Random(7)
    parts = ["a", "b", "/", "*", "*", "**", "**/", "/**/"]
    for _ in range(2000):
        pattern = "".join(chance.choice(parts) for _ in range(chance.randint(1, 4)))
        path = "".join(chance.choice("aab/") for _ in range(chance.randint(1, 8)))
        assert bool(ignore([pattern])._rules[0][0].fullmatch(path)) == _naive(pattern, path)


@pytest.mark.parametrize("pattern", ["*a" * 30 + "*b", "**a" * 30 + "b", "**/*a/" * 10 + "b"])
def test_no_pattern_takes_a_name_for_ever(pattern: str) -> None:
    """With all ways to match tried these would take longer than there is time."""
    for path in ("a" * 4000, "a/" * 1999 + "a"):
        assert not ignore([pattern]).matches(path)
        assert compile_match(pattern).fullmatch(path) is None

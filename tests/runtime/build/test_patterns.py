"""Wildcards of COPY, and .dockerignore."""

from __future__ import annotations

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

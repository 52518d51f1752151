"""Go's path patterns (COPY's wildcards), and those of .dockerignore."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence

_WILD = frozenset("*?[")


class BadPattern(ValueError):
    """A pattern that cannot be read."""


def has_wildcards(path: str) -> bool:
    """Whether a source is a pattern; an escaped character is none."""
    i = 0
    while i < len(path):
        if path[i] == "\\":
            i += 1
        elif path[i] in _WILD:
            return True
        i += 1
    return False


def compile_match(pattern: str) -> re.Pattern[str]:
    """filepath.Match: `*` and `?` stop at slashes, `[^…]` negates; BadPattern."""
    text, i = "", 0
    while i < len(pattern):
        c = pattern[i]
        i += 1
        if c == "*":
            text += "[^/]*"
        elif c == "?":
            text += "[^/]"
        elif c == "[":
            piece, i = _class(pattern, i)
            text += piece
        elif c == "\\":
            if i >= len(pattern):
                raise BadPattern("syntax error in pattern")
            text += re.escape(pattern[i])
            i += 1
        else:
            text += re.escape(c)
    return re.compile(text, re.DOTALL)


def _class(pattern: str, i: int) -> tuple[str, int]:
    negated = pattern[i : i + 1] == "^"
    i += negated
    ranges = ""
    while True:
        if pattern[i : i + 1] == "]" and ranges:
            break
        low, i = _character(pattern, i)
        high = low
        if pattern[i : i + 1] == "-":
            high, i = _character(pattern, i + 1)
        if high < low:
            # Go accepts an empty range: it matches nothing.
            ranges += r"[^\s\S]" if not ranges else ""
            continue
        ranges += f"{re.escape(low)}-{re.escape(high)}"
    return (f"(?!/)[^{ranges}]" if negated else f"[{ranges}]"), i + 1


def _character(pattern: str, i: int) -> tuple[str, int]:
    c = pattern[i : i + 1]
    if c == "\\":
        i += 1
        c = pattern[i : i + 1]
    elif c in ("-", "]"):
        raise BadPattern("syntax error in pattern")
    if not c:
        raise BadPattern("syntax error in pattern")
    return c, i + 1


class Ignore:
    """What a .dockerignore leaves out of a context."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._rules = [_rule(pattern) for pattern in patterns]

    def matches(self, path: str) -> bool:
        """Whether a path (relative, clean) is left out, by itself or by a directory above it."""
        found = False
        parents = path.split("/")[:-1]
        above = ["/".join(parents[: n + 1]) for n in range(len(parents))]
        for pattern, negated in self._rules:
            if negated != found:
                # Would change nothing.
                continue
            if pattern.fullmatch(path) or any(pattern.fullmatch(each) for each in above):
                found = not negated
        return found


def read_ignore(text: str) -> list[str]:
    """The patterns of a .dockerignore, cleaned as Docker cleans them."""
    patterns: list[str] = []
    for line in text.removeprefix("\ufeff").split("\n"):
        if line.startswith("#"):
            continue
        pattern = line.strip()
        if not pattern:
            continue
        negated = pattern.startswith("!")
        if negated:
            pattern = pattern[1:].strip()
        if pattern:
            pattern = posixpath.normpath(pattern)
            if pattern.startswith("/") and len(pattern) > 1:
                pattern = pattern.lstrip("/")
        patterns.append("!" + pattern if negated else pattern)
    return patterns


def ignore(lines: Iterable[str]) -> Ignore:
    """From what `read_ignore` found; BadPattern."""
    return Ignore([line for line in lines if line])


def _rule(pattern: str) -> tuple[re.Pattern[str], bool]:
    negated = pattern.startswith("!")
    if negated:
        pattern = pattern[1:]
        if not pattern:
            raise BadPattern('illegal exclusion pattern: "!"')
    text, i = "", 0
    while i < len(pattern):
        c = pattern[i]
        i += 1
        if c == "*" and pattern[i : i + 1] == "*":
            i += 1
            if pattern[i : i + 1] == "/":
                i += 1
                text += "(?:.*/)?"
            elif i == len(pattern):
                text += ".*"
            else:
                text += ".*"
        elif c == "*":
            text += "[^/]*"
        elif c == "?":
            text += "[^/]"
        elif c == "[":
            piece, i = _class(pattern, i)
            text += piece
        elif c == "\\" and i < len(pattern):
            text += re.escape(pattern[i])
            i += 1
        else:
            text += re.escape(c)
    return re.compile(text, re.DOTALL), negated

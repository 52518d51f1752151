"""Go's path patterns (COPY's wildcards), and those of .dockerignore."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

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
    pieces, i = [""], 0
    while i < len(pattern):
        if pattern[i] == "*":
            pieces.append("")
            i += 1
        else:
            piece, i = _one(pattern, i)
            pieces[-1] += piece
    return re.compile(_starred(pieces, ends=True), re.DOTALL)


def _one(pattern: str, i: int) -> tuple[str, int]:
    """What matches one character, and where the pattern goes on."""
    c = pattern[i]
    i += 1
    if c == "?":
        return "[^/]", i
    if c == "[":
        return _class(pattern, i)
    if c == "\\":
        if i >= len(pattern):
            raise BadPattern("syntax error in pattern")
        return re.escape(pattern[i]), i + 1
    return re.escape(c), i


def _starred(pieces: Sequence[str], *, ends: bool) -> str:
    """Pieces with a `*` between each two; ends: the last one is at the end of the name.

    Where a piece is found first is as good as anywhere else: what follows has a `*` before it. So
    that is never taken back, and no name takes longer than its length times the pattern's.
    """
    first, rest = pieces[0], list(pieces[1:])
    last = f"[^/]*{rest.pop()}" if ends and rest else ""
    return first + "".join(f"(?>[^/]*?{piece})" for piece in rest) + last


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


class _Prefix(NamedTuple):
    """What a `**` matches, as much as possible and as little."""

    far: str
    near: str


_NOTHING, _ANYTHING = _Prefix("", ""), _Prefix(".*", ".*?")
_DIRECTORIES = _Prefix("(?:.*/)?", "(?:.*?/)??")
_ODD = 6


def _groups(pattern: str) -> tuple[list[list[str]], list[_Prefix]]:
    """What is between each two `**`, as pieces between `*`, and what is before each of these."""
    groups: list[list[str]] = [[""]]
    prefixes = [_NOTHING]
    i = 0
    while i < len(pattern):
        if pattern.startswith("**", i):
            i += 2
            prefixes.append(_DIRECTORIES if pattern.startswith("/", i) else _ANYTHING)
            i += prefixes[-1] is _DIRECTORIES
            groups.append([""])
        elif pattern[i] == "*":
            groups[-1].append("")
            i += 1
        elif pattern[i] == "\\" and i + 1 == len(pattern):
            # Docker's own reader of these files takes it for itself.
            groups[-1][-1] += re.escape("\\")
            i += 1
        else:
            piece, i = _one(pattern, i)
            groups[-1][-1] += piece
    return groups, prefixes


def _rule(pattern: str) -> tuple[re.Pattern[str], bool]:
    negated = pattern.startswith("!")
    if negated:
        pattern = pattern[1:]
        if not pattern:
            raise BadPattern('illegal exclusion pattern: "!"')
    groups, prefixes = _groups(pattern)
    text = ""
    for number, (pieces, prefix) in enumerate(zip(groups, prefixes, strict=True)):
        if number == len(groups) - 1:
            text += prefix.far + _starred(pieces, ends=True)
            break
        begins = pieces[-1].endswith("/") or (pieces == [""] and prefix is not _ANYTHING)
        if prefixes[number + 1] is _DIRECTORIES and not begins:
            # `a**/b`, which nobody means: only here the first place may not be the right one.
            if len(groups) + len(pieces) > _ODD:
                raise BadPattern("syntax error in pattern")
            text += prefix.far + "[^/]*".join(pieces)
        else:
            text += f"(?>{prefix.near}{_starred(pieces, ends=False)})"
    return re.compile(text, re.DOTALL), negated

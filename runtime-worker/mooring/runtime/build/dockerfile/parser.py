"""A Dockerfile's text as nodes: directives, comments, continuation lines, heredocs, flags."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .errors import DockerfileError

_DIRECTIVE = re.compile(r"#[ \t]*([A-Za-z][A-Za-z0-9]*)[ \t]*=[ \t]*([^ \t].*)")
_KNOWN_DIRECTIVES = frozenset({"syntax", "escape", "check"})
_HEREDOC = re.compile(r"(?<!\S)(\d*)<<(-?)([^<\s]*)")
_TAKES_HEREDOCS = frozenset({"ADD", "COPY", "RUN"})
_SPACE = " \t\v\f\r"
_LINE = 65535
"""Bytes of one line, as Docker has it."""


@dataclass(frozen=True, slots=True)
class Heredoc:
    """A document that follows its instruction. expand: its delimiter was not quoted."""

    name: str
    content: str
    expand: bool
    chomp: bool


@dataclass(frozen=True, slots=True)
class Node:
    """One instruction: its name in capitals, its flags, the rest of its (joined) line."""

    name: str
    flags: tuple[str, ...]
    rest: str
    original: str
    line: int
    heredocs: tuple[Heredoc, ...] = ()
    escape: str = "\\"


@dataclass(frozen=True, slots=True)
class Parsed:
    """A whole Dockerfile."""

    nodes: tuple[Node, ...]
    escape: str = "\\"
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class _Lines:
    """The lines still to be read."""

    lines: list[str]
    at: int = 0
    warnings: list[str] = field(default_factory=list)

    def next(self) -> str | None:
        """The next line, or None at the end."""
        if self.at >= len(self.lines):
            return None
        self.at += 1
        return self.lines[self.at - 1]


def parse(text: str) -> Parsed:
    """The instructions of a Dockerfile in their order; DockerfileError."""
    lines = _Lines([line.rstrip("\r") for line in text.removeprefix("\ufeff").split("\n")])
    if any(len(line) > _LINE for line in lines.lines):
        raise DockerfileError(f"dockerfile line greater than max allowed size of {_LINE}")
    escape = _directives(lines.lines)
    continued = re.compile(re.escape(escape) + r"[ \t]*$")
    nodes: list[Node] = []
    while (line := lines.next()) is not None:
        line = line.lstrip(_SPACE)
        if not line or line.startswith("#"):
            continue
        start = lines.at
        joined, ended = _cut(line, continued)
        joined = _continue(lines, joined, continued) if not ended else joined
        if not joined.strip():
            continue
        nodes.append(_node(joined.rstrip(), start, lines, escape))
    if not nodes:
        raise DockerfileError("failed to parse Dockerfile: file with no instructions")
    warnings = lines.warnings
    if warnings:
        warnings = [
            *warnings,
            "[WARNING]: Empty continuation lines will become errors in a future release.",
        ]
    return Parsed(tuple(nodes), escape, tuple(warnings))


def _directives(lines: list[str]) -> str:
    """The escape character that the lines at the top ask for."""
    seen: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        found = _DIRECTIVE.fullmatch(line.strip())
        if found is None or found[1].lower() not in _KNOWN_DIRECTIVES:
            break
        name = found[1].lower()
        if name in seen:
            raise DockerfileError.at(number, f"only one {name} parser directive can be used")
        seen[name] = found[2]
        if name == "escape" and found[2] not in ("\\", "`"):
            raise DockerfileError.at(
                number, f"invalid escape token '{found[2]}' does not match ` or \\"
            )
    return seen.get("escape", "\\")


def _cut(line: str, continued: re.Pattern[str]) -> tuple[str, bool]:
    """The line without the mark of its continuation, and whether it ends here."""
    found = continued.search(line)
    return (line, True) if found is None else (line[: found.start()], False)


def _continue(lines: _Lines, joined: str, continued: re.Pattern[str]) -> str:
    empty = False
    while (line := lines.next()) is not None:
        if line.lstrip(_SPACE).startswith("#"):
            continue
        if not line.strip():
            # The text ends with a newline: what follows that is no line.
            empty = empty or lines.at < len(lines.lines)
            continue
        part, ended = _cut(line, continued)
        joined += part
        if ended:
            break
    if empty:
        lines.warnings.append(f"[WARNING]: Empty continuation line found in:\n    {joined}")
    return joined


def _node(line: str, start: int, lines: _Lines, escape: str) -> Node:
    words = line.split(None, 1)
    name, rest = words[0], words[1] if len(words) > 1 else ""
    name = name.upper()
    flags, rest = _flags(rest.strip(), escape)
    heredocs: tuple[Heredoc, ...] = ()
    taker = rest.split(None, 1)[0].upper() if name == "ONBUILD" and rest else name
    if taker in _TAKES_HEREDOCS and not rest.startswith("["):
        heredocs = _heredocs(rest, lines)
    return Node(name, flags, rest, line, start, heredocs, escape)


def _flags(rest: str, escape: str) -> tuple[tuple[str, ...], str]:
    """The leading `--name=value` words, and what follows them."""
    flags: list[str] = []
    i = 0
    while rest.startswith("--", i):
        word, quote = "", ""
        while i < len(rest) and (quote or not rest[i].isspace()):
            c = rest[i]
            if c == escape and i + 1 < len(rest):
                i += 1
                word += rest[i]
            elif quote:
                quote, word = ("", word) if c == quote else (quote, word + c)
            elif c in "'\"":
                quote = c
            else:
                word += c
            i += 1
        while i < len(rest) and rest[i].isspace():
            i += 1
        if word == "--":
            break
        flags.append(word)
    return tuple(flags), rest[i:]


def _heredocs(rest: str, lines: _Lines) -> tuple[Heredoc, ...]:
    found = []
    for match in _HEREDOC.finditer(_unquoted(rest)):
        name = rest[match.start(3) : match.end(3)]
        bare = name.strip("'\"")
        if not bare or match[1] not in ("", "0"):
            continue
        found.append(_document(bare, lines, expand=bare == name, chomp=bool(match[2])))
    return tuple(found)


def _unquoted(text: str) -> str:
    """The text with what stands in quotes blanked, but for a heredoc's own delimiter."""
    out, quote = list(text), ""
    last = {c: text.rfind(c) for c in "'\""}
    odd = dict.fromkeys(last, False)
    for i, c in enumerate(text):
        if quote:
            out[i] = " "
            quote = "" if c == quote else quote
        # A quoted delimiter is kept whole.
        elif c in last and not text.endswith(("<<", "<<-"), 0, i) and not odd[c] and i < last[c]:
            quote = c
            out[i] = " "
        if c in odd:
            odd[c] = not odd[c]
    return "".join(out)


def _document(name: str, lines: _Lines, *, expand: bool, chomp: bool) -> Heredoc:
    content: list[str] = []
    begin = lines.at
    while (line := lines.next()) is not None:
        if (line.lstrip("\t") if chomp else line) == name:
            return Heredoc(name, "".join(content), expand, chomp)
        content.append((line.lstrip("\t") if chomp else line) + "\n")
    raise DockerfileError.at(begin, f"unterminated heredoc: {name}")

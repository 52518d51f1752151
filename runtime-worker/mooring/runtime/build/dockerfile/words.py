"""Quotes, escapes and `$variables` in the arguments of instructions, as Docker reads them.

This is no shell: a variable that is not set is empty, and what a variable holds is split by
EXPOSE alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from .errors import StepError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*#?!$-]", re.ASCII)
_BRACED_NAME = re.compile(r"[A-Za-z0-9_]+|[@*#?!$-]", re.ASCII)
_DEPTH = 100
_LONGEST = 1 << 20
"""Characters that a word's variables may come to: each can hold the last one twice."""


def expand(word: str, variables: Mapping[str, str], escape: str = "\\") -> str:
    """A word without its quotes and with its variables replaced; StepError."""
    return "".join(_Lexer(word, variables, escape).text(""))


def expand_words(text: str, variables: Mapping[str, str], escape: str = "\\") -> list[str]:
    """The words that come out of a text; what a variable holds outside quotes is split."""
    lexer = _Lexer(text, variables, escape)
    lexer.text("")
    return lexer.words()


class _Lexer:
    def __init__(self, word: str, variables: Mapping[str, str], escape: str) -> None:
        self._word = word
        self._variables = variables
        self._escape = escape
        self._at = 0
        self._depth = 0
        self._size = 0
        self._words: list[str] = []
        self._current: list[str] | None = None

    def words(self) -> list[str]:
        """What was read so far, as words."""
        if self._current is not None:
            self._words.append("".join(self._current))
            self._current = None
        return self._words

    def text(self, stop: str) -> list[str]:
        """Read up to one of the characters in stop, or to the end if that is empty."""
        parts: list[str] = []
        outermost = not stop
        while self._at < len(self._word):
            c = self._word[self._at]
            if c in stop:
                return parts
            quoted = True
            if c == "'":
                piece = self._single()
            elif c == '"':
                piece = self._double()
            elif c == "$":
                piece, quoted = self._dollar(), False
            elif c == self._escape:
                self._at += 2
                piece = self._word[self._at - 1 : self._at]
            else:
                self._at += 1
                piece, quoted = c, False
            parts.append(piece)
            if outermost:
                self._collect(piece, quoted=quoted)
        if stop:
            raise self._failed(f"syntax error: missing '{stop}'")
        return parts

    def _collect(self, piece: str, *, quoted: bool) -> None:
        if quoted:
            self._current = self._current or []
            self._current.append(piece)
            return
        for c in piece:
            if c.isspace():
                self.words()
            elif self._current is None:
                self._current = [c]
            else:
                self._current.append(c)

    def _single(self) -> str:
        end = self._word.find("'", self._at + 1)
        if end < 0:
            raise self._unended("single")
        text = self._word[self._at + 1 : end]
        self._at = end + 1
        return text

    def _double(self) -> str:
        self._at += 1
        parts: list[str] = []
        while self._at < len(self._word):
            c = self._word[self._at]
            if c == '"':
                self._at += 1
                return "".join(parts)
            if c == "$":
                parts.append(self._dollar())
                continue
            self._at += 1
            if c == self._escape:
                following = self._word[self._at : self._at + 1]
                if not following:
                    raise self._unended("double")
                if following in f'"${self._escape}':
                    c = following
                    self._at += 1
            parts.append(c)
        raise self._unended("double")

    def _dollar(self) -> str:
        self._at += 1
        if self._word[self._at : self._at + 1] == "{":
            self._at += 1
            return self._braces()
        found = _NAME.match(self._word, self._at)
        if found is None:
            return "$"
        self._at = found.end()
        return self._value(found[0]) or ""

    def _braces(self) -> str:
        found = _BRACED_NAME.match(self._word, self._at)
        if found is None:
            if self._at >= len(self._word):
                raise self._failed("syntax error: missing '}'")
            raise self._failed("syntax error: bad substitution")
        name = found[0]
        self._at = found.end()
        c = self._word[self._at : self._at + 1]
        if c == "}":
            self._at += 1
            return self._value(name) or ""
        colon = c == ":"
        if colon:
            self._at += 1
            c = self._word[self._at : self._at + 1]
        if c and c in "+-?":
            self._at += 1
            return self._modified(name, c, colon=colon)
        if not c:
            raise self._failed(
                "missing ':' in substitution" if not colon else "syntax error: missing '}'"
            )
        raise self._failed(f"unsupported modifier ({':' if colon else ''}{c}) in substitution")

    def _value(self, name: str) -> str | None:
        value = self._variables.get(name)
        self._size += len(value or "")
        if self._size > _LONGEST:
            raise StepError(f"the variables of one word are longer than {_LONGEST} characters")
        return value

    def _modified(self, name: str, modifier: str, *, colon: bool) -> str:
        self._depth += 1
        if self._depth > _DEPTH:
            raise self._failed("substitutions are nested too deeply")
        word = "".join(self.text("}"))
        self._depth -= 1
        self._at += 1
        value = self._value(name)
        is_set = bool(value) if colon else value is not None
        if modifier == "+":
            return word if is_set else ""
        if is_set:
            return value or ""
        if modifier == "-":
            return word
        usual = "not allowed to be empty" if colon else "is not allowed to be unset"
        raise self._failed(f"{name}: {word or usual}")

    def _unended(self, kind: str) -> StepError:
        return self._failed(f"unexpected end of statement while looking for matching {kind}-quote")

    def _failed(self, reason: str) -> StepError:
        quoted = self._word.replace("\\", "\\\\").replace('"', '\\"')
        return StepError(f'failed to process "{quoted}": {reason}')

"""Regular expressions from clients, kept from taking for ever.

Docker's have no backtracking; Python's do. What could make one run away is refused.
"""

from __future__ import annotations

import re

from mooring.kit.errors import InvalidParameter

_LONGEST = 512
_MOST_REPEATS = 3
_CLASS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]])*\]", re.DOTALL)
_NOT_RE2 = re.compile(r"\(\?[=!<>#(]|\(\?P=")


def compile_pattern(text: str, where: str) -> re.Pattern[str]:
    """The pattern; InvalidParameter if it is none, or could run away."""
    if len(text) > _LONGEST:
        raise InvalidParameter(f"invalid filter '{where}': the pattern is too long")
    # Escapes and classes aside, what is left shows the structure.
    bare = _CLASS.sub("x", text)
    repeats = len(re.findall(r"[*+]|\{\d+,", bare))
    nested = re.search(r"\)(?:[*+]|\{)", bare) is not None and len(re.findall(r"[*+{]", bare)) > 1
    back_reference = re.search(r"\\[1-9]", text) is not None
    if repeats > _MOST_REPEATS or nested or back_reference or _NOT_RE2.search(bare):
        raise InvalidParameter(f"invalid filter '{where}={text}': the pattern is too complex")
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as exc:
        raise InvalidParameter(f"invalid filter '{where}={text}': {exc}") from None

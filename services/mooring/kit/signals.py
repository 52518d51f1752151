"""Signals by name or number, as users write them: `SIGTERM`, `term`, `15`, `RTMIN+3`."""

from __future__ import annotations

from signal import Signals

from .errors import InvalidParameter

# The numbers that the kernel gives to SIGRTMIN and SIGRTMAX, less the two that glibc keeps.
_RTMIN, _RTMAX = 34, 64
_NUMBERS = {s.name.removeprefix("SIG"): int(s) for s in Signals}
_NUMBERS["RTMIN"], _NUMBERS["RTMAX"] = _RTMIN, _RTMAX


def parse(text: str) -> int:
    """The number of a signal; InvalidParameter in Docker's words for what is none."""
    name = text.strip().upper()
    # No int() alone: it would take "+9", "1_0" and digits of other scripts.
    if name.isascii() and name.isdigit():
        number = int(name)
    else:
        number = _by_name(name.removeprefix("SIG"))
    if not 1 <= number <= _RTMAX:
        raise InvalidParameter(f"Invalid signal: {text}")
    return number


def _by_name(name: str) -> int:
    if name in _NUMBERS:
        return _NUMBERS[name]
    for base, sign in (("RTMIN+", 1), ("RTMAX-", -1)):
        offset = name.removeprefix(base)
        if offset != name and offset.isascii() and offset.isdigit():
            number = _NUMBERS[base[:-1]] + sign * int(offset)
            if _RTMIN <= number <= _RTMAX:
                return number
    return 0

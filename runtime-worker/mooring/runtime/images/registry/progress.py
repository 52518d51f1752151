"""Docker's progress messages. Pure, but for the clock that keeps them few."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]
Say = Callable[[Message], None]

_INTERVAL = 0.1
"""Seconds between two messages about how far one thing is, as Docker's client expects them."""
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_WIDTH = 50


def status(text: str, id_: str = "") -> Message:
    """A line of its own; with an id it is drawn once more where that id is."""
    return {"status": text, "id": id_} if id_ else {"status": text}


def state(text: str, id_: str) -> Message:
    """What has become of one layer."""
    return {"status": text, "progressDetail": {}, "id": id_}


def amount(text: str, id_: str, current: int, total: int) -> Message:
    """How far one layer is. Bytes."""
    detail = {"current": current, "total": total} if total > 0 else {"current": current}
    return {
        "status": text,
        "progressDetail": detail,
        "progress": bar(current, total),
        "id": id_,
    }


def size(number: float) -> str:
    """Bytes as Docker writes them: four digits that count, units of a thousand."""
    unit = 0
    while number >= 1000 and unit < len(_UNITS) - 1:
        number /= 1000
        unit += 1
    return f"{number:.4g}{_UNITS[unit]}"


def bar(current: int, total: int) -> str:
    """The bar that clients without one of their own print."""
    if total <= 0:
        return f"{size(current):>8}"
    filled = min(current * _WIDTH // total, _WIDTH)
    numbers = f"{size(current):>8}" + (f"/{size(total)}" if current <= total else "")
    return f"[{'=' * filled}>{' ' * (_WIDTH - filled)}] {numbers}"


class Meter:
    """Says how far something is, ten times a second at most, and always at its end."""

    def __init__(self, say: Say, text: str, id_: str, total: int) -> None:
        self._say, self._text, self._id, self._total = say, text, id_, total
        self._last = 0.0
        self._said = -1

    def at(self, current: int) -> None:
        """So many bytes are done."""
        now = time.monotonic()
        if current != self._said and (current == self._total or now - self._last >= _INTERVAL):
            self._last, self._said = now, current
            self._say(amount(self._text, self._id, current, self._total))

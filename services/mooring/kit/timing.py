"""Step timings of one piece of work, behind Settings.timings: where do the milliseconds go?"""

from __future__ import annotations

import logging
import time

logger = logging.getLogger(__name__)

_enabled = False


def enable() -> None:
    """From now on `Steps` measure; before, they cost one comparison."""
    global _enabled
    _enabled = True


class Steps:
    """The steps of one piece of work; `done` logs microseconds for each."""

    __slots__ = ("_marks", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._marks: list[tuple[str, int]] | None = (
            [("", time.perf_counter_ns())] if _enabled else None
        )

    def mark(self, step: str) -> None:
        """The step that ends here."""
        if self._marks is not None:
            self._marks.append((step, time.perf_counter_ns()))

    def add(self, steps: dict[str, int]) -> None:
        """Steps measured elsewhere, in nanoseconds (a shim's)."""
        if self._marks is not None and steps:
            logger.info("timing %s %s", self._name, _format(list(steps.items())))

    def done(self) -> None:
        """Log every step and the whole."""
        if self._marks is None:
            return
        steps = [
            (name, at - before)
            for (_, before), (name, at) in zip(self._marks, self._marks[1:], strict=False)
        ]
        steps.append(("total", self._marks[-1][1] - self._marks[0][1]))
        logger.info("timing %s %s", self._name, _format(steps))


def _format(steps: list[tuple[str, int]]) -> str:
    return " ".join(f"{name}={ns // 1000}us" for name, ns in steps)

"""What mooring-network keeps for runs that nobody here knows any more, and its end.

It answers a release, we forget the run, and it is killed together with whoever was to take the
descriptors out of its store: the next process finds them there, and would keep them for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from mooring.kit.errors import EngineError

from .attendant import Attendant

logger = logging.getLogger(__name__)

RETRY = 5.0
"""Seconds until a service that did not answer, or did not let go, is asked again."""


class Strays:
    """Compares what is held with what is known, on each new connection to the service.

    of: `ports` or `names`. compare is given every holder; it waits for nothing, so that no run
    begins between its look and its decision.
    """

    def __init__(self, attendant: Attendant, of: str, compare: Callable[[set[str]], None]) -> None:
        self._attendant = attendant
        self._of = of
        self._compare = compare
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._again = self._closed = False
        attendant.renewed.append(self.look)

    def look(self) -> None:
        """Compare soon."""
        self._again = True
        if self._task is None and not self._closed:
            self._task = asyncio.create_task(self._look(), name=f"strays of {self._of}")

    def later(self) -> None:
        """Compare in a while: something was not let go."""
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(RETRY, self._due)

    async def settled(self) -> bool:
        """Wait for a comparison that is going on; False if there is none."""
        if self._task is None:
            return False
        await asyncio.wait({self._task})
        return True

    def close(self) -> None:
        """Compare no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _due(self) -> None:
        self._timer = None
        self.look()

    async def _look(self) -> None:
        try:
            while self._again:
                self._again = False
                self._compare(await self._attendant.holders(self._of))
        except EngineError as exc:
            logger.warning("cannot see whose %s are held: %s", self._of, exc)
            self.later()
        finally:
            self._task = None

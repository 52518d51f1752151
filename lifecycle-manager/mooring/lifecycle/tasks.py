"""Work that goes on after an answer was given."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Coroutine
from typing import Any

from mooring.kit.errors import EngineError

logger = logging.getLogger(__name__)


class Tasks:
    """Work that goes on after an answer was given. What fails in it is left to the reconciler."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, object], name: str) -> None:
        """Run it in the background."""
        task = asyncio.create_task(self._run(work, name), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, timeout: float = 2.0) -> None:
        """Wait `timeout` seconds for what is under way, then give it up."""
        await wind_up(self._tasks, timeout)

    async def _run(self, work: Coroutine[Any, Any, object], name: str) -> None:
        try:
            await work
        except EngineError as exc:
            logger.warning("%s: %s", name, exc)
        except Exception:
            logger.exception("%s failed", name)


async def wind_up(tasks: Collection[asyncio.Task[None]], timeout: float) -> None:
    """Wait `timeout` seconds for tasks, then end what is left of them."""
    if tasks:
        await asyncio.wait(tasks, timeout=timeout)
    for task in tuple(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

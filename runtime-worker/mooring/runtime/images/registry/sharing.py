"""Work that several want: done once, told to all of them, ended when nobody wants it any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from .progress import Message, Say

R = TypeVar("R")


class _Work(Generic[R]):
    """One piece of work, its listeners, and what they were told last."""

    def __init__(self) -> None:
        self.task: asyncio.Task[R]
        self.listeners: list[Say] = []
        self.last: Message | None = None

    def say(self, message: Message) -> None:
        self.last = message
        for listener in self.listeners:
            listener(message)


class Shared(Generic[R]):
    """Work by key."""

    def __init__(self) -> None:
        self._works: dict[str, _Work[R]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._works

    @asynccontextmanager
    async def join(
        self, key: str, begin: Callable[[Say], Awaitable[R]], listener: Say
    ) -> AsyncIterator[asyncio.Task[R]]:
        """The task that does it, begun if nobody has; cancelled when the last one has left."""
        work = self._works.get(key)
        if work is None:
            work = self._works[key] = _Work()

            async def run() -> R:
                return await begin(work.say)

            work.task = asyncio.create_task(run(), name=key)
        elif work.last is not None:
            listener(work.last)
        work.listeners.append(listener)
        try:
            yield work.task
        finally:
            work.listeners.remove(listener)
            if not work.listeners:
                if self._works.get(key) is work:
                    del self._works[key]
                work.task.cancel()
                await asyncio.gather(work.task, return_exceptions=True)

"""The agent's background work: tasks with an owner, called off when the agent ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class Work:
    """A task group whose tasks are cancelled at its end; one that fails ends the group.

    Cancelled they lose nothing: whatever they were about is found on disk by the next agent.
    """

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ending = False

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ending = True
        for task in tuple(self._tasks):
            task.cancel()
        await self._group.__aexit__(kind, error, traceback)

    def start(self, coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T] | None:
        """Run something in the background; None once the group is ending."""
        if self._ending:
            coroutine.close()
            return None
        task = self._group.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

"""One piece of work at a time for each container."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable


class KeyedLocks:
    """A lock for each key that is in use; nothing is kept of the others."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        self.clear: Callable[[str], Awaitable[None]] | None = None
        """Done first by whoever holds a key, but for starts: what was made early goes."""

    @contextlib.asynccontextmanager
    async def hold(self, key: str, *, starting: bool = False) -> AsyncIterator[None]:
        """Wait for the key, in order of arrival. starting: to go on with what was made early."""
        lock, users = self._locks.get(key, (None, 0))
        if lock is None:
            lock = asyncio.Lock()
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                if self.clear is not None and not starting:
                    await self.clear(key)
                yield
        finally:
            lock, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, users - 1)

    def busy(self, key: str) -> bool:
        """Whether somebody holds the key."""
        return key in self._locks

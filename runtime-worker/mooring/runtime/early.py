"""Runs that are made before their start is asked for: a created container is usually started.

A client that creates a container attaches to it, and then starts it. Meanwhile its first run is
made, all but the execution of its program. What nobody starts is taken back after a moment, as it
is before anything else is done with that container.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from mooring.kit import ports
from mooring.kit.models.container import ContainerRecord
from mooring.kit.models.host import HostStart

from .locks import KeyedLocks
from .network import plan
from .sandbox import kind

PAUSE = 0.0025
"""Seconds after which a run is made: what a client asks next, to attach, comes before."""
KEPT = 2.0
"""Seconds that a run waits for its start."""
MOST = 16
"""Runs that wait at a time."""
MISSES = 3
"""So many in a row that nobody has started: none are made then, until one would have been used."""
_RELEVANT = ("name", "image_id", "path", "args", "config", "host_config", "networking",
             "disconnected", "mounts")  # fmt: skip


class Made(Protocol):
    """What was made of a run for this request."""

    @property
    def request(self) -> HostStart: ...


Early_co = TypeVar("Early_co", bound=Made)


def worthwhile(record: ContainerRecord) -> bool:
    """Whether a run of this container takes nothing that others could miss, or could change.

    Not volumes and binds, whose files may be changed until the start, nor ports and networks of
    the user's, nor anything of another container's.
    """
    host, config = record.host_config, record.config
    if record.mounts or host.links or config.tty or ports.wanted(config, host):
        return False
    if any(mode.startswith("container:") for mode in (host.ipc_mode, host.pid_mode)):
        return False
    if host.ipc_mode == "shareable":
        return False
    match kind(record):
        case "none":
            return True
        case "bridge":
            return plan.is_plain(plan.wishes(record))
    return False


def same(one: HostStart, other: HostStart) -> bool:
    """Whether two requests ask for the same run of the same container."""
    return one.run == other.run and all(
        getattr(one.record, field) == getattr(other.record, field) for field in _RELEVANT
    )


class Early(Generic[Early_co]):
    """The runs that wait for their start, by container. Used by whoever holds its lock."""

    def __init__(self, locks: KeyedLocks, undo: Callable[[Early_co], Awaitable[None]]) -> None:
        self._locks = locks
        self._undo = undo
        self._waiting: dict[str, tuple[Early_co, asyncio.TimerHandle]] = {}
        self._expiring: set[asyncio.Task[None]] = set()
        self._misses = 0
        locks.clear = self.drop

    def wanted(self, record: ContainerRecord) -> bool:
        """Whether to make a run of a container that was created just now."""
        room = len(self._waiting) < MOST
        return room and self._misses < MISSES and worthwhile(record)

    def add(self, made: Early_co) -> None:
        """A run waits from now on."""
        key = made.request.record.id
        timer = asyncio.get_running_loop().call_later(KEPT, self._expire, key)
        self._waiting[key] = (made, timer)

    async def take(self, request: HostStart) -> Early_co | None:
        """What was made for this very start; anything else that was made goes."""
        key = request.record.id
        made, timer = self._waiting.get(key, (None, None))
        if made is None or timer is None:
            if time.time_ns() - request.record.created_ns < KEPT * 1e9:
                self._misses = 0
            return None
        if not same(made.request, request):
            await self.drop(key)
            return None
        timer.cancel()
        del self._waiting[key]
        self._misses = 0
        return made

    async def drop(self, key: str) -> None:
        """Take back what waits of a container."""
        made, timer = self._waiting.pop(key, (None, None))
        if made is not None and timer is not None:
            timer.cancel()
            self._misses += 1
            await self._undo(made)

    async def close(self) -> None:
        """Take everything back."""
        for key in list(self._waiting):
            async with self._locks.hold(key):
                pass
        await asyncio.gather(*self._expiring, return_exceptions=True)

    def _expire(self, key: str) -> None:
        task = asyncio.create_task(self._take_back(key), name="early run")
        self._expiring.add(task)
        task.add_done_callback(self._expiring.discard)

    async def _take_back(self, key: str) -> None:
        async with self._locks.hold(key):
            pass

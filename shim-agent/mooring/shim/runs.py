"""What this agent knows of the host's containers: a view of run directories and live shims.

Nothing here is the only copy of anything. A container's entry is made when something about it is
first seen or asked for, and dropped when nobody waits for it and nothing of it runs.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from mooring.kit.errors import Conflict, NotFound, Unavailable

from .channel import Channel
from .keeping import Keeping
from .rundir import ExitRecord, ShimRecord

if TYPE_CHECKING:
    from .restarts import Restart

KEPT_CONTAINERS = 1000
"""How many containers of which nothing runs are remembered."""


class Pinnable(Protocol):
    """A stream of a log that may be deleted under it."""

    name: str
    """Of a reader that the log is kept for; empty if it is not."""
    needed: int
    """The offset it is kept from."""

    def pin(self) -> None:
        """Keep what there is readable without the log's directory."""
        ...


class Signal:
    """Wakes everyone who waits at the moment that it fires; remembers nothing."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    def __bool__(self) -> bool:
        return bool(self._waiters)

    def fire(self) -> None:
        """Wake all who wait now."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self) -> None:
        """Until the next `fire`."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            raise


class Watch:
    """Notices that a log has grown, by arming the shim's one-shot `watch_log`."""

    __slots__ = ("_armed", "_exec", "_grown", "_run", "end")

    def __init__(self, run: Run, exec_id: str = "") -> None:
        self._run = run
        self._exec = exec_id
        self._grown = Signal()
        self._armed = -1
        self.end = 0
        """As far as the shim said that the log reaches."""

    async def beyond(self, offset: int) -> None:
        """Until the log may have grown beyond its end `offset`, or the run's state changed.

        To be called in the same step in which that end was seen: then the shim, asked after the
        offset of whoever came first, also tells in time for all who come while it is armed.
        """
        channel = self._run.channel
        if self._armed < 0 and channel is not None:
            self._armed = offset
            if self._exec:
                channel.tell("watch_log", after=offset, exec=self._exec)
            else:
                channel.tell("watch_log", after=offset)
        await self._grown.wait()

    def fire(self, end: int = 0) -> None:
        """The log has grown to `end`, or whoever waits had better look again."""
        self._armed = -1
        if end > self.end:
            self.end = end
        self._grown.fire()


class Exec:
    """One exec of a run, from the moment it is started or waited for."""

    __slots__ = (
        "error",
        "exit_code",
        "finished",
        "held",
        "kept",
        "pid",
        "published",
        "read",
        "readers",
        "started",
        "stdin_closed",
        "watch",
    )

    def __init__(self, run: Run, id_: str) -> None:
        self.pid = 0
        self.started = False
        self.finished = False
        self.exit_code: int | None = None
        self.error = ""
        self.published = False
        self.readers = 0
        """Streams of its output that are open."""
        self.read = False
        """Its output was read to the end, or nobody ever will."""
        self.held: dict[str, int] = {}
        """Duplicates of what its shim holds of it, by name; see held.py."""
        self.kept = ""
        """The name that the process manager has them by as well."""
        self.stdin_closed = False
        self.watch = Watch(run, id_)


class Run:
    """One run of a container: live while its shim or its init lives, then its exit record."""

    __slots__ = (
        "channel",
        "container",
        "directory",
        "ended_execs",
        "execs",
        "exit",
        "handover",
        "held",
        "keeping",
        "kept",
        "number",
        "orphans",
        "paused",
        "pidfd",
        "pressed",
        "process",
        "published",
        "record",
        "recovering",
        "sources",
        "stdin_closed",
        "watch",
    )

    def __init__(self, container: Container, number: int, directory: str, keeping: Keeping) -> None:
        self.container = container
        self.keeping = keeping
        self.number = number
        self.directory = directory
        self.record: ShimRecord | None = None
        self.channel: Channel | None = None
        self.exit: ExitRecord | None = None
        self.published = False
        """The exit fact is in the stream."""
        self.paused = False
        self.recovering = False
        """A connection to its shim, or another shim, is being looked for."""
        self.handover = False
        """Its shim is being replaced: what is asked of it waits for the next one."""
        self.pressed = False
        """Its shim wants to know of the readers that the log is kept for."""
        self.pidfd = -1
        """Of init, while there is no exit record: the kernel's word should the shim be killed."""
        self.held: dict[str, int] = {}
        """Duplicates of what its shim holds, by name; see held.py."""
        self.kept = ""
        """The name that the process manager has them by as well."""
        self.stdin_closed = False
        self.execs: dict[str, Exec] = {}
        self.process: dict[str, Any] | None = None
        """That of its config.json, once an exec has needed it: it never changes."""
        self.ended_execs: deque[str] = deque(maxlen=256)
        """Of which nothing is left to read."""
        self.sources: set[Pinnable] = set()
        """Open streams of its execs."""
        self.orphans: set[str] = set()
        """Execs whose shim was killed and whose end is being waited for."""
        self.watch = Watch(self)

    @property
    def live(self) -> bool:
        """It has begun and there is no exit record."""
        return self.exit is None

    def ask(self) -> Channel:
        """The connection to its shim; Unavailable while the shim is away."""
        if self.channel is None or not self.channel.open:
            raise Unavailable(f"the shim of container {self.container.id} does not answer")
        return self.channel

    async def reach(self, timeout: float = 10.0) -> Channel:
        """Like `ask`, but wait for a shim that is being connected to (again)."""
        try:
            async with asyncio.timeout(timeout):
                while self.live and not self._reachable():
                    await self.container.changed.wait()
        except TimeoutError:
            pass
        if not self.live:
            raise Conflict(f"container {self.container.id} is not running")
        return self.ask()

    def _reachable(self) -> bool:
        return self.channel is not None and self.channel.open and not self.handover

    def exec(self, id_: str) -> Exec:
        """The entry of an exec, made if it is new."""
        found = self.execs.get(id_)
        if found is None:
            found = self.execs[id_] = Exec(self, id_)
        return found

    def changed(self) -> None:
        """Wake everyone who waits for anything of this run."""
        self.container.changed.fire()
        self.watch.fire()
        for entry in self.execs.values():
            entry.watch.fire()


class Container:
    """A container of this host: its runs in order, and who waits for a change."""

    __slots__ = ("changed", "forgotten", "id", "restart", "runs", "sources", "users")

    def __init__(self, id_: str) -> None:
        self.id = id_
        self.runs: dict[int, Run] = {}
        self.changed = Signal()
        self.restart: Restart | None = None
        """The restart by policy that is pending, if any."""
        self.users = 0
        """Open streams and commands under way: the entry stays."""
        self.sources: set[Pinnable] = set()
        """Open streams of its log."""
        self.forgotten = False

    @property
    def latest(self) -> Run | None:
        """The run that began last."""
        return self.runs[max(self.runs)] if self.runs else None

    @property
    def latest_number(self) -> int:
        """The number of the run that began last; 0 before the first."""
        return max(self.runs, default=0)

    @property
    def live(self) -> Run | None:
        """The run that goes on, if one does."""
        run = self.latest
        return run if run is not None and run.live else None

    @property
    def idle(self) -> bool:
        """Nothing of it runs, is awaited or is still to be told to anyone."""
        return (
            not self.users
            and not self.changed
            and self.restart is None
            and all(run.exit is not None and run.published for run in self.runs.values())
        )


class Containers:
    """All containers that anything is known of, by id; the least recently changed first."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Container] = OrderedDict()

    def __iter__(self) -> Iterator[Container]:
        return iter(tuple(self._known.values()))

    def __contains__(self, id_: str) -> bool:
        return id_ in self._known

    def get(self, id_: str) -> Container:
        """The entry of a container, made if it is new."""
        found = self._known.get(id_)
        if found is None:
            found = self._known[id_] = Container(id_)
            self._trim()
        else:
            self._known.move_to_end(id_)
        return found

    def find(self, id_: str) -> Container | None:
        """The entry of a container, if there is one."""
        return self._known.get(id_)

    def forget(self, id_: str) -> None:
        """Drop a container that was removed; its open streams end."""
        container = self._known.pop(id_, None)
        if container is not None:
            container.forgotten = True
            for source in tuple(container.sources):
                source.pin()
            container.changed.fire()
            for run in container.runs.values():
                run.changed()

    def _trim(self) -> None:
        excess = len(self._known) - KEPT_CONTAINERS
        if excess <= 0:
            return
        # Only as many as are needed are looked at: the oldest are nearly always idle.
        oldest = list(itertools.islice(self._known.items(), excess + 16))
        for id_, container in oldest:
            if excess > 0 and container.idle:
                del self._known[id_]
                excess -= 1


def running(container: Container | None, id_: str, number: int = 0) -> Run:
    """The live run of a container (run `number`, or 0 for whichever); Conflict if there is none."""
    if container is None:
        raise NotFound(f"No such container: {id_}")
    run = container.live
    if run is None or number not in (0, run.number):
        raise Conflict(f"container {id_} is not running")
    return run

"""Want of memory, told as it happens: the kernel says when it kills something in a container.

One epoll set for all containers, in the loop of the agent: nothing wakes up for a container that
has enough, and only those with a limit of their own are watched. A container that is killed at
again and again is told of once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from typing import TYPE_CHECKING

from .exits import Exits
from .runs import Run

if TYPE_CHECKING:
    from mooring.runtime.oci.cgroup import Cgroup

AGAIN_SECONDS = 1.0


class _Watch:
    """One run's cgroup. kills: how many times as far as was told."""

    __slots__ = ("cgroup", "descriptor", "kills", "run", "timer")

    def __init__(self, run: Run, cgroup: Cgroup, descriptor: int) -> None:
        self.run = run
        self.cgroup = cgroup
        self.descriptor = descriptor
        self.kills = 0
        self.timer: asyncio.TimerHandle | None = None


class Memory:
    """The runs of this host that have a memory limit."""

    def __init__(self, exits: Exits) -> None:
        self._exits = exits
        self._loop = asyncio.get_running_loop()
        self._set = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._loop.add_reader(self._set.fileno(), self._ready)
        self._watches: dict[int, _Watch] = {}
        self._of: dict[Run, _Watch] = {}

    def begin(self, run: Run) -> None:
        """A run has begun, was found again, or has got other limits."""
        # In an agent that was started alone, only what is needed is imported, and when it is.
        from mooring.runtime.oci import cgroups, errors

        if run in self._of or run.record is None or not run.record.cgroup:
            return
        cgroup = cgroups.attach(run.record.cgroup)
        try:
            descriptor = cgroup.watch_oom()
        except (OSError, errors.OciError):
            return  # It is over already, or the kernel can't tell.
        if descriptor < 0:
            return
        watch = self._watches[descriptor] = self._of[run] = _Watch(run, cgroup, descriptor)
        self._set.register(descriptor, cgroup.OOM_EVENT)
        # What happened while no agent looked; whoever knows of it already is not told twice.
        self._tell(watch, 0)

    def end(self, run: Run) -> None:
        """A run is over."""
        watch = self._of.pop(run, None)
        if watch is None:
            return
        if watch.timer is not None:
            watch.timer.cancel()
        del self._watches[watch.descriptor]
        os.close(watch.descriptor)

    def close(self) -> None:
        """Watch no more."""
        for run in list(self._of):
            self.end(run)
        if not self._set.closed:
            self._loop.remove_reader(self._set.fileno())
            self._set.close()

    def _ready(self) -> None:
        for descriptor, _ in self._set.poll(0, 64):
            if (watch := self._watches.get(descriptor)) is not None:
                self._look(watch)

    def _look(self, watch: _Watch) -> None:
        with contextlib.suppress(OSError):
            self._tell(watch, watch.cgroup.take_oom(watch.descriptor))
        # For a moment the kernel's counter may be behind its word, and there may be many more.
        self._set.modify(watch.descriptor, 0)
        watch.timer = self._loop.call_later(AGAIN_SECONDS, self._rearm, watch)

    def _rearm(self, watch: _Watch) -> None:
        watch.timer = None
        with contextlib.suppress(OSError):
            self._set.modify(watch.descriptor, watch.cgroup.OOM_EVENT)

    def _tell(self, watch: _Watch, more: int) -> None:
        kills = max(watch.kills + more, watch.cgroup.oom_kills())
        if kills > watch.kills:
            watch.kills = kills
            self._exits.out_of_memory(watch.run, kills)

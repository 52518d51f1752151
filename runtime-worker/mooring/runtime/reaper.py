"""What is over is cleared away in the background; what a killed worker left is found and undone."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from . import sharedshm, trash
from .layout import Layout
from .locks import KeyedLocks
from .oci import cgroups
from .oci.errors import OciError
from .runs import ACKNOWLEDGED, Run, Runs, Stage, at_work, execs_unacknowledged
from .sandbox import Networks
from .waiting import until_gone

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

REMEMBER_REMOVED = 120.0
"""Seconds: longer than any command is sent again."""
FIRST_LOOK, LATER_LOOK = 0.1, 1.0
READERS, READERS_OF_REMOVED = 60.0, 5.0
"""Seconds that the output of execs is kept for readers after their container's end, and if it was
removed. Slow ones hold it open by then: it is for those whose agent was killed, and as with its
log, one that does not come back at once to what is removed has no claim on it."""
ROUND = 60.0
"""Seconds between looks for what nobody has released."""


class Reaper:
    """Deletes what was discarded, and run directories once nobody needs them."""

    def __init__(
        self,
        layout: Layout,
        runs: Runs,
        networks: Networks,
        locks: KeyedLocks,
        cgroup_root: str,
    ) -> None:
        self._layout = layout
        self._locks = locks
        self._runs = runs
        self._networks = networks
        self._cgroup_root = cgroup_root
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reaper")
        self._finishing: dict[tuple[str, int], float] = {}
        self._wake = asyncio.Event()
        self.on_over: list[Callable[[str], Awaitable[None]]] = []
        """Called with the holder, `<id>.<run>`, of each run that is found to be over."""
        self._emptier = trash.Emptier(layout.run_trash, layout.trash)

    # --- used by commands ---

    async def fence(self, id_: str, run: int) -> bool:
        """Take the directory of a half-made run away; False if its program runs after all.

        A shim that is still at work on it has it as its working directory: once that is
        deleted it can't write shim.json, and without that it does not execute the program. One
        that says there that it is at work is waited for: what it takes back (the log's end, a
        cgroup) has the names that the next attempt at this run will use. Who comes later finds
        no directory, or another one.
        """
        directory = self._layout.run_directory(id_, run)
        taken = f"{self._layout.run_trash}/{id_}.{run}.{os.getpid()}.{time.monotonic_ns()}"
        # Here first: a worker that is killed while it waits leaves the same to the next one.
        await until_gone(*at_work(directory))
        try:
            os.rename(directory, taken)
        except FileNotFoundError:
            return True
        while True:
            if os.path.exists(f"{taken}/shim.json"):
                os.rename(taken, directory)
                return False
            await until_gone(*at_work(taken))
            for name in os.listdir(taken):
                if name != "shim.json":
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(f"{taken}/{name}")
            try:
                os.rmdir(taken)
                return True
            except OSError as exc:
                if exc.errno != errno.ENOTEMPTY:
                    raise

    def discard(self, directory: str) -> None:
        """Have a directory of the state directory deleted in the background."""
        if trash.discard(directory, self._layout.trash):
            self._emptier.soon()

    def mark_removed(self, id_: str) -> None:
        """From now on a start of this container is one that comes too late."""
        descriptor = os.open(f"{self._layout.removed}/{id_}", os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(descriptor)

    def was_removed(self, id_: str) -> bool:
        """Whether the container was removed within the last two minutes."""
        return os.path.exists(f"{self._layout.removed}/{id_}")

    def note_released(self, id_: str, run: int) -> None:
        """A run that is over: a start of it that comes late is refused."""
        if run <= self.last_released(id_):
            return
        with open(f"{self._layout.released}/{id_}", "wb", 0) as file:
            file.write(b"%d" % run)

    def last_released(self, id_: str) -> int:
        """The last run of a container that was released, 0 for none."""
        try:
            with open(f"{self._layout.released}/{id_}", "rb", 0) as file:
                return int(file.read() or 0)
        except (FileNotFoundError, ValueError):
            return 0

    def finishing(self, id_: str, run: int) -> bool:
        """Whether a run is being cleared away already."""
        return (id_, run) in self._finishing

    def finish(self, run: Run) -> None:
        """Clear a run's directory away as soon as its shim has ended and nothing is unpublished."""
        self._finishing.setdefault((run.id, run.run), time.monotonic())
        self._wake.set()

    def unshare(self, id_: str) -> None:
        """The container's shared /dev/shm is not its own any more."""
        with contextlib.suppress(OSError):
            sharedshm.unshare(f"{self._layout.shm}/{id_}")

    async def remove_cgroup(self, path: str) -> None:
        """Remove a container's cgroup, with all in it, where its shim could not do it."""
        # Its removal goes through the hierarchies in this order: the last one tells of all.
        if path and os.path.isdir(cgroups.attach(path).directories()[-1]):
            await self.in_thread(self._remove_cgroup, path)

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what blocks in the reaper's thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: function(*args, **kwargs)
        )

    # --- in the background ---

    async def recover(self) -> None:
        """At start-up: undo or finish what an earlier worker left, before commands are taken."""
        self._runs.scan()
        live, kept = set[str](), set[str]()
        for id_, run in list(self._runs):
            holder = f"{id_}.{run}"
            found = self._runs.find(id_, run)
            if found is not None and found.stage is Stage.HALF:
                # It may be below another parent than ours (`--cgroup-parent`).
                cgroup = _cgroup_of(found.directory)
                if await self.fence(id_, run):
                    logger.info("undone: half-made run %s", holder)
                    if not self._runs.live(id_):
                        await self.remove_cgroup(cgroup)
                    found = None
            if found is None:
                self._runs.forget(id_, run)
            elif found.stage is Stage.OVER:
                if found.acknowledged:
                    self._over(found)
            else:
                live.add(holder)
            if found is not None and (found.stage is not Stage.OVER or found.shim_alive):
                kept.add(id_)
        self._networks.sweep(live)
        for id_ in os.listdir(self._layout.removed):
            self.discard(self._layout.container(id_))
        for id_ in os.listdir(self._layout.shm):
            if id_ not in kept:
                self.unshare(id_)
        await self.in_thread(self._remove_cgroups, kept)
        self._emptier.soon()

    async def run(self) -> None:
        """Work until cancelled."""
        wait = FIRST_LOOK
        next_round = time.monotonic() + ROUND
        while True:
            timeout = wait if self._finishing else max(0.1, next_round - time.monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._wake.wait()
                    self._wake.clear()
                    wait = FIRST_LOOK
                    # Its shim is ending at this moment.
                    await asyncio.sleep(wait)
            for id_, run in list(self._finishing):
                async with self._locks.hold(id_):
                    await self._try_finish(id_, run)
            wait = min(wait * 2, LATER_LOOK)
            if time.monotonic() >= next_round:
                next_round = time.monotonic() + ROUND
                self._look_around()

    async def close(self, *, last: bool) -> None:
        """Delete what is discarded; after the `last` container the cgroup of all of them, too."""
        await self._emptier.close()
        # One that systemd made is systemd's to remove.
        if last and ".slice" not in self._cgroup_root:
            await self.in_thread(self._remove_cgroup, self._cgroup_root)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    async def _try_finish(self, id_: str, run: int) -> None:
        since = self._finishing[id_, run]
        found = self._runs.find(id_, run)
        if found is not None and not self._may_go(found, time.monotonic() - since):
            return
        del self._finishing[id_, run]
        self._runs.forget(id_, run)
        for release in self.on_over:
            await release(f"{id_}.{run}")
        if found is None:
            return
        trash.discard(found.directory, self._layout.run_trash)
        if not self._runs.live(id_):
            await self.remove_cgroup(found.cgroup)
        self._emptier.soon()

    def _may_go(self, run: Run, waited: float) -> bool:
        if run.stage is Stage.LIVE or run.shim_alive:
            return False
        if not run.acknowledged and run.stage is Stage.OVER and waited < READERS:
            return False
        if execs_unacknowledged(run.directory):
            return False
        with contextlib.suppress(FileNotFoundError):
            if os.listdir(f"{run.directory}/execs"):
                return waited >= (READERS_OF_REMOVED if self.was_removed(run.id) else READERS)
        return True

    def _look_around(self) -> None:
        """Forget old removals; take up runs that are over and that nobody released."""
        limit = time.time() - REMEMBER_REMOVED
        for directory in (self._layout.removed, self._layout.released):
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.stat().st_mtime < limit:
                        os.unlink(entry.path)
        for id_, run in list(self._runs):
            if (id_, run) in self._finishing:
                continue
            if os.path.exists(f"{self._layout.run_directory(id_, run)}/{ACKNOWLEDGED}"):
                found = self._runs.find(id_, run)
                if found is not None and found.stage is Stage.OVER:
                    self._over(found)

    def _over(self, run: Run) -> None:
        self._networks.detach(f"{run.id}.{run.run}")
        self.note_released(run.id, run.run)
        self.finish(run)

    def _remove_cgroups(self, kept: set[str]) -> None:
        """The cgroups below ours that belong to no run: of warm shims and of ended containers."""
        for path in cgroups.children(self._cgroup_root):
            name = path.rpartition("/")[2]
            if name not in kept and not name.startswith(f"warm.{os.getpid()}."):
                logger.info("cgroup %s had no owner any more", path)
                self._remove_cgroup(path)

    def _remove_cgroup(self, path: str) -> None:
        try:
            if (cgroup := cgroups.attach(path)).exists():
                cgroup.remove()
        except (OciError, OSError) as exc:
            logger.warning("cannot remove cgroup %s: %s", path, exc)


def _cgroup_of(directory: str) -> str:
    """The cgroup that a bundle names; empty where it was not written yet."""
    try:
        with open(f"{directory}/config.json", "rb") as file:
            linux = json.load(file).get("linux") or {}
    except (FileNotFoundError, ValueError):
        return ""
    return str(linux.get("cgroupsPath") or "")

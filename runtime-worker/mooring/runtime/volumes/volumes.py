"""The volumes of this host: `volumes/<name>/_data`, and what their options mount there.

Beside `_data` are `options.json` of a volume that has a mount, and `fill` while one is filled.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack

from mooring.kit import faults
from mooring.kit.errors import EngineError, InvalidParameter
from mooring.kit.models.base import Done
from mooring.kit.models.container import MountPoint
from mooring.kit.models.image import ImageRecord
from mooring.kit.models.volume import (
    HostVolume,
    MeasureVolumes,
    PrepareVolumes,
    RemoveHostVolume,
    VolumeSizes,
)
from mooring.runtime.helpers import Helper
from mooring.runtime.locks import KeyedLocks
from mooring.runtime.overlay import Overlay, View

from . import filling, local
from .mounted import is_mounted

logger = logging.getLogger(__name__)

_AT_ONCE = 1000
"""Names given to one helper that measures."""


class Volumes:
    """Directories, mounts and who holds them. Each command can be sent again."""

    def __init__(
        self,
        directory: str,
        lowers: Callable[[ImageRecord], tuple[str, ...]],
        discard: Callable[[str], None],
        environment: dict[str, str],
    ) -> None:
        self._directory = directory
        self._lowers = lowers
        self._discard = discard
        self._environment = environment
        self._locks = KeyedLocks()
        self._holders: dict[str, set[str]] = {}
        """By volume with a mount of its own: the runs (`<id>.<run>`) and copies that need it."""

    def data(self, name: str) -> str:
        """Where the files of a volume are."""
        return f"{self._directory}/{name}/_data"

    # --- commands ---

    async def prepare(self, request: PrepareVolumes) -> Done:
        """Make volumes that are not there, and fill the empty ones; InvalidParameter."""
        for mount in request.mounts:
            if mount.type == "bind" and not mount.create_source:
                check_source(mount.source)
        for volume in request.volumes:
            async with self._locks.hold(volume.name):
                self._make(volume)
        wanted = [m for m in request.mounts if m.type == "volume" and not (m.nocopy or m.subpath)]
        if wanted and request.image is not None:
            await self._fill(request.image, wanted, f"fill.{request.request_id}")
        faults.point("runtime.volume.prepared")
        return Done()

    async def remove(self, request: RemoveHostVolume) -> Done:
        """Delete a volume with all that is in it; what its options mount stays where it is."""
        async with self._locks.hold(request.name):
            await asyncio.to_thread(local.unmount, self.data(request.name))
            self._holders.pop(request.name, None)
            self._discard(f"{self._directory}/{request.name}")
        faults.point("runtime.volume.removed")
        return Done()

    async def measure(self, request: MeasureVolumes) -> VolumeSizes:
        """Bytes in each volume; -1 for one with a mount of its own."""
        sizes: dict[str, int] = {}
        for start in range(0, len(request.names), _AT_ONCE):
            names = request.names[start : start + _AT_ONCE]
            async with Helper("mooring.runtime.volumes.measuring", self._environment) as helper:
                helper.send({"volumes": self._directory, "names": names})
                sizes |= (await helper.answer())["sizes"]
        return VolumeSizes(sizes=sizes)

    def _make(self, volume: HostVolume) -> None:
        directory = f"{self._directory}/{volume.name}"
        try:
            os.mkdir(directory, 0o701)
        except FileExistsError:
            pass
        if volume.options:
            new = f"{directory}/options.json.new"
            with open(new, "w") as file:
                json.dump(volume.options, file)
            os.rename(new, f"{directory}/options.json")
        try:
            os.mkdir(f"{directory}/_data", 0o755)
        except FileExistsError:
            pass

    async def _fill(self, image: ImageRecord, mounts: Sequence[MountPoint], holder: str) -> None:
        lowers = self._lowers(image)
        # What an image has nothing for needs no process that looks, and no mount.
        mounts = [mount for mount in mounts if not _lacks(lowers, mount.destination)]
        await self.acquire(holder, mounts)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.release, holder)
            for name in sorted({mount.name for mount in mounts}):
                await stack.enter_async_context(self._locks.hold(name))
            fills = [
                [m.destination, self.data(m.name), self._stage(m.name), m.anonymous]
                for m in mounts
                if os.path.lexists(self._stage(m.name)) or _is_empty(self.data(m.name))
            ]
            if fills:
                async with Helper("mooring.runtime.volumes.filling", self._environment) as helper:
                    helper.send({"lowers": lowers, "fills": fills})
                    await helper.answer()

    def _stage(self, name: str) -> str:
        """Where a copy is made: on the same file system, so that its entries can be moved."""
        data = self.data(name)
        if is_mounted(data):
            return f"{data}/.mooring-fill"
        return f"{self._directory}/{name}/fill"

    # --- used by starts and copies ---

    async def acquire(self, holder: str, mounts: Iterable[MountPoint]) -> None:
        """Have what a run mounts: directories that are there, mounted if their options say so."""
        try:
            for mount in mounts:
                if mount.type == "volume":
                    await self._acquire(holder, mount.name)
        except BaseException:
            await self.release(holder)
            raise

    async def _acquire(self, holder: str, name: str) -> None:
        data = self.data(name)
        if not os.path.isdir(data):
            raise EngineError(
                f"error while mounting volume '{data}': no such file or directory:"
                " it was deleted by something else than the engine"
            )
        if os.path.lexists(f"{self._directory}/{name}/fill"):
            async with self._locks.hold(name):
                await asyncio.to_thread(filling.finish, data, f"{self._directory}/{name}/fill")
        try:
            with open(f"{self._directory}/{name}/options.json") as file:
                wanted = local.parse(json.load(file))
        except FileNotFoundError:
            return
        if wanted is None:
            return
        async with self._locks.hold(name):
            self._holders.setdefault(name, set()).add(holder)
            if not is_mounted(data):
                await asyncio.to_thread(local.mount, wanted, data)

    async def release(self, holder: str) -> None:
        """A run or copy is over: what nobody else needs is unmounted."""
        for name in [n for n, holders in self._holders.items() if holder in holders]:
            async with self._locks.hold(name):
                holders = self._holders.get(name, set())
                holders.discard(holder)
                if not holders:
                    self._holders.pop(name, None)
                    try:
                        await asyncio.to_thread(local.unmount, self.data(name))
                    except OSError as exc:
                        logger.warning("cannot unmount volume %s: %s", name, exc)

    # --- after a restart ---

    def recover(self, live: Iterable[tuple[str, str]]) -> None:
        """live: holder and run directory of each run that goes on. The rest is unmounted."""
        for holder, directory in live:
            for name in self._mounted_by(directory):
                self._holders.setdefault(name, set()).add(holder)
        for name in os.listdir(self._directory):
            data = self.data(name)
            if name not in self._holders and is_mounted(data):
                logger.info("volume %s was mounted for nobody", name)
                local.unmount(data)

    def _mounted_by(self, run_directory: str) -> list[str]:
        try:
            with open(f"{run_directory}/config.json") as file:
                mounts = json.load(file).get("mounts") or []
        except (OSError, ValueError):
            return []
        found = []
        for mount in mounts:
            parent, _, last = str(mount.get("source") or "").rpartition("/")
            above, _, name = parent.rpartition("/")
            if last == "_data" and above == self._directory and is_mounted(self.data(name)):
                found.append(name)
        return found


def check_source(source: str) -> None:
    """InvalidParameter if the source of a `--mount type=bind` is not there."""
    if not os.path.exists(source):
        raise InvalidParameter(
            f'invalid mount config for type "bind": bind source path does not exist: {source}'
        )


def _is_empty(directory: str) -> bool:
    try:
        with os.scandir(directory) as entries:
            return next(entries, None) is None
    except FileNotFoundError:
        return False


def _lacks(lowers: Sequence[str], path: str) -> bool:
    """Whether an image surely has nothing at a path: then no process has to look."""
    with View(Overlay(tuple(lowers[1:]), lowers[0], "")) as view:
        walked = ""
        for name in path.strip("/").split("/"):
            walked = f"{walked}/{name}"
            entry = view.entry(walked)
            if entry is None:
                return True
            if stat.S_ISLNK(os.fstat(entry).st_mode):
                return False
    return False

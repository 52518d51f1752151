"""A layer of a pull: fetched, unpacked while it still comes, stored when those below are there."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mooring.runtime.images.unlayering import Unlayering, Unpacker
from mooring.runtime.images.unpack import BadArchive, Job, Limits, Reason, Unpacked

from .client import Repository
from .download import Download
from .manifests import Descriptor
from .progress import Meter, Say, state
from .sharing import Shared
from .words import TransferFault

_STEP = 512 << 10
"""Bytes that a file grows by before its unpacker is told."""
_UNSOUND = (Reason.DATA, Reason.DIGEST, Reason.DIFF_ID, Reason.SIZE)
"""Faults that a damaged beginning of the file explains as well."""

Commit = Callable[[dict[str, Any]], Awaitable[None]]
GetUnpacker = Callable[[], Awaitable[Unpacker]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A layer that is not in the store; lowers are the chain ids below, the uppermost first."""

    descriptor: Descriptor
    diff_id: str
    chain_id: str
    lowers: tuple[str, ...]

    @property
    def short(self) -> str:
        """How Docker names it in progress messages."""
        return short(self.descriptor.digest)


def short(digest: str) -> str:
    """The first twelve digits."""
    return digest.partition(":")[2][:12]


@dataclass(slots=True)
class Places:
    """The directories of one transfers process."""

    downloads: Path
    job: Path
    limits: Limits


class Layers:
    """Makes layers for all pulls of this process; each of them once."""

    def __init__(
        self, places: Places, unpacker: GetUnpacker, commit: Commit, downloads: asyncio.Semaphore
    ) -> None:
        self.made: Shared[None] = Shared()
        """By chain id."""
        self._places, self._unpacker, self._commit = places, unpacker, commit
        self._slots = downloads
        self._unpacking = asyncio.Semaphore(2 + (os.cpu_count() or 1))
        self._fetched: Shared[None] = Shared()
        self._active: dict[str, Download] = {}
        self._serial = itertools.count()

    async def make(
        self, wanted: Wanted, repository: Repository, below: asyncio.Task[None] | None, say: Say
    ) -> None:
        """Fetch, unpack and store one layer; below stores the one under it."""
        try:
            built, unpacked = await self._unpack(wanted, repository, say)
        except _DamagedBeginning:
            built, unpacked = await self._unpack(wanted, repository, say)
        if below is not None:
            await asyncio.shield(below)
        await self._commit(
            {
                "built": str(built),
                "blob": str(self._path(wanted.descriptor)),
                "chain_id": wanted.chain_id,
                "lowers": wanted.lowers,
                "unpacked": {
                    "digest": unpacked.digest,
                    "diff_id": unpacked.diff_id,
                    "size": unpacked.size,
                    "entries": unpacked.entries,
                    "blob_size": unpacked.blob_size,
                    "plain_size": unpacked.plain_size,
                    "compression": unpacked.compression.value,
                    "implied": [name.decode("latin-1") for name in unpacked.implied],
                },
            }
        )
        say(state("Pull complete", wanted.short))

    def forget(self, layers: Iterable[Descriptor]) -> None:
        """What was fetched of these is not needed any more, unless it is being fetched now."""
        for descriptor in layers:
            if descriptor.digest not in self._active:
                self._path(descriptor).unlink(missing_ok=True)

    async def _unpack(
        self, wanted: Wanted, repository: Repository, say: Say
    ) -> tuple[Path, Unpacked]:
        descriptor = wanted.descriptor
        download = self._active.get(descriptor.digest)
        if download is None or descriptor.digest not in self._fetched:
            # Nobody fetches it, or who did is just being broken off.
            download = Download(self._path(descriptor), descriptor)
            self._active[descriptor.digest] = download

        async def fetch(say: Say) -> None:
            if self._slots.locked():
                say(state("Waiting", wanted.short))
            async with self._slots:
                await download.run(repository, say, wanted.short)

        async with AsyncExitStack() as stack:
            stack.callback(self._leave, download)
            fetching = await stack.enter_async_context(
                self._fetched.join(descriptor.digest, fetch, say)
            )
            begun = asyncio.Event()
            download.watch(lambda size: begun.set())
            fetching.add_done_callback(lambda task: begun.set())
            await begun.wait()
            async with self._unpacking:
                # ext4 chooses the place of a directory by its name, see store.spread.
                name = f"layer-{next(self._serial)}-{os.urandom(6).hex()}"
                built = self._places.job / name
                job = Job(
                    blob=str(download.path),
                    target=str(built),
                    digest=descriptor.digest,
                    diff_id=wanted.diff_id,
                    size=descriptor.size,
                    max_size=self._places.limits.size,
                    max_files=self._places.limits.files,
                )
                if fetching.done():
                    fetching.result()
                unpacking = await (await self._unpacker()).unpack(job)
                try:
                    return built, await self._follow(wanted, download, fetching, unpacking, say)
                except BadArchive as exc:
                    download.forget()
                    if download.resumed and exc.reason in _UNSOUND:
                        raise _DamagedBeginning from exc
                    raise TransferFault(_words(exc, descriptor)) from exc
                finally:
                    unpacking.close()

    def _leave(self, download: Download) -> None:
        digest = download.descriptor.digest
        if digest not in self._fetched and self._active.get(digest) is download:
            del self._active[digest]

    async def _follow(
        self,
        wanted: Wanted,
        download: Download,
        fetching: asyncio.Task[None],
        unpacking: Unlayering,
        say: Say,
    ) -> Unpacked:
        """Tell the unpacker what comes, and the user how far it is."""
        told = 0
        following = True
        meter = Meter(say, "Extracting", wanted.short, wanted.descriptor.size)

        def grown(size: int) -> None:
            nonlocal told
            if following and (size - told >= _STEP or size == wanted.descriptor.size):
                told = size
                unpacking.grown(size)

        def consumed(size: int) -> None:
            if fetching.done():
                meter.at(size)

        download.watch(grown)
        result = asyncio.ensure_future(unpacking.result(consumed))
        try:
            await asyncio.wait({fetching, result}, return_when=asyncio.FIRST_COMPLETED)
            if not result.done() or fetching.done():
                await asyncio.shield(fetching)
                unpacking.end()
                say(state("Verifying Checksum", wanted.short))
                say(state("Download complete", wanted.short))
            unpacked = await result
            if not fetching.done():
                await asyncio.shield(fetching)
            meter.at(wanted.descriptor.size)
            return unpacked
        finally:
            following = False
            result.cancel()
            await asyncio.gather(result, return_exceptions=True)

    def _path(self, descriptor: Descriptor) -> Path:
        return self._places.downloads / descriptor.digest.partition(":")[2]


class _DamagedBeginning(Exception):
    """What an earlier process had fetched may be to blame: once more from the first byte."""


def _words(exc: BadArchive, descriptor: Descriptor) -> str:
    if exc.reason in (Reason.DIGEST, Reason.SIZE):
        return f"filesystem layer verification failed for digest {descriptor.digest}"
    return f"failed to register layer: {exc}"

"""The images of this host on the bus: load, import, remove.

The bytes of an upload go straight to a loader process (loader.py). Only one job at a time changes
the store: whether a layer is there, is needed, or is to be taken out is decided under one lock.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mooring.kit import references, subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.errors import EngineError, InvalidParameter, Unavailable
from mooring.kit.faults import point
from mooring.kit.models.base import Done
from mooring.kit.models.image import (
    AddImage,
    CommitContainer,
    ImageCommitted,
    ImageRecord,
    ImagesLoaded,
    ImportImage,
    LoadImages,
    RemoveLayers,
)
from mooring.kit.models.registry import TransferProgress
from mooring.kit.nats_protocol import Disconnected
from mooring.kit.streams import serve_uploads

from . import commits, platforms
from .leases import Leases
from .load import LoadedImage
from .loading import Loader, Progress
from .pending import Pending
from .records import Origin, image_record
from .registry.progress import amount
from .store import ImageStore
from .sweep import Unnamed, take_out, unnamed
from .unpack import BadArchive

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SWEEP_FIRST, _SWEEP_EVERY = 600.0, 6 * 3600.0
"""Seconds to the first look for what nobody names, and between two."""
_SWEPT = 3600.0
"""Seconds that something has to be there before it is nobody's."""
_SETTLED = 30.0
"""Seconds after which every lifecycle manager has seen an image that was added."""


class _Added(NamedTuple):
    at: float
    digests: frozenset[str]


class ImageService:
    """Loads, imports and removes images in the store of this host."""

    def __init__(self, bus: Bus, settings: Settings) -> None:
        self._bus = bus
        self._node = settings.node_id
        self._settings = settings
        self._state_dir = settings.state_dir
        self.store = ImageStore(settings.state_dir)
        self.leases = Leases()
        self._lock = asyncio.Lock()
        self._added: dict[str, _Added] = {}
        """By image id: what is known here for so short a time that others may not know it yet."""
        self._uncertain: set[Path] = set()
        """Jobs of which it is not known whether their images were recorded."""
        self._tidying: asyncio.Task[None] | None = None
        self._untidy = False
        self._sweeping: asyncio.Task[None] | None = None
        self.on_removed: list[Callable[[str], None]] = []
        """Called with the id of an image whose layers are gone."""

    async def start(self) -> None:
        """Make the directories and undo what a killed worker left half-done."""
        self.store.prepare()
        jobs = list(self.store.ingest.iterdir())
        if jobs:
            keep = await self._recorded()
            for job in jobs:
                logger.info("undoing an image job that was broken off: %s", job.name)
                await commits.thaw(self._bus, job)
                await asyncio.to_thread(self._end, job, keep)
        if await asyncio.to_thread(self.store.doubtful):
            logger.warning("the host went down over new layers, unpacking them again")
            await self._repair()
        self._tidy()
        self._sweeping = asyncio.create_task(self._sweep_now_and_then(), name="sweep images")

    async def sweep(self, age: float = _SWEPT) -> Unnamed:
        """Take out what is that many seconds old and nobody's. In doubt, nothing.

        It is in doubt while anything is under way, and when layers are here but no image is on
        record: the records of another engine, or none, are no reason to empty a store.
        """
        async with self._lock:
            if self.leases.all() or any(self.store.ingest.iterdir()):
                return Unnamed([], [])
            images = await self._bus.bucket(subjects.BUCKET_IMAGES, ImageRecord)
            if not await images.mirror():
                return Unnamed([], [])
            named = await self._recorded()

            def clean() -> Unnamed:
                found = unnamed(self.store, named, time.time() - age)
                take_out(self.store, found)
                return found

            found = await asyncio.to_thread(clean)
        self._tidy()
        return found

    async def _sweep_now_and_then(self) -> None:
        await asyncio.sleep(_SWEEP_FIRST)
        while True:
            try:
                await self.sweep()
            except (EngineError, OSError) as exc:
                logger.warning("cannot look for what no image has: %s", exc)
            await asyncio.sleep(_SWEEP_EVERY)

    async def _recorded(self) -> set[str]:
        """Chain ids and digests of blobs that images on record need."""
        images = await self._bus.bucket(subjects.BUCKET_IMAGES, ImageRecord)
        keep = set().union(*(a.digests for a in self._added.values()))
        for entry in (await images.mirror()).values():
            keep |= digests_of(entry.record)
        return keep

    # --- for transfers, which are under way for long and change the store in between ---

    async def change(self, action: Callable[[], T]) -> T:
        """Do something to the store, in a thread, while nobody else does."""
        async with self._lock:
            return await asyncio.to_thread(action)

    async def record(self, message: AddImage) -> Done:
        """Have an image recorded whose layers are leased."""
        done = await self._bus.request(subjects.IMAGE_ADD, message, Done)
        image = message.image
        self._added[image.id] = _Added(time.monotonic(), frozenset(digests_of(image)))
        return done

    async def end_transfer(self, job: Path, recorded: set[str]) -> None:
        """Take out what a transfer added or owes, but for what was recorded or others hold."""
        async with self._lock:
            self.leases.drop(job)
            left = {digest for _, digest in Pending(job).entries()} - recorded
            keep = recorded | await self._recorded() if left else recorded
            await asyncio.to_thread(self._end, job, keep)
        self._tidy()

    async def _repair(self) -> None:
        directory = self.store.new_job()
        loader = await self._start_loader({"kind": "repair"}, directory)
        try:
            await loader.result()
        finally:
            await loader.end()
            self.store.discard(directory)

    async def idle(self) -> None:
        """Wait until nothing goes on in the background."""
        if self._tidying is not None:
            await self._tidying

    async def close(self) -> None:
        """Break off what goes on in the background; the next start takes it up."""
        tasks = [task for task in (self._tidying, self._sweeping) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def upper(self, container_id: str) -> Path:
        """What a container has written; it may not be there."""
        return self._state_dir / "containers" / container_id / "upper"

    async def load(self, request: LoadImages, upload: AsyncIterable[memoryview]) -> ImagesLoaded:
        """Load a docker-archive or OCI layout; InvalidParameter for a bad archive."""
        job = {"kind": "load", "architecture": platforms.host().architecture}
        say = self._say_to(request.progress) if request.progress else None
        return await self.run(job, upload, Origin("load"), say)

    async def import_(
        self, request: ImportImage, upload: AsyncIterable[memoryview]
    ) -> ImagesLoaded:
        """Make an image of a root file system's tar; InvalidParameter."""
        platform = platforms.parse(request.platform)
        names = [references.normalize(request.reference)] if request.reference else []
        job = {
            "kind": "import",
            "source": request.source,
            "message": request.message,
            "changes": request.changes,
            "architecture": platform.architecture,
            "variant": platform.variant,
        }
        return await self.run(job, upload, Origin("import", names))

    async def commit(self, request: CommitContainer) -> ImageCommitted:
        """Make an image of a container; InvalidParameter for a change that cannot be made."""
        return await commits.commit(self, self._bus, request)

    async def remove(self, request: RemoveLayers) -> Done:
        """Remove an image's layers but those in keep; what is gone already is no error."""
        async with self._lock:
            horizon = time.monotonic() - _SETTLED
            self._added.pop(request.image.id, None)
            self._added = {image: a for image, a in self._added.items() if a.at > horizon}
            keep = set(request.keep).union(*(a.digests for a in self._added.values()))
            held = self.leases.all() - keep
            for chain_id in {layer.chain_id for layer in request.image.layers} & held:
                self.leases.owe("layer", chain_id)
            for digest in {request.image.id, *request.image.manifests} & held:
                self.leases.owe("blob", digest)
            await asyncio.to_thread(self._remove, request.image, keep | held)
        for forget in self.on_removed:
            forget(request.image.id)
        self._tidy()
        return Done()

    def _remove(self, image: ImageRecord, keep: set[str]) -> None:
        for layer in reversed(image.layers):
            if layer.chain_id not in keep:
                self.store.remove_layer(layer.chain_id)
                point("runtime.image.remove.layer")
        for digest in (image.id, *image.manifests):
            if digest not in keep:
                self.store.blob(digest).unlink(missing_ok=True)

    async def run(
        self,
        job: dict[str, Any],
        upload: AsyncIterable[memoryview],
        origin: Origin,
        progress: Progress | None = None,
    ) -> ImagesLoaded:
        """Have a loader do a job, and its images recorded; undone if that fails."""
        directory = self.store.new_job()
        loader = await self._start_loader(job, directory, progress)
        try:
            await loader.feed(upload)
            if job.get("source"):
                await loader.has_source()
            return await self._record(directory, loader.result, origin)
        finally:
            await loader.end()
            self._clear(directory)

    def _say_to(self, subject: str) -> Progress:
        """Progress as lines of Docker's stream, for whoever waits for a load."""

        def say(layer: str, current: int, total: int) -> None:
            message = TransferProgress(messages=[amount("Loading layer", layer, current, total)])
            with suppress(Disconnected):
                self._bus.client.publish(subject, message.pack())

        return say

    async def run_here(self, make: Callable[[Path], LoadedImage], origin: Origin) -> ImagesLoaded:
        """The same for what is done in a moment: in a thread, given the job's directory."""
        directory = self.store.new_job()

        async def images() -> list[dict[str, Any]]:
            making = asyncio.ensure_future(asyncio.to_thread(make, directory))
            try:
                return [asdict(await asyncio.shield(making))]
            except asyncio.CancelledError:
                # What it adds has to be known before it can be undone.
                await asyncio.wait({making})
                raise
            except BadArchive as exc:
                raise InvalidParameter(str(exc)) from exc
            except OSError as exc:
                raise EngineError(f"cannot store the image: {exc}") from exc

        try:
            return await self._record(directory, images, origin)
        finally:
            self._clear(directory)

    async def _record(
        self, directory: Path, images: Callable[[], Awaitable[list[dict[str, Any]]]], origin: Origin
    ) -> ImagesLoaded:
        """Have the images recorded that are about to be put into the store."""
        added: set[str] = set()
        async with self._lock:
            try:
                found = await images()
                point("runtime.image.stored")
                layers = self._new_layers(directory, found)
                loaded = await self._add(found, origin, added)
                return loaded.model_copy(update={"layers": layers})
            except Unavailable:
                # Whether an image was recorded is not known: the next start finds out.
                self._uncertain.add(directory)
                raise
            finally:
                if directory not in self._uncertain:
                    await asyncio.to_thread(self._end, directory, added)

    def _new_layers(self, directory: Path, images: list[dict[str, Any]]) -> dict[str, int]:
        new = {digest for kind, digest in Pending(directory).entries() if kind == "layer"}
        return {
            layer["diff_id"]: self.store.blob(layer["blob"]).stat().st_size
            for image in images
            for layer in image["layers"]
            if layer["chain_id"] in new
        }

    def _clear(self, directory: Path) -> None:
        """What is left of a job; the list of what it added stays as long as that is in doubt."""
        for path in directory.glob("*/") if directory in self._uncertain else (directory,):
            self.store.discard(path)
        self._tidy()

    async def _start_loader(
        self, job: dict[str, Any], directory: Path, progress: Progress | None = None
    ) -> Loader:
        job |= {
            "state_dir": str(self._state_dir),
            "parent": os.getpid(),
            "max_size": self._settings.image_max_layer_size,
            "max_files": self._settings.image_max_layer_files,
            "progress": progress is not None,
        }
        return await Loader.start(job, directory, progress)

    async def _add(
        self, images: list[dict[str, Any]], origin: Origin, added: set[str]
    ) -> ImagesLoaded:
        """Have the images recorded and tagged; added gets what must not be undone any more."""
        messages = [self._message(image, origin) for image in images]
        loaded = ImagesLoaded()
        for message in messages:
            image = message.image
            done = await self._bus.request(subjects.IMAGE_ADD, message, Done)
            digests = frozenset(digests_of(image))
            added |= digests
            self._added[image.id] = _Added(time.monotonic(), digests)
            loaded.revision = max(loaded.revision, done.revision)
            loaded.image_ids.append(image.id)
            if origin.action == "import":
                loaded.lines.append(image.id)
            elif message.references:
                named = map(references.familiar, message.references)
                loaded.lines += [f"Loaded image: {name}" for name in named]
            else:
                loaded.lines.append(f"Loaded image ID: {image.id}")
        return loaded

    async def keep_built(self, job: Path, images: list[ImageRecord]) -> int:
        """Record what a build made; the revision. Unavailable if a layer went meanwhile."""
        async with self._lock:
            chains = {layer.chain_id for image in images for layer in image.layers}
            if not all(map(self.store.has_layer, chains)):
                raise Unavailable("a layer that was to be built upon was removed: build again")
            requests = [AddImage(image=image, action="build") for image in images]
            done = await asyncio.gather(
                *(self._bus.request(subjects.IMAGE_ADD, request, Done) for request in requests)
            )
            now = time.monotonic()
            for image in images:
                self._added[image.id] = _Added(now, frozenset(digests_of(image)))
            Pending(job).settled()
        self._tidy()
        return max((each.revision for each in done), default=0)

    async def drop_built(self, job: Path, keep: set[str]) -> None:
        """Undo what a build has in the store and had not recorded, and remove its directory."""
        async with self._lock:
            keep = keep.union(*(a.digests for a in self._added.values()), self.leases.all())
            await asyncio.to_thread(self._end, job, keep)
        self._tidy()

    def _message(self, image: dict[str, Any], origin: Origin) -> AddImage:
        record = image_record(image, self._node, time.time_ns(), origin.parent)
        tags = origin.names or [references.normalize(name) for name in image["references"]]
        return AddImage(
            image=record,
            references=list(dict.fromkeys(tags)),
            action=origin.action,
            events=[event(image["id"]) for event in origin.events],
        )

    def _end(self, job: Path, keep: set[str]) -> None:
        pending = Pending(job)
        held = self.leases.all() - keep
        for kind, digest in pending.entries():
            if digest in held:
                self.leases.owe(kind, digest)
        pending.undo(self.store, keep | held)
        self.store.discard(job)

    def _tidy(self) -> None:
        """In the background: new layers to disk, the trash emptied."""
        self._untidy = True
        if self._tidying is None or self._tidying.done():
            self._tidying = asyncio.create_task(self._empty_and_settle(), name="tidy images")

    async def _empty_and_settle(self) -> None:
        while self._untidy:
            self._untidy = False
            # rm is faster than Python at this, holds no lock of ours, and any depth is no matter.
            if trash := list(self.store.trash.iterdir()):
                await _command("rm", "-rf", "--", *map(str, trash))
            if unsettled := self.store.unsettled():
                if await _command("sync", "-f", str(self.store.layers)):
                    logger.error("new layers cannot be written to disk")
                    return
                for marker in unsettled:
                    marker.unlink(missing_ok=True)


def digests_of(image: ImageRecord) -> set[str]:
    """Everything in the store that an image needs: chain ids, and digests of its other blobs."""
    return {image.id, *image.manifests, *(layer.chain_id for layer in image.layers)}


async def _command(*arguments: str) -> int:
    creating = asyncio.create_task(asyncio.create_subprocess_exec(*arguments, stderr=DEVNULL))
    try:
        process = await asyncio.shield(creating)
        return await process.wait()
    finally:
        # Given up while it was being created, it is there all the same.
        process = await creating
        if process.returncode is None:
            process.kill()
            await process.wait()


async def serve(bus: Bus, settings: Settings) -> ImageService:
    """Answer for the images of this host; `close` the service in the end."""
    service = ImageService(bus, settings)
    await service.start()
    node = settings.node_id
    load = subjects.runtime(node, subjects.RUNTIME_IMAGE_LOAD)
    import_ = subjects.runtime(node, subjects.RUNTIME_IMAGE_IMPORT)
    await serve_uploads(bus, load, LoadImages, service.load)
    await serve_uploads(bus, import_, ImportImage, service.import_)
    await bus.serve(
        subjects.runtime(node, subjects.RUNTIME_IMAGE_REMOVE), RemoveLayers, service.remove
    )
    await bus.serve(
        subjects.runtime(node, subjects.RUNTIME_COMMIT), CommitContainer, service.commit
    )
    return service

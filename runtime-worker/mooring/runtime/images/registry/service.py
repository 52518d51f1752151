"""The registries on the bus: pulls and pushes shared by whoever asks for the same."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from mooring.kit import references, subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.errors import EngineError, NotFound, Unavailable
from mooring.kit.faults import point
from mooring.kit.models.base import Done, Model
from mooring.kit.models.container import Event
from mooring.kit.models.image import AddImage, ImageRecord
from mooring.kit.models.registry import (
    AuthChecked,
    CancelTransfer,
    CheckAuth,
    DistributionInspected,
    InspectDistribution,
    Pulled,
    PullImage,
    Pushed,
    PushImage,
    SearchRegistry,
    SearchResults,
    TransferProgress,
)
from mooring.kit.nats_protocol import Disconnected
from mooring.runtime.images.build import commit_layer
from mooring.runtime.images.compress import Compression
from mooring.runtime.images.incoming import Blob, Layer
from mooring.runtime.images.pending import Pending
from mooring.runtime.images.records import image_record
from mooring.runtime.images.service import ImageService, digests_of
from mooring.runtime.images.store import LayerInfo
from mooring.runtime.images.unpack import Unpacked

from .blobs import serve_blobs
from .process import TransferProcess, Work
from .progress import Message

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Model)

_SWEEP = 3700.0
"""Seconds after which what is left of a broken pull may go: transfers.py keeps it for an hour."""


class _Shared:
    """A transfer, and everyone who waits for it."""

    def __init__(self) -> None:
        self.task: asyncio.Task[dict[str, Any]]
        self.watchers: dict[str, str] = {}
        """Progress subjects by request id."""
        self.said: dict[str, Message] = {}
        """The last message of each kind and layer, for who comes later."""


class RegistryService:
    """Pulls into the store of this host and pushes from it."""

    def __init__(self, bus: Bus, settings: Settings, images: ImageService) -> None:
        self._bus, self._node, self._images = bus, settings.node_id, images
        self._downloads = settings.state_dir / "downloads"
        self._process = TransferProcess(settings, self._serve, images.store.new_job)
        self._process.on_ended = self._after
        self._shared: dict[str, _Shared] = {}
        self._cancelled: dict[str, float] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    def prepare(self) -> None:
        """Make the directory of what is on its way."""
        self._downloads.mkdir(mode=0o700, exist_ok=True)
        if any(self._downloads.iterdir()):
            self._sweep()

    async def close(self) -> None:
        """End what is under way: who asked asks the next worker, which goes on at the byte."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._process.close()
        for shared in tuple(self._shared.values()):
            shared.task.cancel()
        await asyncio.gather(
            *(shared.task for shared in self._shared.values()), return_exceptions=True
        )

    @property
    def pid(self) -> int:
        """The transfers process, or 0 (tests)."""
        return self._process.pid

    # --- commands ---

    async def pull(self, request: PullImage) -> Pulled:
        """Pull; who asks for the same image in the same name shares the work."""
        return Pulled(**await self._join("pull", request, {"request_id", "progress", "known"}))

    async def push(self, request: PushImage) -> Pushed:
        """Push the tags of a repository."""
        found = await self._join("push", request, {"request_id", "progress"})
        return Pushed(messages=found["messages"], revision=found["revision"])

    async def search(self, request: SearchRegistry) -> SearchResults:
        """Look for repositories."""
        return await self._question("search", request, SearchResults)

    async def inspect(self, request: InspectDistribution) -> DistributionInspected:
        """What a registry has under a reference."""
        return await self._question("inspect", request, DistributionInspected)

    async def check(self, request: CheckAuth) -> AuthChecked:
        """Whether credentials are good."""
        return await self._question("auth", request, AuthChecked)

    async def cancel(self, request: CancelTransfer) -> Done:
        """One who waits is gone; a transfer that nobody waits for is broken off."""
        now = time.monotonic()
        self._cancelled = {key: at for key, at in self._cancelled.items() if at > now - 60.0}
        self._cancelled[request.transfer] = now
        for shared in tuple(self._shared.values()):
            if shared.watchers.pop(request.transfer, None) is not None and not shared.watchers:
                shared.task.cancel()
        return Done()

    async def _question(self, op: str, request: Model, reply: type[R]) -> R:
        work = Work(op, request.model_dump(mode="json"), lambda messages: None)
        return reply.model_validate(await self._process.do(work))

    # --- sharing ---

    async def _join(
        self, op: str, request: PullImage | PushImage, of_asker: set[str]
    ) -> dict[str, Any]:
        if self._cancelled.pop(request.request_id, None) is not None:
            raise EngineError("context canceled")
        args = request.model_dump(mode="json")
        same = {name: value for name, value in args.items() if name not in of_asker}
        text = json.dumps([op, same], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        shared = self._shared.get(key)
        if shared is None or shared.task.cancelling():
            shared = self._shared[key] = _Shared()
            shared.task = asyncio.create_task(self._transfer(op, args, shared), name=op)
            shared.task.add_done_callback(lambda task: self._forget(key, task))
        elif request.progress:
            self._publish(request.progress, list(shared.said.values()))
        shared.watchers[request.request_id] = request.progress
        try:
            return await asyncio.shield(shared.task)
        except asyncio.CancelledError:
            if shared.task.cancelled():
                raise EngineError("context canceled") from None
            raise

    def _forget(self, key: str, task: asyncio.Task[dict[str, Any]]) -> None:
        if (shared := self._shared.get(key)) and shared.task is task:
            del self._shared[key]
        if not task.cancelled():
            task.exception()

    async def _transfer(self, op: str, args: dict[str, Any], shared: _Shared) -> dict[str, Any]:
        def say(messages: list[Message]) -> None:
            for message in messages:
                which = message.get("id", "")
                shared.said[which if "progressDetail" in message else str(message)] = message
            for subject in shared.watchers.values():
                self._publish(subject, messages)

        directory = self._images.store.new_job()
        work = Work(op, args, say, directory)
        try:
            return await self._process.do(work)
        finally:
            # To its end, also when this is cancelled once more.
            await asyncio.shield(asyncio.ensure_future(self._end(work, directory)))

    async def _end(self, work: Work, directory: Path) -> None:
        if work.uncertain:
            # The next start finds out what was recorded; till then nothing is taken out.
            self._images.leases.drop(directory)
        else:
            await self._images.end_transfer(directory, work.recorded)

    def _publish(self, subject: str, messages: list[Message]) -> None:
        if subject and messages:
            with suppress(Disconnected):
                self._bus.client.publish(subject, TransferProgress(messages=messages).pack())

    # --- what the process asks for ---

    async def _serve(self, work: Work, op: str, args: dict[str, Any]) -> Any:
        calls: dict[str, Callable[[Work, dict[str, Any]], Awaitable[Any]]] = {
            "lease": self._lease,
            "commit": self._commit,
            "add": self._pushed if work.op == "push" else self._add,
            "compressed": self._compressed,
        }
        return await calls[op](work, args)

    async def _lease(self, work: Work, args: dict[str, Any]) -> dict[str, Any]:
        store, directory = self._images.store, work.directory
        assert directory is not None
        chain_ids, config = args["chain_ids"], args["config"]

        def take() -> dict[str, Any]:
            self._images.leases.take(directory, [config, *chain_ids])
            return {
                "layers": [chain_id for chain_id in chain_ids if store.has_layer(chain_id)],
                "config": store.blob(config).exists(),
            }

        return await self._images.change(take)

    async def _commit(self, work: Work, args: dict[str, Any]) -> None:
        parts = args["unpacked"]
        parts["compression"] = Compression(parts["compression"])
        parts["implied"] = tuple(name.encode("latin-1") for name in parts["implied"])
        unpacked = Unpacked(**parts)
        blob = Blob(Path(args["blob"]), unpacked.digest, unpacked.blob_size)
        layer = Layer(Path(args["built"]), unpacked, blob, unpacked.compression)
        chain_id = args["chain_id"]

        def commit() -> LayerInfo:
            holders = _Holders(self._images.leases.holders(chain_id))
            return commit_layer(
                self._images.store, holders, layer, chain_id=chain_id, lowers=args["lowers"]
            )

        await self._images.change(commit)
        point("runtime.pull.layer")

    async def _add(self, work: Work, args: dict[str, Any]) -> int:
        """Store the small blobs of an image that is complete, and have it recorded."""
        message = self._message(args)
        await self._keep(work, args["blobs"])
        point("runtime.pull.stored")
        try:
            done = await self._images.record(message)
        except Unavailable:
            work.uncertain = True
            raise
        work.recorded |= digests_of(message.image)
        return done.revision

    async def _keep(self, work: Work, blobs: dict[str, str]) -> Path:
        """Put blobs (paths by digest) into the store, noted first; the directory of the job."""
        store, directory = self._images.store, work.directory
        assert directory is not None

        def keep() -> None:
            pending = Pending(directory)
            for digest, path in blobs.items():
                pending.blob(digest, store)
                store.add_blob(Path(path), digest)

        await self._images.change(keep)
        return directory

    async def _compressed(self, work: Work, args: dict[str, Any]) -> None:
        """The compressed form of a blob takes its place."""
        store, directory = self._images.store, work.directory
        assert directory is not None

        def swap() -> None:
            pending = Pending(directory)
            # Whatever is not a layer's at the end, or after a kill, goes.
            pending.note("blob", args["old"])
            pending.note("blob", args["digest"])
            store.replace_blob(args["old"], Path(args["path"]), args["digest"], args["compression"])

        await self._images.change(swap)

    async def _pushed(self, work: Work, args: dict[str, Any]) -> int:
        """Note the digest that an image has in a registry now, and tell of the push."""
        directory = await self._keep(work, args["blobs"])
        image = ImageRecord.model_validate(args["image"])
        reference = references.parse(args["reference"])
        record = image.model_copy(update={"manifests": [args["manifest"]], "nodes": [self._node]})
        event = Event(
            id=f"{image.id[7:]}.push.{directory.name}.{reference.tag}",
            type="image",
            action="push",
            actor=reference.familiar(),
            attributes={
                **(image.config.get("Labels") or {}),
                "name": reference.familiar_name,
            },
            time_ns=time.time_ns(),
        )
        message = AddImage(
            image=record, references=[args["digest_reference"]], action="push", events=[event]
        )
        try:
            done = await self._images.record(message)
        except Unavailable:
            work.uncertain = True
            raise
        except NotFound:
            return 0  # Removed meanwhile: it is in the registry all the same.
        work.recorded |= digests_of(record)
        return done.revision

    def _message(self, args: dict[str, Any]) -> AddImage:
        store = self._images.store
        layers = []
        for chain_id in args["chain_ids"]:
            info = store.layer_info(chain_id)
            layers.append({"diff_id": info.diff_id, "chain_id": chain_id, "size": info.size})
        image = {"id": args["id"], "config": args["config"], "layers": layers}
        record = image_record(image, self._node, time.time_ns())
        record = record.model_copy(update={"manifests": [args["manifest"]]})
        names = list(dict.fromkeys(args["references"]))
        return AddImage(image=record, references=names, action="pull")

    # --- tidying ---

    def _after(self, job: Path) -> None:
        self._images.store.discard(job)
        if self._sweeper is None:
            loop = asyncio.get_running_loop()
            self._sweeper = loop.call_later(_SWEEP, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        horizon = time.time() - _SWEEP
        for path in self._downloads.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < horizon:
                    path.unlink()


class _Holders(Pending):
    """Notes for all transfers that want a layer: whichever fails last takes it out again."""

    def __init__(self, jobs: list[Path]) -> None:
        self._all = [Pending(job) for job in jobs]

    def note(self, kind: str, digest: str) -> None:
        for pending in self._all:
            pending.note(kind, digest)


async def serve(bus: Bus, settings: Settings, images: ImageService) -> RegistryService:
    """Answer for what needs a registry; `close` the service in the end."""
    service = RegistryService(bus, settings, images)
    service.prepare()

    def subject(verb: str) -> str:
        return subjects.runtime(settings.node_id, verb)

    await serve_blobs(bus, settings.node_id, images.store)
    await bus.serve(subject(subjects.RUNTIME_IMAGE_PULL), PullImage, service.pull)
    await bus.serve(subject(subjects.RUNTIME_IMAGE_PUSH), PushImage, service.push)
    await bus.serve(subject(subjects.RUNTIME_TRANSFER_CANCEL), CancelTransfer, service.cancel)
    await bus.serve(subject(subjects.RUNTIME_REGISTRY_SEARCH), SearchRegistry, service.search)
    await bus.serve(
        subject(subjects.RUNTIME_REGISTRY_INSPECT), InspectDistribution, service.inspect
    )
    await bus.serve(subject(subjects.RUNTIME_REGISTRY_AUTH), CheckAuth, service.check)
    return service

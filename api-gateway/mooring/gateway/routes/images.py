"""Images: list, inspect, history, tag, delete, load, import."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mooring.gateway.gateway import Gateway
from mooring.gateway.http.connection import Kind
from mooring.gateway.http.reply import JSON, Reply, empty, json_reply
from mooring.gateway.http.request import Request
from mooring.gateway.router import Route
from mooring.gateway.schema import images as schema
from mooring.gateway.schema import platform, query
from mooring.gateway.views.image_filters import NAMES, select
from mooring.kit import references, subjects
from mooring.kit.errors import EngineError, InvalidParameter, NotSupported, Unavailable
from mooring.kit.models.base import Done
from mooring.kit.models.base import Request as Message
from mooring.kit.models.image import (
    ImageRecord,
    ImageRemoved,
    ImagesLoaded,
    ImportImage,
    LoadImages,
    RemoveImage,
    TagImage,
)
from mooring.kit.streams import upload

from .showing import Line, failure, showing, wire
from .transfers import TransferRoutes, progress_lines

_LOADED = "Loaded image: "


class ImageRoutes:
    """The section Image of the API, as far as no registry is needed."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._transfers = TransferRoutes(gateway)

    def routes(self) -> list[Route]:
        """See Router."""
        return [
            Route("GET", "/images/json", Kind.INSTANT, self.list),
            Route("POST", "/images/create", Kind.STREAM, self.create),
            Route("POST", "/images/load", Kind.STREAM, self.load),
            Route("GET", "/images/{name}/json", Kind.INSTANT, self.inspect),
            Route("GET", "/images/{name}/history", Kind.INSTANT, self.history),
            Route("POST", "/images/{name}/tag", Kind.PLAIN, self.tag),
            Route("DELETE", "/images/{name}", Kind.PLAIN, self.remove),
        ]

    def list(self, request: Request) -> Reply:
        """All images, newest first."""
        given = query.filters(request, NAMES)
        if query.flag(request, "manifests"):
            raise NotSupported("listing the manifests of images is not supported yet")
        views = self._gateway.engine.images
        found = select(views, given, intermediate=query.flag(request, "all"))
        shared: Counter[str] = Counter()
        count_shared = query.flag(request, "shared-size")
        if count_shared:
            shared.update(layer.chain_id for entry in views.all() for layer in entry.record.layers)
        rows = [
            schema.summary(
                image,
                tags,
                views.digests(image.id),
                version=request.version,
                containers=-1,
                shared_size=shared_size(image, shared) if count_shared else -1,
            )
            for image, tags in found
        ]
        return json_reply(rows)

    def inspect(self, request: Request) -> Reply:
        """Everything about one image."""
        if query.flag(request, "manifests"):
            raise NotSupported("inspecting the manifests of an image is not supported yet")
        views = self._gateway.engine.images
        image = views.find(request.name)
        platform.check(request, image, request.name)
        tagged = views.tagged_ns(image.id)
        tags, digests = views.tags(image.id), views.digests(image.id)
        return json_reply(schema.inspect(image, tags, digests, tagged, request.version))

    def history(self, request: Request) -> Reply:
        """The steps that made it, newest first."""
        views = self._gateway.engine.images
        image = views.find(request.name)
        platform.check(request, image, request.name)
        return json_reply(schema.history(image, views.lineage(image)))

    async def tag(self, request: Request) -> Reply:
        """Give an image another name."""
        repo, tag = request.get("repo"), request.get("tag")
        name = f"{repo}:{tag}" if tag else repo
        references.parse(name)
        engine = self._gateway.engine
        image = engine.images.find(request.name)
        message = TagImage(image=image.id, reference=name)
        await engine.ask(subjects.IMAGE_TAG, message, Done)
        await engine.images.until(lambda: engine.images.names(name) == image.id)
        return empty(201)

    async def remove(self, request: Request) -> Reply:
        """Untag, and delete with the last tag."""
        if "platforms" in request.query:
            raise NotSupported("deleting an image for some platforms is not supported yet")
        engine = self._gateway.engine
        message = RemoveImage(
            image=request.name,
            force=query.flag(request, "force"),
            noprune=query.flag(request, "noprune"),
        )
        done = await engine.ask(subjects.IMAGE_REMOVE, message, ImageRemoved)
        views = engine.images
        await views.until(
            lambda: (
                not any(views.names(name) for name in done.untagged)
                and not any(views.is_listed(image_id) for image_id in done.deleted)
            )
        )
        rows = [{"Untagged": name} for name in done.untagged]
        rows += [{"Deleted": image_id} for image_id in done.deleted]
        return json_reply(rows)

    async def load(self, request: Request) -> Reply | None:
        """Images of an archive, as `docker save` or an OCI tool wrote it."""
        wanted = platform.asked(request)
        machine = self._gateway.engine.node().architecture
        if wanted is not None and not platform.is_for(wanted, platform.go_architecture(machine)):
            raise NotSupported("loading an image for another platform than the host's")
        if query.flag(request, "quiet", True):
            loaded = await self._upload(request, subjects.RUNTIME_IMAGE_LOAD, LoadImages())
            return _reply(_outcome(loaded, "stream", "\n"))
        return await self._load_and_show(request)

    async def _load_and_show(self, request: Request) -> Reply | None:
        """The same, and say meanwhile how far each layer is."""
        verb = subjects.RUNTIME_IMAGE_LOAD
        async with progress_lines(self._gateway.engine) as (inbox, lines):
            try:
                async with showing(request, lines) as shown:
                    loaded = await self._upload(request, verb, LoadImages(progress=inbox))
            except Unavailable as exc:
                if shown.stream is None:
                    raise
                rows = [failure(exc.message)]
            else:
                rows = _outcome(loaded, "stream", "\n")
                if shown.stream is None and isinstance(loaded, ImagesLoaded):
                    # Nothing in the archive's names told its layers apart while they came.
                    rows = [_added(diff_id, size) for diff_id, size in loaded.layers.items()] + rows
        if shown.stream is None:
            return _reply(rows)
        await shown.say(rows)
        shown.stream.end()
        return None

    async def create(self, request: Request) -> Reply | None:
        """Pull an image, or import a root file system."""
        if request.get("fromImage"):
            return await self._transfers.pull(request)
        source = request.get("fromSrc")
        if not source:
            raise InvalidParameter("neither fromImage nor fromSrc was given")
        if source != "-" and "://" not in source:
            source = f"http://{source}"
        if source != "-" and not source.startswith(("http://", "https://")):
            raise InvalidParameter(f"unsupported scheme in {source}: use http or https")
        repo, tag = request.get("repo"), request.get("tag")
        name = f"{repo}:{tag}" if repo and tag else repo
        message = ImportImage(
            source="" if source == "-" else source,
            reference=references.normalize(name) if name else "",
            message=request.get("message"),
            changes=request.query.get("changes", []),
            platform=request.get("platform"),
        )
        loaded = await self._upload(request, subjects.RUNTIME_IMAGE_IMPORT, message)
        if isinstance(loaded, EngineError):
            raise loaded
        rows = _outcome(loaded, "status", "")
        if message.source:
            rows.insert(0, {"status": f"Downloading from {message.source}"})
        return _reply(rows)

    async def _upload(
        self, request: Request, verb: str, message: Message
    ) -> ImagesLoaded | EngineError:
        """Pass the body on to a host; what came of it. Unavailable is raised."""
        engine = self._gateway.engine
        subject = subjects.runtime(engine.node().id, verb)
        try:
            async with upload(engine.bus, subject, message, ImagesLoaded) as sending:
                async for piece in request.chunks():
                    await sending.write(piece)
                loaded = await sending.finish()
        except Unavailable:
            raise
        except EngineError as exc:
            return exc
        await engine.images.until(lambda: self._is_known(loaded))
        return loaded

    def _is_known(self, loaded: ImagesLoaded) -> bool:
        views = self._gateway.engine.images
        names = [line.removeprefix(_LOADED) for line in loaded.lines if line.startswith(_LOADED)]
        return all(views.get(image_id) for image_id in loaded.image_ids) and all(
            views.names(name) for name in names
        )


def _outcome(loaded: ImagesLoaded | EngineError, key: str, end: str) -> list[Line]:
    if isinstance(loaded, EngineError):
        # A bad archive is an error in the stream, as clients expect it.
        return [failure(loaded.message)]
    return [{key: line + end} for line in loaded.lines]


def _added(diff_id: str, size: int) -> Line:
    """A layer that was not here before, in the words of a progress stream."""
    return {
        "status": "Loading layer",
        "progressDetail": {"current": size, "total": size},
        "id": diff_id.partition(":")[2][:12],
    }


def _reply(rows: Iterable[Line]) -> Reply:
    return Reply(200, wire(rows), JSON)


def shared_size(image: ImageRecord, users: Counter[str]) -> int:
    """Bytes of an image's layers that other images have as well; users: by chain id."""
    return sum(layer.size for layer in image.layers if users[layer.chain_id] > 1)

"""Images: list, inspect, history, tag, delete, load, import."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from mooring.gateway.gateway import Gateway
from mooring.gateway.http.connection import Kind
from mooring.gateway.http.reply import JSON, Reply, dumps, empty, json_reply
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

from .transfers import TransferRoutes

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

    async def load(self, request: Request) -> Reply:
        """Images of an archive, as `docker save` or an OCI tool wrote it."""
        wanted = platform.asked(request)
        machine = self._gateway.engine.node().architecture
        if wanted is not None and not platform.is_for(wanted, platform.go_architecture(machine)):
            raise NotSupported("loading an image for another platform than the host's")
        verb = subjects.RUNTIME_IMAGE_LOAD
        quiet = query.flag(request, "quiet", True)
        return await self._upload(request, verb, LoadImages(), "stream", "\n", quiet=quiet)

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
        return await self._upload(request, subjects.RUNTIME_IMAGE_IMPORT, message, "status", "")

    async def _upload(
        self,
        request: Request,
        verb: str,
        message: Message,
        key: str,
        end: str,
        *,
        quiet: bool = True,
    ) -> Reply:
        """Pass the body on to a host and say what came of it, as a progress stream."""
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
            # A bad archive is an error in the stream, as clients expect it.
            return _progress([{"errorDetail": {"message": exc.message}, "error": exc.message}])
        await engine.images.until(lambda: self._is_known(loaded))
        lines: list[Mapping[str, object]] = [{key: line + end} for line in loaded.lines]
        if not quiet:
            lines = [_added(diff_id, size) for diff_id, size in loaded.layers.items()] + lines
        if isinstance(message, ImportImage) and message.source:
            lines.insert(0, {"status": f"Downloading from {message.source}"})
        return _progress(lines)

    def _is_known(self, loaded: ImagesLoaded) -> bool:
        views = self._gateway.engine.images
        names = [line.removeprefix(_LOADED) for line in loaded.lines if line.startswith(_LOADED)]
        return all(views.get(image_id) for image_id in loaded.image_ids) and all(
            views.names(name) for name in names
        )


def _added(diff_id: str, size: int) -> Mapping[str, object]:
    """A layer that was not here before, in the words of a progress stream."""
    return {
        "status": "Loading layer",
        "progressDetail": {"current": size, "total": size},
        "id": diff_id.partition(":")[2][:12],
    }


def _progress(messages: Sequence[Mapping[str, object]]) -> Reply:
    return Reply(200, b"".join(dumps(message) + b"\r\n" for message in messages), JSON)


def shared_size(image: ImageRecord, users: Counter[str]) -> int:
    """Bytes of an image's layers that other images have as well; users: by chain id."""
    return sum(layer.size for layer in image.layers if users[layer.chain_id] > 1)

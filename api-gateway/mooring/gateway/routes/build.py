"""Building images with the classic builder's API."""

from __future__ import annotations

import asyncio
import contextlib

from mooring.gateway.gateway import Gateway
from mooring.gateway.http.connection import Kind
from mooring.gateway.http.reply import JSON, Reply, dumps, empty, json_reply
from mooring.gateway.http.request import Request
from mooring.gateway.http.stream import ResponseStream
from mooring.gateway.router import Route
from mooring.gateway.schema import query
from mooring.gateway.schema.build import build_options
from mooring.gateway.views.images import ImageViews
from mooring.kit import subjects
from mooring.kit.errors import EngineError, InvalidParameter
from mooring.kit.models.base import Done
from mooring.kit.models.build import (
    BuildDone,
    BuildOpened,
    BuildOutput,
    CancelBuild,
    OpenBuild,
    StartBuild,
)
from mooring.kit.streams import Uploader, download, upload

_FILTERS = frozenset({"until", "id", "parent", "type", "description", "inuse", "shared", "private"})


class BuildRoutes:
    """POST /build, and what else the API has about builds."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._named: dict[str, tuple[str, str]] = {}
        """By the id that its client gave a build: node and our id."""

    def routes(self) -> list[Route]:
        """See Router."""
        return [
            Route("POST", "/build", Kind.STREAM, self.build),
            Route("POST", "/build/prune", Kind.STREAM, self.prune),
            Route("POST", "/build/cancel", Kind.STREAM, self.cancel),
        ]

    async def build(self, request: Request) -> Reply | None:
        """Send the context to a builder, and pass on what it says."""
        options = build_options(request)
        engine = self._gateway.engine
        node = engine.node().id
        subject = subjects.runtime(node, subjects.RUNTIME_BUILD_OPEN)
        build = (await engine.ask(subject, OpenBuild(), BuildOpened)).build
        name = request.get("buildid")
        if name:
            self._named[name] = (node, build)
        message = StartBuild(build=build, options=options)
        over = False
        try:
            where = subjects.builder(node, subjects.BUILDER_START)
            async with upload(engine.bus, where, message, BuildDone) as sending:
                async for piece in request.chunks():
                    await sending.write(piece)
                reply = await self._follow(request, node, message, sending)
                over = True
                return reply
        finally:
            self._named.pop(name, None)
            if not over:
                engine.background(self._cancel(node, build))

    async def _follow(
        self, request: Request, node: str, message: StartBuild, sending: Uploader[BuildDone]
    ) -> Reply | None:
        """Pass the output on until it ends; the error of a build that said nothing is raised."""
        engine = self._gateway.engine
        build, options = message.build, message.options
        finishing = asyncio.create_task(sending.finish(), name=f"build {build}")
        stream: ResponseStream | None = None
        where = subjects.builder(node, subjects.BUILDER_OUTPUT)
        try:
            opening = BuildOutput(build=build)
            async with download(engine.bus, where, opening, resume=_resume) as reading:
                async for _, data in reading:
                    stream = stream or request.stream(JSON)
                    await stream.write(bytes(data))
            done = await finishing
        except EngineError as exc:
            if stream is None:
                raise
            # The builder died in the middle: this is all that can be said.
            await stream.write(_error(exc.message))
            stream.end()
            return None
        finally:
            finishing.cancel()
            await asyncio.gather(finishing, return_exceptions=True)
        if done.image_id:
            image_id, tags = done.image_id, options.tags
            await engine.images.until(lambda: _is_known(engine.images, image_id, tags))
        if stream is None:
            return Reply(200, b"", JSON)
        stream.end()
        return None

    async def _cancel(self, node: str, build: str) -> None:
        subject = subjects.builder(node, subjects.BUILDER_CANCEL)
        with contextlib.suppress(EngineError):
            await self._gateway.engine.ask(subject, CancelBuild(build=build), Done)

    async def cancel(self, request: Request) -> Reply:
        """End the build that its client gave this id."""
        name = request.get("id")
        if not name:
            raise InvalidParameter("build ID not provided")
        if (known := self._named.get(name)) is not None:
            await self._cancel(*known)
        return empty(204)

    async def prune(self, request: Request) -> Reply:
        """The build cache are images here: there is nothing else that could be pruned."""
        query.filters(request, _FILTERS)
        return json_reply({"CachesDeleted": None, "SpaceReclaimed": 0})


def _resume(message: BuildOutput, offset: int) -> BuildOutput:
    return message.model_copy(update={"offset": offset})


def _error(message: str) -> bytes:
    return dumps({"errorDetail": {"message": message}, "error": message}) + b"\r\n"


def _is_known(views: ImageViews, image_id: str, tags: list[str]) -> bool:
    """Whether our own copy of the records has what was built."""
    return views.get(image_id) is not None and all(views.names(t) == image_id for t in tags)

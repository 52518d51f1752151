"""Building images with the classic builder's API."""

from __future__ import annotations

import asyncio
import contextlib
import secrets

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
    BuildOutput,
    CancelBuild,
    OpenBuild,
    StartBuild,
)
from mooring.kit.streams import Uploader, download, upload

_FILTERS = frozenset({"until", "id", "parent", "type", "description", "inuse", "shared", "private"})


class _Out:
    """The answer's body, whose head is sent with its first byte."""

    def __init__(self, request: Request) -> None:
        self.stream: ResponseStream | None = None
        self._request = request

    async def write(self, data: bytes) -> None:
        """Send some of it."""
        if self.stream is None:
            self.stream = self._request.stream(JSON)
        await self.stream.write(data)


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
        node, build = engine.node().id, secrets.token_hex(8)
        name = request.get("buildid")
        if name:
            self._named[name] = (node, build)
        subject = subjects.runtime(node, subjects.RUNTIME_BUILD_OPEN)
        # Most often a builder is there, and begins with the build before its worker hears of it.
        # One that has begun stays until it is done.
        opening = asyncio.ensure_future(engine.ask(subject, OpenBuild(), Done))
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
            await asyncio.gather(opening, return_exceptions=True)
            if not over:
                engine.background(self._cancel(node, build))

    async def _follow(
        self, request: Request, node: str, message: StartBuild, sending: Uploader[BuildDone]
    ) -> Reply | None:
        """Pass the output on until it ends; the error of a build that said nothing is raised."""
        out = _Out(request)
        where = subjects.builder(node, subjects.BUILDER_OUTPUT)
        building = asyncio.ensure_future(sending.finish())
        telling = asyncio.ensure_future(self._tell(where, message.build, out))
        try:
            # A builder that died has no more to say: whoever waited for its words would wait long.
            await asyncio.wait({building, telling}, return_when=asyncio.FIRST_COMPLETED)
            if building.done():
                building.result()
            await telling
            done = await building
        except EngineError as exc:
            if out.stream is None:
                raise
            await out.write(_error(exc.message))
        else:
            if done.image_id:
                views, tags = self._gateway.engine.images, message.options.tags
                await views.until(lambda: _is_known(views, done.image_id, tags))
        finally:
            for task in (building, telling):
                task.cancel()
            await asyncio.gather(building, telling, return_exceptions=True)
        if out.stream is None:
            return Reply(200, b"", JSON)
        out.stream.end()
        return None

    async def _tell(self, where: str, build: str, out: _Out) -> None:
        bus, opening = self._gateway.engine.bus, BuildOutput(build=build)
        async with download(bus, where, opening, resume=_resume) as reading:
            async for _, data in reading:
                await out.write(bytes(data))

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

"""What leaves the engine as a tar: images (`save`), a container's files (`export`); and `diff`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mooring.gateway.gateway import Gateway
from mooring.gateway.http.connection import Kind
from mooring.gateway.http.reply import Reply, json_reply
from mooring.gateway.http.request import Request
from mooring.gateway.router import Route
from mooring.gateway.schema import platform
from mooring.gateway.views.saved import selected
from mooring.kit import subjects
from mooring.kit.errors import EngineError, InvalidParameter
from mooring.kit.models.base import Request as Message
from mooring.kit.models.container import ContainerRecord
from mooring.kit.models.image import (
    Changes,
    ExportContainer,
    ImageRecord,
    ListChanges,
    SavedImage,
    SaveImages,
)
from mooring.kit.streams import download

from .notes import note, note_images

Q = TypeVar("Q", bound=Message)

_TAR = "application/x-tar"
_SLOW = 600.0
"""Seconds for looking through all that a container has written."""


class SavingRoutes:
    """The hosts make the bytes; they pass through here."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        """See Router."""
        return [
            Route("GET", "/images/get", Kind.STREAM, self.save_several),
            Route("GET", "/images/{name}/get", Kind.STREAM, self.save),
            Route("GET", "/containers/{id}/export", Kind.STREAM, self.export),
            Route("GET", "/containers/{id}/changes", Kind.STREAM, self.changes),
        ]

    async def save(self, request: Request) -> Reply | None:
        """One image, or all tags of a repository."""
        return await self._save(request, [request.name])

    async def save_several(self, request: Request) -> Reply | None:
        """Every image that is named, in one archive."""
        # Docker takes several names in one value as well.
        names = [name for value in request.query.get("names", []) for name in value.split(",")]
        return await self._save(request, [name for name in names if name])

    async def _save(self, request: Request, names: list[str]) -> Reply | None:
        if not names:
            raise InvalidParameter("no image was named: give one or more names")
        engine = self._gateway.engine
        chosen = selected(engine.images, names)
        for image, references in chosen.values():
            platform.check(request, image, references[0] if references else image.id)
        saved = [
            SavedImage(image=image, references=references) for image, references in chosen.values()
        ]
        await note_images(engine, list(chosen), "save")
        node = _node_of(saved) or engine.node().id
        message = SaveImages(images=saved, began=time.time())
        await self._send(request, node, subjects.RUNTIME_IMAGE_SAVE, message)
        return None

    async def export(self, request: Request) -> Reply | None:
        """All that a container sees of its own files."""
        record = self._gateway.engine.containers.find(request.name)
        message = ExportContainer(container=record.id, image=self._image_of(record))

        async def begun() -> None:
            await note(self._gateway.engine, record.id, "export")

        await self._send(request, record.node, subjects.RUNTIME_EXPORT, message, begun)
        return None

    async def changes(self, request: Request) -> Reply:
        """What a container has added, changed and deleted."""
        record = self._gateway.engine.containers.find(request.name)
        message = ListChanges(container=record.id, image=self._image_of(record))
        subject = subjects.runtime(record.node, subjects.RUNTIME_CHANGES)
        found = await self._gateway.engine.bus.request(subject, message, Changes, timeout=_SLOW)
        rows = [{"Path": path, "Kind": kind} for path, kind in found.changes]
        # Docker's answer to no changes at all.
        return json_reply(rows or None)

    def _image_of(self, record: ContainerRecord) -> ImageRecord | None:
        return self._gateway.engine.images.get(record.image_id)

    async def _send(
        self,
        request: Request,
        node: str,
        verb: str,
        message: SaveImages | ExportContainer,
        begun: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """begun: done when there is something to send, before it is."""
        subject = subjects.runtime(node, verb)
        bus = self._gateway.engine.bus

        def resume(again: Q, offset: int) -> Q:
            return again.model_copy(update={"offset": offset, "request_id": ""})

        async with download(bus, subject, message, resume=resume) as reading:
            pieces = aiter(reading)
            # What fails at once can still be told with a status.
            first = await anext(pieces, None)
            if first is None and reading.reason != "end":
                raise EngineError(reading.reason)
            if begun is not None:
                await begun()
            stream = request.stream(_TAR)
            if first is not None:
                await stream.write(first[1])
            async for _, data in pieces:
                await stream.write(data)
            if reading.reason != "end":
                # Nothing but a cut answer says that it is not whole.
                raise ConnectionAbortedError(reading.reason)
            stream.end()


def _node_of(saved: list[SavedImage]) -> str:
    """A host that has them all; empty if there is none."""
    nodes = set.intersection(*(set(each.image.nodes) for each in saved))
    return min(nodes, default="")

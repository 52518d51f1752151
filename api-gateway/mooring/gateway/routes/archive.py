"""Files of containers: HEAD, GET and PUT of `/containers/{id}/archive`."""

from __future__ import annotations

import base64
import json
from typing import Any

from mooring.gateway import direct
from mooring.gateway.gateway import Gateway
from mooring.gateway.http.connection import Kind
from mooring.gateway.http.reply import Reply, dumps, empty
from mooring.gateway.http.request import Request
from mooring.gateway.http.stream import ResponseStream
from mooring.gateway.router import Route
from mooring.gateway.schema import query
from mooring.gateway.schema.archive import path_stat
from mooring.kit import subjects
from mooring.kit.errors import EngineError, InvalidParameter, NotFound
from mooring.kit.models.archive import ArchiveWritten, ReadArchive, WriteArchive
from mooring.kit.models.container import ContainerRecord
from mooring.kit.models.image import ImageRecord
from mooring.kit.streams import download, upload

from .notes import note

_TAR = "application/x-tar"
_STAT = "X-Docker-Container-Path-Stat"
_LENGTH = 4


class ArchiveRoutes:
    """What `docker cp` asks for. The bytes pass through, with back-pressure."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        """See Router."""
        return [
            Route("HEAD", "/containers/{id}/archive", Kind.STREAM, self.stat),
            Route("GET", "/containers/{id}/archive", Kind.STREAM, self.read),
            Route("PUT", "/containers/{id}/archive", Kind.STREAM, self.write),
        ]

    async def stat(self, request: Request) -> Reply:
        """What is at a path, in a header."""
        message = self._reading(request, stat_only=True)
        subject = subjects.runtime(message.record.node, subjects.RUNTIME_ARCHIVE_READ)
        async with download(self._gateway.engine.bus, subject, message, resume=_broken) as source:
            head = b""
            async for _, piece in source:
                head += piece
        described, _ = _description(head)
        return Reply(200, b"", "", (_header(described),))

    async def read(self, request: Request) -> None:
        """What is at a path, with all below it."""
        message = self._reading(request, stat_only=False)
        engine = self._gateway.engine
        if direct.is_here(engine, message.record.node):
            async with direct.reading(engine, message) as (described, frames):
                if frames is not None:
                    stream = await self._begin(request, message, described)
                    async for data in frames:
                        await stream.write(data)
                    stream.end()
                    return
        await self._read_stream(request, message)

    async def _read_stream(self, request: Request, message: ReadArchive) -> None:
        """The same by way of the bus."""
        subject = subjects.runtime(message.record.node, subjects.RUNTIME_ARCHIVE_READ)
        async with download(self._gateway.engine.bus, subject, message, resume=_broken) as source:
            head, stream = b"", None
            async for _, piece in source:
                if stream is not None:
                    await stream.write(bytes(piece))
                    continue
                head += piece
                described, rest = _description(head)
                if described is not None:
                    stream = await self._begin(request, message, described)
                    await stream.write(rest)
            if stream is None or source.reason != "end":
                raise EngineError(source.reason or "the archive broke off")
            stream.end()

    async def _begin(
        self, request: Request, message: ReadArchive, described: dict[str, Any]
    ) -> ResponseStream:
        await note(self._gateway.engine, message.record.id, "archive-path")
        return request.stream(_TAR, 200, (_header(described),))

    async def write(self, request: Request) -> Reply:
        """Extract a tar, perhaps compressed, in a directory."""
        record, image, images = self._container(request)
        message = WriteArchive(
            record=record,
            image=image,
            images=images,
            container=request.name,
            path=_path(request),
            no_overwrite=_go_flag(request, "noOverwriteDirNonDir"),
            copy_ids=_go_flag(request, "copyUIDGID"),
        )
        engine = self._gateway.engine
        if direct.is_here(engine, record.node):
            async with direct.writing(engine, message) as sending:
                if sending is not None:
                    async for piece in request.chunks():
                        if not await sending.write(piece):
                            break
                    await sending.finish()
                    await note(engine, record.id, "extract-to-dir")
                    return empty(200)
        subject = subjects.runtime(record.node, subjects.RUNTIME_ARCHIVE_WRITE)
        async with upload(engine.bus, subject, message, ArchiveWritten) as sending:
            async for piece in request.chunks():
                await sending.write(piece)
            await sending.finish()
        await note(engine, record.id, "extract-to-dir")
        return empty(200)

    def _reading(self, request: Request, *, stat_only: bool) -> ReadArchive:
        record, image, images = self._container(request)
        return ReadArchive(
            record=record,
            image=image,
            images=images,
            container=request.name,
            path=_path(request),
            stat_only=stat_only,
        )

    def _container(
        self, request: Request
    ) -> tuple[ContainerRecord, ImageRecord, list[ImageRecord]]:
        engine = self._gateway.engine
        record = engine.containers.find(request.name)
        images = []
        for image_id in [record.image_id, *(m.image_id for m in record.mounts if m.image_id)]:
            image = engine.images.get(image_id)
            if image is None:
                raise NotFound(f"No such image: {image_id}")
            images.append(image)
        lean = record.model_copy(update={"outbox": [], "health": None})
        return lean, images[0], images[1:]


def _path(request: Request) -> str:
    path = request.get("path")
    if not path:
        raise InvalidParameter("bad parameter: path cannot be empty")
    if "\0" in path:
        raise InvalidParameter("bad parameter: path: invalid argument")
    return path


def _go_flag(request: Request, name: str) -> bool:
    return query.flag(request, name)


def _broken(message: ReadArchive, offset: int) -> ReadArchive:
    """An archive is made once: the files may have changed."""
    raise EngineError("the archive broke off: the host's runtime worker was restarted")


def _description(head: bytes) -> tuple[dict[str, Any] | None, bytes]:
    """What the stream begins with, and what follows; None as long as it is not whole."""
    if len(head) < _LENGTH:
        return None, b""
    end = _LENGTH + int.from_bytes(head[:_LENGTH], "big")
    if len(head) < end:
        return None, b""
    return json.loads(head[_LENGTH:end]), head[end:]


def _header(described: dict[str, Any] | None) -> tuple[str, str]:
    if described is None:
        raise EngineError("the archive broke off")
    return _STAT, base64.b64encode(dumps(path_stat(described))).decode()

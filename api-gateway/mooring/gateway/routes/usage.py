"""How much room images and containers take, and giving back that of unused images."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from typing import Any

from mooring.gateway.gateway import Gateway
from mooring.gateway.http.connection import Kind
from mooring.gateway.http.reply import Reply, json_reply
from mooring.gateway.http.request import Request
from mooring.gateway.router import Route
from mooring.gateway.schema import images as schema
from mooring.gateway.schema import query
from mooring.gateway.schema.volumes import volume
from mooring.gateway.views.image_filters import select
from mooring.kit import subjects
from mooring.kit.errors import EngineError, InvalidParameter
from mooring.kit.models.container import ContainerRecord
from mooring.kit.models.host import ContainerSize, HostSize
from mooring.kit.models.image import ImageRecord, ImagesPruned, PruneImages
from mooring.kit.models.volume import MeasureVolumes, VolumeSizes

from .images import shared_size

_PRUNE_FILTERS = frozenset({"dangling", "label", "label!", "until"})
_TYPES = ("container", "image", "volume", "build-cache")
_SLOW = 3600.0
_SIZE_TIMEOUT = 60.0
"""Seconds for one container, which may have written millions of files."""
_AT_ONCE = 4


class UsageRoutes:
    """`POST /images/prune` and `GET /system/df`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        """See Router."""
        return [
            Route("POST", "/images/prune", Kind.PLAIN, self.prune),
            Route("GET", "/system/df", Kind.STREAM, self.usage),
        ]

    async def prune(self, request: Request) -> Reply:
        """Delete images without a tag, or all that no container has."""
        given = query.filters(request, _PRUNE_FILTERS)
        message = PruneImages(
            all=query.boolean_filter(given, "dangling") is False,
            until_ns=query.until_filter(given),
            labels=given.get("label", []),
            labels_not=given.get("label!", []),
        )
        engine = self._gateway.engine
        pruned = await engine.bus.request(
            subjects.IMAGE_PRUNE, message, ImagesPruned, timeout=_SLOW
        )
        views = engine.images
        await views.until(lambda: not any(views.is_listed(image_id) for image_id in pruned.deleted))
        rows = [{"Untagged": name} for name in pruned.untagged]
        rows += [{"Deleted": digest} for digest in pruned.deleted]
        return json_reply({"ImagesDeleted": rows or None, "SpaceReclaimed": pruned.space_reclaimed})

    async def usage(self, request: Request) -> Reply:
        """What everything takes; only some kinds of it from API 1.42 on, if they are named."""
        kinds = request.query.get("type", []) if request.version >= (1, 42) else []
        for kind in kinds:
            if kind not in _TYPES:
                raise InvalidParameter(f"unknown object type: {kind}")
        wanted = kinds or _TYPES
        found: dict[str, Any] = {"BuilderSize": 0}
        if "image" in wanted:
            found |= self._images(request)
        if "container" in wanted:
            found["Containers"] = await self._containers()
        if "volume" in wanted:
            found["Volumes"] = await self._volumes()
        if "build-cache" in wanted:
            found["BuildCache"] = []
        return json_reply(found)

    def _images(self, request: Request) -> dict[str, Any]:
        engine = self._gateway.engine
        everything = [entry.record for entry in engine.images.images.values()]
        sizes = {layer.chain_id: layer.size for image in everything for layer in image.layers}
        users = Counter(layer.chain_id for image in everything for layer in image.layers)
        containers = Counter(record.image_id for record in engine.containers.newest_first())
        rows = [
            schema.summary(
                image,
                tags,
                engine.images.digests(image.id),
                version=request.version,
                containers=containers[image.id],
                shared_size=shared_size(image, users),
            )
            for image, tags in select(engine.images, {})
        ]
        return {"LayersSize": sum(sizes.values()), "Images": rows}

    async def _volumes(self) -> list[dict[str, Any]]:
        engine = self._gateway.engine
        records, users = engine.volumes.all(), engine.volumes.users()
        sizes: dict[str, int] = {}
        for node in {record.node for record in records}:
            names = [record.name for record in records if record.node == node]
            with contextlib.suppress(EngineError):
                found = await engine.bus.request(
                    subjects.runtime(node, subjects.RUNTIME_VOLUME_SIZES),
                    MeasureVolumes(names=names),
                    VolumeSizes,
                    timeout=_SLOW,
                )
                sizes |= found.sizes
        return [
            {
                **volume(record),
                "UsageData": {
                    "RefCount": users.get(record.name, 0),
                    "Size": sizes.get(record.name, -1),
                },
            }
            for record in records
        ]

    async def _containers(self) -> list[dict[str, Any]]:
        engine = self._gateway.engine
        slots = asyncio.Semaphore(_AT_ONCE)

        async def row(record: ContainerRecord) -> dict[str, Any]:
            async with slots:
                size = await self._size(record, engine.images.get(record.image_id))
            return {**json.loads(engine.containers.element(record)), **size}

        return list(await asyncio.gather(*map(row, engine.containers.newest_first())))

    async def _size(self, record: ContainerRecord, image: ImageRecord | None) -> dict[str, int]:
        below = sum(layer.size for layer in image.layers) if image is not None else 0
        with contextlib.suppress(EngineError):
            size = await self._gateway.engine.bus.request(
                subjects.runtime(record.node, subjects.RUNTIME_SIZE),
                HostSize(id=record.id, image=below),
                ContainerSize,
                timeout=_SIZE_TIMEOUT,
            )
            return {"SizeRw": size.size_rw, "SizeRootFs": size.size_root_fs}
        return {}

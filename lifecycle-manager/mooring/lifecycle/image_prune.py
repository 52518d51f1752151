"""`docker image prune`: which images go, by Docker's rules; removing them is as by hand."""

from __future__ import annotations

import logging
import time
from datetime import datetime

from mooring.kit import references
from mooring.kit.errors import Conflict, EngineError, NotFound, Unavailable
from mooring.kit.models.container import Event
from mooring.kit.models.image import ImageRecord, ImagesPruned, PruneImages, RemoveImage

from .engine import Engine
from .find_image import children_of, references_of
from .images import ImageHandlers
from .pruning import Prunes

logger = logging.getLogger(__name__)


class ImagePrune:
    """prune."""

    def __init__(self, engine: Engine, images: ImageHandlers) -> None:
        self._engine, self._images = engine, images
        self._prunes = Prunes()

    async def prune(self, request: PruneImages) -> ImagesPruned:
        """Remove what passes; Conflict while another prune runs."""
        with self._prunes.alone():
            return await self._prune(request)

    async def _prune(self, request: PruneImages) -> ImagesPruned:
        engine = self._engine
        sizes = {
            layer.chain_id: layer.size
            for image in engine.images.records()
            for layer in image.layers
        }
        result = ImagesPruned()
        for image in sorted(engine.images.records(), key=lambda image: image.added_ns):
            for name in self._names(image, request):
                try:
                    command = RemoveImage(image=name, request_id=f"{request.request_id}.{name}")
                    removed = await self._images.remove(command)
                except Unavailable:
                    raise
                except (Conflict, NotFound):
                    # Used since it was looked at, or gone with another one.
                    continue
                except EngineError as exc:
                    logger.warning("prune leaves image %s: %s", name, exc)
                    continue
                result.untagged += removed.untagged
                result.deleted += removed.deleted
                result.revision = max(result.revision, removed.revision)
        result.space_reclaimed = sum(sizes.get(digest, 0) for digest in result.deleted)
        event = Event(
            id=f"prune.{request.request_id}",
            type="image",
            action="prune",
            attributes={"reclaimed": str(result.space_reclaimed)},
            time_ns=time.time_ns(),
        )
        await engine.events.publish("prune", event)
        return result

    def _names(self, image: ImageRecord, request: PruneImages) -> list[str]:
        """What to remove it by: its references, or its id; nothing if it stays."""
        engine = self._engine
        if image.orphan or self._images.users(image.id):
            return []
        named = [record.reference for record in references_of(engine, image.id)]
        has_children = bool(children_of(engine, image.id))
        if has_children and (not named or not request.all):
            return []
        if not request.all and any(references.parse(name).tag for name in named):
            return []
        if not _passes(image, request):
            return []
        return [references.familiar(name) for name in named] or [image.id]


def _passes(image: ImageRecord, request: PruneImages) -> bool:
    if request.until_ns is not None and created_ns(image) > request.until_ns:
        return False
    labels: dict[str, str] = image.config.get("Labels") or {}
    return all(_has_label(labels, wanted) for wanted in request.labels) and not any(
        _has_label(labels, unwanted) for unwanted in request.labels_not
    )


def _has_label(labels: dict[str, str], wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)


def created_ns(image: ImageRecord) -> int:
    """When an image was made, Unix ns; 0 if it does not say."""
    try:
        return int(datetime.fromisoformat(image.created).timestamp() * 1e6) * 1000
    except (ValueError, OverflowError):
        return 0

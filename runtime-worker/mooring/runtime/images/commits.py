"""`docker commit` on the host of the container: paused if wanted, then a job of a loader."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.errors import Conflict, EngineError, NotFound
from mooring.kit.faults import point
from mooring.kit.models.base import Done
from mooring.kit.models.container import ContainerRecord, ContainerRequest, State
from mooring.kit.models.event import Event
from mooring.kit.models.image import CommitContainer, ImageCommitted

from . import platforms
from .records import Origin

if TYPE_CHECKING:
    from .service import ImageService

logger = logging.getLogger(__name__)

_FROZEN = "frozen"
"""In a job's directory: the id of the container that is paused for it."""


async def commit(service: ImageService, bus: Bus, request: CommitContainer) -> ImageCommitted:
    """Make the image and have it recorded; the errors of a loader's job."""
    record, image = request.record, request.image
    order = {
        "kind": "commit",
        "container": record.id,
        "directory": str(service.upper(record.id)),
        "image": image.id if image is not None else "",
        "platform": {"architecture": platforms.host().architecture, "os": "linux"},
        "given": request.config,
        "own": record.config.model_dump(by_alias=True, mode="json"),
        "changes": request.changes,
        "created_by": " ".join(record.config.cmd or []),
        "author": request.author,
        "message": request.message,
    }

    def event(image_id: str) -> Event:
        own = {"comment": request.message, "imageID": image_id, "imageRef": request.reference}
        return _event(record, request.request_id, own)

    origin = Origin(
        "commit",
        [request.reference] if request.reference else [],
        parent=image.id if image is not None else "",
        events=[event],
    )
    async with _frozen(service, bus, record, wanted=request.pause):
        loaded = await service.run(order, _nothing(), origin)
    return ImageCommitted(image_id=loaded.image_ids[0], revision=loaded.revision)


async def thaw(bus: Bus, job: Path) -> None:
    """Let the container go on that a killed worker has paused for a job."""
    with suppress(FileNotFoundError):
        container = (job / _FROZEN).read_text()
        logger.info("a commit was broken off, %s goes on", container)
        await _unpause(bus, container)


@asynccontextmanager
async def _frozen(
    service: ImageService, bus: Bus, record: ContainerRecord, *, wanted: bool
) -> AsyncIterator[None]:
    """The container paused for as long as the block lasts, if it runs and that is wanted."""
    if not wanted or record.state is not State.RUNNING:
        yield
        return
    job = service.store.new_job()
    (job / _FROZEN).write_text(record.id)
    try:
        try:
            await bus.request(subjects.CONTAINER_PAUSE, ContainerRequest(container=record.id), Done)
            paused = True
        except Conflict:
            # It has ended, or somebody else has paused it: nothing to undo then.
            paused = False
        point("runtime.commit.paused")
        try:
            yield
        finally:
            if paused:
                await asyncio.shield(_unpause(bus, record.id))
    finally:
        service.store.discard(job)


async def _unpause(bus: Bus, container: str) -> None:
    request = ContainerRequest(container=container)
    try:
        # Not paused, or not there: somebody else did it.
        with suppress(NotFound, Conflict):
            await bus.request(subjects.CONTAINER_UNPAUSE, request, Done)
    except EngineError as exc:
        logger.warning("cannot unpause %s after a commit: %s", container, exc)


def _event(record: ContainerRecord, request_id: str, own: dict[str, str]) -> Event:
    attributes = {**(record.config.labels or {}), **own}
    attributes |= {"image": record.image, "name": record.name}
    return Event(
        id=f"{record.id}.{request_id}.commit",
        action="commit",
        actor=record.id,
        attributes=attributes,
    )


async def _nothing() -> AsyncIterator[memoryview]:
    """A job that nothing is uploaded for."""
    empty: tuple[memoryview, ...] = ()
    for piece in empty:
        yield piece

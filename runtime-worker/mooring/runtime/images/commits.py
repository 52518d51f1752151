"""`docker commit` on the host of the container: paused if wanted, then a job of a loader."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.errors import Conflict, EngineError, NotFound
from mooring.kit.faults import point
from mooring.kit.models.base import Done
from mooring.kit.models.container import ContainerRecord, ContainerRequest, State
from mooring.kit.models.event import Event
from mooring.kit.models.image import CommitContainer, ImageCommitted
from mooring.kit.references import familiar

from . import platforms
from .commit import commit as make
from .load import LoadedImage
from .records import Origin

if TYPE_CHECKING:
    from .service import ImageService

logger = logging.getLogger(__name__)

_FEW, _LITTLE = 200, 256 << 20
"""Files, which take time of this process, and bytes of them, which hardly do."""
_FROZEN = "frozen"
"""In a job's directory: the id of the container that is paused for it."""


async def commit(service: ImageService, bus: Bus, request: CommitContainer) -> ImageCommitted:
    """Make the image and have it recorded; the errors of a loader's job."""
    record, image = request.record, request.image
    directory = service.upper(record.id)
    order = {
        "kind": "commit",
        "container": record.id,
        "directory": str(directory),
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
        reference = familiar(request.reference) if request.reference else ""
        own = {"comment": request.message, "imageID": image_id, "imageRef": reference}
        return _event(record, request.request_id, own)

    origin = Origin(
        "commit",
        [request.reference] if request.reference else [],
        parent=image.id if image is not None else "",
        events=[event],
    )
    async with _frozen(service, bus, record, wanted=request.pause):
        if is_small(directory):
            loaded = await service.run_here(lambda job: _commit_copy(service, job, order), origin)
        else:
            loaded = await service.run(order, _nothing(), origin)
    return ImageCommitted(image_id=loaded.image_ids[0], revision=loaded.revision)


def is_small(directory: Path) -> bool:
    """Whether so little is below a directory that a process for it would take longer."""
    files, size = 0, 0
    pending = [directory]
    while pending:
        with suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                files += 1
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(Path(entry.path))
                    else:
                        size += entry.stat(follow_symlinks=False).st_size
                if files > _FEW or size > _LITTLE:
                    return False
    return True


def _commit_copy(service: ImageService, job: Path, order: dict[str, Any]) -> LoadedImage:
    """In a thread: the image of a copy of what was written, whose files become the layer's."""
    copy = job / "copy"
    directory = Path(order["directory"])
    if directory.is_dir():
        _copy(directory, copy)
    return make(service.store, job, {**order, "directory": str(copy), "move": True})


def _copy(source: Path, target: Path) -> None:
    """cp(1) with everything; OSError with its last word."""
    command = ["cp", "--archive", "--no-target-directory", "--", str(source), str(target)]
    said = os.memfd_create("cp")
    try:
        # Not by fork: copying the tables of this process's memory would cost more than the copy.
        pid = os.posix_spawnp(
            "cp",
            command,
            {**os.environ, "LC_ALL": "C"},
            file_actions=[(os.POSIX_SPAWN_DUP2, said, 2)],
        )
        _, status = os.waitpid(pid, 0)
        if status:
            words = os.pread(said, 1 << 16, 0).decode("utf-8", "replace").strip()
            reason = words.rpartition(": ")[2] or f"status {status}"
            raise OSError(f"copying what the container has written failed: {reason}")
    finally:
        os.close(said)


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

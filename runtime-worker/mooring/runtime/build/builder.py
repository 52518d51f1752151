"""The builder process: serves builds on the bus, several at once, until its worker ends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.errors import EngineError, InvalidParameter, NotFound, Unavailable
from mooring.kit.models.base import Done
from mooring.kit.models.build import (
    BuildDone,
    BuildOutput,
    CancelBuild,
    DropBuild,
    StartBuild,
)
from mooring.kit.models.container import ContainerRecord, RemoveContainer, State
from mooring.kit.models.image import ImageRecord, ReferenceRecord
from mooring.kit.streams import Source, Upload, serve_downloads, serve_uploads
from mooring.runtime.images import platforms
from mooring.runtime.images.pending import Pending
from mooring.runtime.images.store import ImageStore

from . import intake
from .build import Build, Parts, explain
from .images import ImageIndex
from .output import Output
from .run import ANNOTATION

logger = logging.getLogger(__name__)

ABANDONED = 15.0
"""Seconds without a reader of its output after which a build ends: its client is gone."""
_LOOK = 4.0
"""Seconds between two looks for the client: not to be there in two of them is to be gone."""
LASTING = 15.0
"""Seconds after which the worker is told that there are builds: less than it lets one idle."""
_KEPT = 30.0
"""Seconds that the output of a finished build waits for its reader."""
_LEFTOVER_TIMEOUT = 30.0


class Running:
    """One build and its output."""

    def __init__(self) -> None:
        self.output = Output()
        self.task: asyncio.Task[object] | None = None
        self.readers = 0
        self.watch: asyncio.TimerHandle | None = None


class _Reader:
    """A Source of kit.streams over the output of a build."""

    def __init__(self, output: Output, closed: Callable[[], None]) -> None:
        self._output = output
        self._closed = closed

    async def read(self, offset: int, limit: int) -> bytes:
        """See Source."""
        return await self._output.read(offset, limit)

    async def close(self) -> None:
        """See Source."""
        self._closed()


class Builder:
    """All builds of this process. busy is told when they go on for long, and then of their end."""

    def __init__(self, bus: Bus, settings: Settings, busy: Callable[[bool], None]) -> None:
        self._bus = bus
        self._settings = settings
        self._node = settings.node_id
        self._busy = busy
        self._builds: dict[str, Running] = {}
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._lasting: asyncio.TimerHandle
        self._told = False
        """Whether the worker knows that there are builds."""
        self._ending: set[asyncio.Task[None]] = set()
        self._directory = builds_directory(settings.state_dir)
        self._store = ImageStore(settings.state_dir)
        self._index: ImageIndex

    async def serve(self) -> None:
        """Copy the records, tidy up after a builder that was killed, and answer from then on."""
        images = await self._bus.bucket(subjects.BUCKET_IMAGES, ImageRecord)
        names = await self._bus.bucket(subjects.BUCKET_REFERENCES, ReferenceRecord)
        self._index = ImageIndex(await images.mirror(), await names.mirror())
        await self._tidy()

        def subject(verb: str) -> str:
            return subjects.builder(self._node, verb)

        await serve_downloads(
            self._bus, subject(subjects.BUILDER_OUTPUT), BuildOutput, self.open_output
        )
        await self._bus.serve(subject(subjects.BUILDER_CANCEL), CancelBuild, self.cancel)
        await serve_uploads(self._bus, subject(subjects.BUILDER_START), StartBuild, self.start)

    async def start(self, request: StartBuild, upload: Upload) -> BuildDone:
        """Receive a context and build; the errors of a build that said something are in there."""
        running = self._running(request.build)
        output = running.output
        output.quiet = request.options.quiet
        running.task = asyncio.current_task()
        self._watch(request.build, running)
        self._active += 1
        if self._active == 1:
            self._idle.clear()
            self._lasting = asyncio.get_running_loop().call_later(LASTING, self._lasts)
        job = self._directory / request.build
        watching = asyncio.create_task(_watch_client(upload, running), name="client of a build")
        try:
            job.mkdir(mode=0o700)
            image_id = await self._build(request, upload, job, output)
            return BuildDone(image_id=image_id)
        except asyncio.CancelledError:
            raise
        except Exception as exc:
            if not isinstance(exc, EngineError):
                logger.debug("a build failed", exc_info=True)
            return self._failed(exc, output)
        finally:
            watching.cancel()
            output.end()
            running.task = None
            asyncio.get_running_loop().call_later(_KEPT, self._builds.pop, request.build, None)
            # The client need not wait for that.
            ending = asyncio.create_task(self._end(request.build), name=f"end of {request.build}")
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def _end(self, build: str) -> None:
        if not await asyncio.to_thread(_removed, self._directory / build):
            await self._drop(build, [])
        self._active -= 1
        if not self._active:
            self._idle.set()
            self._lasting.cancel()
            if self._told:
                self._told = False
                self._busy(False)

    def _lasts(self) -> None:
        self._told = True
        self._busy(True)

    async def _build(self, request: StartBuild, upload: Upload, job: Path, output: Output) -> str:
        options = request.options
        # What is wrong with it is said before the first step, and before a context is read.
        platforms.parse(options.platform)
        context = await intake.receive(upload, options, job, self._settings.build_max_context)
        try:
            dockerfile = intake.read_dockerfile(context, options)
            parts = Parts(
                self._bus,
                self._node,
                self._store,
                self._index,
                self._settings.state_dir,
                self._settings.build_max_context,
            )
            return await Build(parts, request.build, options, job, output, context).run(dockerfile)
        finally:
            context.close()

    def _failed(self, exc: Exception, output: Output) -> BuildDone:
        message, code = explain(exc)
        known = isinstance(exc, EngineError) or message != f"internal error: {exc}"
        if not known:
            logger.error("a build failed", exc_info=exc)
        if not output.silent:
            output.failed(message, code)
            return BuildDone()
        if isinstance(exc, EngineError):
            raise exc
        raise InvalidParameter(message) if known else EngineError(message)

    async def open_output(self, request: BuildOutput) -> tuple[Source, int]:
        """The output of a build that has begun, or begins now; NotFound."""
        if request.build not in self._builds and request.offset:
            raise NotFound("the build was broken off: its builder was restarted")
        running = self._running(request.build)
        running.readers += 1

        def closed() -> None:
            running.readers -= 1
            self._watch(request.build, running)

        return _Reader(running.output, closed), request.offset

    async def cancel(self, request: CancelBuild) -> Done:
        """End a build; nothing if it is over."""
        running = self._builds.get(request.build)
        if running is not None and running.task is not None:
            running.task.cancel()
        return Done()

    async def finish(self) -> None:
        """Wait for the builds that go on: one may have begun as this process was told to end."""
        await self._idle.wait()

    def _running(self, build: str) -> Running:
        if not build.isalnum():
            raise NotFound(f"no such build: {build}")
        return self._builds.setdefault(build, Running())

    def _watch(self, build: str, running: Running) -> None:
        """A build whose output nobody reads for a while has lost its client."""
        if running.watch is not None:
            running.watch.cancel()

        def look() -> None:
            if running.readers <= 0 and running.task is None:
                # Over, or it was another builder's.
                self._builds.pop(build, None)
            elif running.readers <= 0 and running.task is not None:
                logger.info("nobody waits for build %s any more, ending it", build)
                running.task.cancel()

        running.watch = asyncio.get_running_loop().call_later(ABANDONED, look)

    # --- what a killed builder left ---

    async def _tidy(self) -> None:
        left = [path for path in self._directory.iterdir() if path.is_dir()]
        if not left:
            return
        builds = {path.name for path in left}
        containers = await self._bus.bucket(subjects.BUCKET_CONTAINERS, ContainerRecord)
        mirror = await containers.mirror()
        for entry in mirror.values():
            record = entry.record
            build = (record.host_config.annotations or {}).get(ANNOTATION, "")
            if build in builds and record.node == self._node and record.state != State.REMOVED:
                logger.info("removing container %s of a build that was broken off", record.id)
                message = RemoveContainer(container=record.id, force=True, volumes=True)
                with contextlib.suppress(NotFound):
                    await self._bus.request(
                        subjects.CONTAINER_REMOVE, message, Done, timeout=_LEFTOVER_TIMEOUT
                    )
        await containers.close()
        images = [entry.record for entry in self._index.mirror.values()]
        keep = {image.id for image in images}
        keep |= {layer.chain_id for image in images for layer in image.layers}
        for build in builds:
            await self._drop(build, sorted(keep))

    async def _drop(self, build: str, keep: list[str]) -> None:
        """Have the worker undo what was not recorded; the build's directory goes."""
        subject = subjects.runtime(self._node, subjects.RUNTIME_BUILD_DROP)
        try:
            await self._bus.request(subject, DropBuild(build=build, keep=keep), Done)
        except Unavailable:
            # The next builder finds the directory and does it.
            logger.warning("build %s is tidied up later", build)


async def _watch_client(upload: Upload, running: Running) -> None:
    """End a build whose gateway died, and its client's connection with it."""
    missed = 0
    while missed < 2:
        await asyncio.sleep(_LOOK)
        missed = 0 if await upload.has_writer() else missed + 1
    if running.task is not None:
        logger.info("the client of a build is gone, ending it")
        running.task.cancel()


def _removed(job: Path) -> bool:
    """Remove the directory of a build that made nothing, or had all of it recorded.

    False if there is more to it: then it takes the worker, and whoever can delete any tree.
    """
    if Pending(job).entries():
        return False
    try:
        with os.scandir(job) as entries:
            for entry in entries:
                (os.rmdir if entry.is_dir(follow_symlinks=False) else os.unlink)(entry.path)
        os.rmdir(job)
    except OSError:
        return False
    return True


def builds_directory(state_dir: Path) -> Path:
    """Where each build of this host has a directory while it goes on."""
    return state_dir / "builds"

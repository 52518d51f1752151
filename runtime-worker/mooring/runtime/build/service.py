"""The worker's side of `docker build`: a builder process when one is wanted, and what it keeps.

The builder is started at the first build and ended after a minute without one, so the worker never
grows by it. Whatever it made that no record needs is undone here, under the lock of the images.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.errors import InvalidParameter, Unavailable
from mooring.kit.models.base import Done
from mooring.kit.models.build import DropBuild, KeepImages, OpenBuild
from mooring.runtime.images.service import ImageService

logger = logging.getLogger(__name__)

IDLE = 60.0
"""Seconds without a build after which the builder is ended."""
_START_TIMEOUT = 20.0


class BuildService:
    """Starts builders and answers them."""

    def __init__(self, bus: Bus, settings: Settings, images: ImageService) -> None:
        self._bus = bus
        self._settings = settings
        self._images = images
        self._directory = settings.state_dir / "builds"
        self._lock = asyncio.Lock()
        self._process: Process | None = None
        self._leaving: Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False

    async def serve(self) -> None:
        """Answer on the bus; have a builder tidy up if one was killed."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        node = self._settings.node_id

        def subject(verb: str) -> str:
            return subjects.runtime(node, verb)

        await self._bus.serve(subject(subjects.RUNTIME_BUILD_OPEN), OpenBuild, self.open)
        await self._bus.serve(subject(subjects.RUNTIME_BUILD_KEEP), KeepImages, self.keep)
        await self._bus.serve(subject(subjects.RUNTIME_BUILD_DROP), DropBuild, self.drop)

    async def recover(self) -> None:
        """Have a builder undo what killed ones left, if they left something."""
        if any(self._directory.iterdir()):
            with contextlib.suppress(Unavailable):
                await self._ensure()

    async def open(self, request: OpenBuild) -> Done:
        """Have a builder that stays for a while; Unavailable if it does not start."""
        await self._ensure()
        return Done()

    async def keep(self, request: KeepImages) -> Done:
        """Record what a build made."""
        job = self._job(request.build)
        return Done(revision=await self._images.keep_built(job, request.images))

    async def drop(self, request: DropBuild) -> Done:
        """Undo what a build made and nobody recorded; its directory is gone afterwards."""
        await self._images.drop_built(self._job(request.build), set(request.keep))
        return Done()

    async def close(self) -> None:
        """End the builder; builds that go on are broken off, and tidied up by the next."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        process = self._process
        if process is not None and process.returncode is None:
            assert process.stdin is not None
            process.stdin.close()
            try:
                async with asyncio.timeout(3.0):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        if self._watching is not None:
            await asyncio.gather(self._watching, return_exceptions=True)

    def _job(self, build: str) -> Path:
        if not build.isalnum():
            raise InvalidParameter(f"no such build: {build}")
        return self._directory / build

    async def _ensure(self) -> None:
        async with self._lock:
            self._rest(IDLE)
            if self._process is not None:
                return
            if self._leaving is not None:
                # Two at once would hear the same requests.
                await self._leaving.wait()
                self._leaving = None
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "mooring.runtime.build",
                str(os.getpid()),
                stdin=PIPE,
                stdout=PIPE,
                env={**os.environ, **self._settings.environment()},
                cwd="/",
            )
            assert process.stdout is not None
            try:
                async with asyncio.timeout(_START_TIMEOUT):
                    line = await process.stdout.readline()
            except TimeoutError:
                line = b""
            if line != b"ready\n":
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
                raise Unavailable("the builder does not start: see the log of the runtime worker")
            self._process = process
            self._watching = asyncio.create_task(self._watch(process), name="builder")

    def _rest(self, seconds: float) -> None:
        """End the builder after this time, unless it is wanted again; 0: it is at work."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._dismiss)

    def _dismiss(self) -> None:
        self._leaving = process = self._process
        self._process = None
        if process is not None and process.stdin is not None:
            process.stdin.close()

    async def _watch(self, process: Process) -> None:
        """Follow what the builder says; if it dies, another one tidies up."""
        assert process.stdout is not None
        while line := await process.stdout.readline():
            if process is self._process:
                self._rest(0.0 if line == b"busy\n" else IDLE)
        await process.wait()
        if self._process is not process:
            return
        self._process = None
        if process.returncode and not self._closing:
            logger.warning("the builder ended with status %s", process.returncode)
            await self.recover()


async def serve(bus: Bus, settings: Settings, images: ImageService) -> BuildService:
    """Answer for the builds of this host; `close` the service in the end."""
    service = BuildService(bus, settings, images)
    await service.serve()
    return service

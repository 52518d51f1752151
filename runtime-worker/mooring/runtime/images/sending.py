"""What leaves this host: archives of images, container file systems, lists of changes.

A saver process (saver.py) makes the bytes; they are read from its pipe as fast as the reader of
the stream takes them.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from typing import Any

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.errors import EngineError, NotFound
from mooring.kit.models.image import (
    Changes,
    ExportContainer,
    ImageRecord,
    ListChanges,
    SaveImages,
)
from mooring.kit.streams import Source, serve_downloads
from mooring.runtime.snapshots import Snapshots


class Pipe:
    """A Source: what a process writes to its stdout, from the offset it was started at."""

    def __init__(self, process: Process, fd: int) -> None:
        self._process, self._fd = process, fd
        self._loop = asyncio.get_running_loop()
        os.set_blocking(fd, False)

    async def read(self, offset: int, limit: int) -> bytes:
        """Up to limit bytes; EngineError with what the process said if it failed."""
        while True:
            try:
                data = os.read(self._fd, limit)
            except BlockingIOError:
                await self._readable()
                continue
            if not data:
                await self._check()
            return data

    async def close(self) -> None:
        """End the process, whatever it has written."""
        os.close(self._fd)
        await end(self._process)

    async def _readable(self) -> None:
        arrived: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._fd, _wake, arrived)
        try:
            await arrived
        finally:
            self._loop.remove_reader(self._fd)

    async def _check(self) -> None:
        assert self._process.stderr is not None
        said = await self._process.stderr.read()
        if await self._process.wait():
            raise EngineError(said.decode(errors="replace") or "the bytes could not be read")


class Sending:
    """Answers for archives, exports and changes of this host."""

    def __init__(self, settings: Settings, snapshots: Snapshots) -> None:
        self._settings, self._snapshots = settings, snapshots

    async def save(self, request: SaveImages) -> tuple[Source, int]:
        """An archive of images; the same bytes each time."""
        images = [
            {
                "id": saved.image.id,
                "architecture": saved.image.architecture,
                "variant": saved.image.variant,
                "chain_ids": [layer.chain_id for layer in saved.image.layers],
                "references": saved.references,
            }
            for saved in request.images
        ]
        order = {"kind": "save", "images": images, "offset": request.offset, "began": request.began}
        return await self._open(order), request.offset

    async def export(self, request: ExportContainer) -> tuple[Source, int]:
        """A container's file system as a tar; the same bytes only while it does not run."""
        order = {**self._files(request.container, request.image), "offset": request.offset}
        return await self._open({"kind": "export", **order}), request.offset

    async def changes(self, request: ListChanges) -> Changes:
        """What a container's own files are, compared to its image's."""
        source = await self._open(
            {"kind": "changes", **self._files(request.container, request.image)}
        )
        pieces = []
        try:
            while piece := await source.read(0, 1 << 20):
                pieces.append(piece)
        finally:
            await source.close()
        found = json.loads(b"".join(pieces))
        return Changes(changes=[(change["path"], change["kind"]) for change in found])

    def _files(self, container: str, image: ImageRecord | None) -> dict[str, Any]:
        if image is None:
            raise NotFound(f"the image of container {container[:12]} is gone")
        # Made if it never ran: what it would see is exported then.
        overlay = self._snapshots.prepare(container, image)
        return {"upper": overlay.upper, "lowers": overlay.lowers}

    async def _open(self, order: dict[str, Any]) -> Pipe:
        order |= {"state_dir": str(self._settings.state_dir), "parent": os.getpid()}
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "mooring.runtime.images.saver",
                stdin=PIPE,
                stdout=writing,
                stderr=PIPE,
                cwd="/",
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        assert process.stdin is not None
        with suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(json.dumps(order).encode())
            await process.stdin.drain()
        process.stdin.close()
        return Pipe(process, reading)


async def end(process: Process) -> None:
    """Kill a process that may have ended, and bury it."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _wake(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)


async def serve(bus: Bus, settings: Settings, snapshots: Snapshots) -> None:
    """Answer for what leaves this host."""
    sending = Sending(settings, snapshots)

    def subject(verb: str) -> str:
        return subjects.runtime(settings.node_id, verb)

    await serve_downloads(bus, subject(subjects.RUNTIME_IMAGE_SAVE), SaveImages, sending.save)
    await serve_downloads(bus, subject(subjects.RUNTIME_EXPORT), ExportContainer, sending.export)
    await bus.serve(subject(subjects.RUNTIME_CHANGES), ListChanges, sending.changes)

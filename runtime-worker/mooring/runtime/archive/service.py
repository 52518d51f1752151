"""`docker cp` on the bus: streams between gateways and the helper processes that copy."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import socket
import struct
import sysconfig
from collections.abc import AsyncIterable
from typing import Any

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.errors import EngineError, Unavailable
from mooring.kit.models.archive import (
    ArchiveOpened,
    ArchiveRequest,
    ArchiveWritten,
    ReadArchive,
    WriteArchive,
)
from mooring.kit.streams import serve_downloads, serve_uploads
from mooring.runtime import mounts
from mooring.runtime.bundle import Bundles
from mooring.runtime.helpers import Helper, answer_of, receive
from mooring.runtime.layout import Layout
from mooring.runtime.locks import KeyedLocks
from mooring.runtime.runs import Run, Runs, start_time
from mooring.runtime.snapshots import Snapshots
from mooring.runtime.users import Users
from mooring.runtime.volumes.volumes import Volumes

_PIPE = 1 << 20
"""Bytes on their way between a helper and this process."""
_HELPER = "mooring.runtime.archive.helper"


class _Copy:
    """One copy: its helper, its end of the pipe, what it holds while it lasts."""

    def __init__(
        self, parts: Archives, request: ArchiveRequest, *, write: bool, direct: bool = False
    ) -> None:
        self._direct = direct
        self.path = ""
        self._parts = parts
        self._request = request
        self._write = write
        self._stack = contextlib.AsyncExitStack()
        self.helper: Helper
        self.pipe = -1

    async def open(self, job: dict[str, Any]) -> None:
        """Start the helper with its job; EngineError."""
        try:
            await self._open(job)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End the helper, whatever it is at."""
        await self._stack.aclose()

    async def _open(self, job: dict[str, Any]) -> None:
        parts, record = self._parts, self._request.record
        run = parts.runs.live(record.id)
        if run is None and self._write:
            # No start while its files are written to from outside.
            await self._stack.enter_async_context(parts.locks.hold(record.id))
            run = parts.runs.live(record.id)
        descriptors: list[int] = []
        try:
            ours = -2
            if self._direct:
                descriptors.append(self._listen())
            else:
                ours, theirs = self._pipes()
                descriptors.append(theirs)
            if run is not None:
                descriptors.append(_open_init(run))
                job |= {"mounts": _mounts_of(run), "rootfs": None}
            else:
                job |= await self._stopped()
                if self._write:
                    job["stall"] = parts.stall
            job |= {"container": self._request.container, "write": self._write}
            job["direct"] = self._direct
            job |= {"path": self._request.path, "site": [sysconfig.get_path("purelib")]}
            helper = Helper(_HELPER, parts.environment)
            self.helper = await self._stack.enter_async_context(helper)
            self.helper.send(job, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self.pipe = ours

    def _listen(self) -> int:
        """A socket for the gateway to connect to, for as long as this lasts."""
        self.path = f"{self._parts.directory}/{secrets.token_hex(8)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(self.path)
            self._stack.callback(_unlink, self.path)
            listener.listen(1)
            return listener.detach()

    def _pipes(self) -> tuple[int, int]:
        readable, writable = os.pipe2(os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.fcntl(writable, fcntl.F_SETPIPE_SZ, _PIPE)
        ours, theirs = (writable, readable) if self._write else (readable, writable)
        os.set_blocking(ours, False)
        self._stack.callback(self._close_pipe, ours)
        return ours, theirs

    def _close_pipe(self, pipe: int) -> None:
        if self.pipe != -2:
            os.close(pipe)
        self.pipe = -2

    def end(self) -> None:
        """All is written."""
        os.close(self.pipe)
        self.pipe = -2

    async def _stopped(self) -> dict[str, Any]:
        """Its snapshot, and what would be mounted in it."""
        parts, request = self._parts, self._request
        record = request.record
        directory = parts.layout.container(record.id)
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o711)
        overlay = parts.snapshots.prepare(record.id, request.image)
        points = [p for p in parts.bundles.user_mounts(request) if p.type != "tmpfs"]
        holder = f"copy.{id(self)}"
        self._stack.push_async_callback(parts.volumes.release, holder)
        await parts.volumes.acquire(holder, [p for p in points if p.type == "volume"])
        return {
            "mounts": [
                mounts.user_mount(point)
                for point in points
                if point.type != "bind" or os.path.exists(point.source)
            ],
            "rootfs": {
                "lowers": list(overlay.lowers),
                "upper": str(overlay.upper),
                "work": str(overlay.work),
            },
        }

    # --- the answer ---

    async def answer(self) -> dict[str, Any]:
        """The helper's next answer; its EngineError."""
        return answer_of(await receive(self.helper.socket))


def _open_init(run: Run) -> int:
    """A pidfd of a run's init; EngineError if it has just ended."""
    try:
        descriptor = os.pidfd_open(run.init_pid)
    except ProcessLookupError:
        raise Unavailable("the container is stopping, try again") from None
    if start_time(run.init_pid) < 0:
        os.close(descriptor)
        raise Unavailable("the container is stopping, try again")
    return descriptor


def _mounts_of(run: Run) -> list[dict[str, Any]]:
    """What a running container shows of the host: its volumes, binds, files of /etc, images."""
    with open(f"{run.directory}/config.json", "rb") as file:
        listed = json.load(file)["mounts"]
    return [
        mount
        for mount in listed
        if (mount["type"] in ("bind", "overlay")) and not mount["destination"].startswith("/dev/")
    ]


class _Reading:
    """The source of a download: the description, then the archive as the helper writes it."""

    def __init__(self, copy: _Copy, head: bytes, *, whole: bool) -> None:
        self._copy = copy
        self._head = head
        self._whole = whole
        self._loop = asyncio.get_running_loop()

    async def read(self, offset: int, limit: int) -> bytes:
        """See Source."""
        if self._head:
            piece, self._head = self._head[:limit], self._head[limit:]
            return piece
        if self._whole:
            return b""
        while True:
            try:
                data = os.read(self._copy.pipe, limit)
            except BlockingIOError:
                await _ready(self._loop.add_reader, self._loop.remove_reader, self._copy.pipe)
                continue
            if not data:
                # That was all, or the helper has died or says what is wrong.
                await self._copy.answer()
            return data

    async def close(self) -> None:
        """See Source."""
        await self._copy.close()


async def _ready(add: Any, remove: Any, descriptor: int) -> None:
    future = asyncio.get_running_loop().create_future()

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    add(descriptor, wake)
    try:
        await future
    finally:
        remove(descriptor)


class Archives:
    """Reads and writes archives of the containers of this host."""

    def __init__(
        self,
        layout: Layout,
        runs: Runs,
        bundles: Bundles,
        snapshots: Snapshots,
        users: Users,
        volumes: Volumes,
        locks: KeyedLocks,
        environment: dict[str, str],
        stall: float,
    ) -> None:
        self.stall = stall
        """Seconds that a copy into a stopped container may keep it waiting for a byte."""
        self.layout = layout
        self.directory = f"{layout.run}/archive"
        self._tasks: set[asyncio.Task[None]] = set()
        shutil.rmtree(self.directory, ignore_errors=True)
        os.makedirs(self.directory, mode=0o700)
        self.runs = runs
        self.bundles = bundles
        self.snapshots = snapshots
        self.users = users
        self.volumes = volumes
        self.locks = locks
        self.environment = environment

    async def read(self, request: ReadArchive) -> tuple[_Reading, int]:
        """Open a stream of what is at a path; NotFound."""
        copy = _Copy(self, request, write=False)
        op = "stat" if request.stat_only else "read"
        await copy.open({"op": op})
        try:
            described = json.dumps(await copy.answer()).encode()
        except BaseException:
            await copy.close()
            raise
        head = struct.pack(">I", len(described)) + described
        return _Reading(copy, head, whole=request.stat_only), 0

    async def write(
        self, request: WriteArchive, upload: AsyncIterable[memoryview]
    ) -> ArchiveWritten:
        """Extract what is uploaded; NotFound, InvalidParameter, Forbidden."""
        copy = _Copy(self, request, write=True)
        await copy.open(self._write_job(request))
        try:
            answer = asyncio.ensure_future(copy.answer())
            pump = asyncio.ensure_future(_pump(upload, copy.pipe))
            try:
                # An answer before the end is a refusal: what the sender still has is not wanted.
                await asyncio.wait({pump, answer}, return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    await pump
                    copy.end()
                await answer
            finally:
                answer.cancel()
                pump.cancel()
                await asyncio.gather(pump, return_exceptions=True)
        finally:
            await copy.close()
        return ArchiveWritten()

    async def open_read(self, request: ReadArchive) -> ArchiveOpened:
        """The same as `read`, for a gateway that takes the bytes from a socket."""
        copy = _Copy(self, request, write=False, direct=True)
        await copy.open({"op": "read"})
        try:
            described = await copy.answer()
        except BaseException:
            await copy.close()
            raise
        self._watch(copy)
        return ArchiveOpened(path=copy.path, described=described)

    async def open_write(self, request: WriteArchive) -> ArchiveOpened:
        """The same as `write`, for a gateway that brings the bytes to a socket."""
        copy = _Copy(self, request, write=True, direct=True)
        await copy.open(self._write_job(request))
        self._watch(copy)
        return ArchiveOpened(path=copy.path)

    def _watch(self, copy: _Copy) -> None:
        task = asyncio.create_task(_until_done(copy), name="copy")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Break off what is under way."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _write_job(self, request: WriteArchive) -> dict[str, Any]:
        record = request.record
        return {
            "op": "write",
            "no_overwrite": request.no_overwrite,
            "user": self._user(request) if request.copy_ids else None,
            "readonly": record.host_config.readonly_rootfs,
            "places": [(p.destination, p.rw) for p in record.mounts if p.type != "tmpfs"],
        }

    def _user(self, request: WriteArchive) -> tuple[int, int] | None:
        user = request.record.config.user
        if not user:
            return None
        overlay = self.snapshots.prepare(request.record.id, request.image)
        found = self.users.lookup(overlay, request.image.id, user)
        return found.uid, found.gid


async def _until_done(copy: _Copy) -> None:
    try:
        # The gateway hears it from the helper itself.
        with contextlib.suppress(EngineError):
            await copy.answer()
    finally:
        await copy.close()


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


async def _pump(upload: AsyncIterable[memoryview], pipe: int) -> None:
    """Pass on what arrives, as long as it is wanted."""
    with contextlib.suppress(BrokenPipeError):
        async for piece in upload:
            await _write_all(pipe, piece)


async def _write_all(pipe: int, piece: memoryview) -> None:
    loop = asyncio.get_running_loop()
    while piece:
        try:
            piece = piece[os.write(pipe, piece) :]
        except BlockingIOError:
            await _ready(loop.add_writer, loop.remove_writer, pipe)


async def serve(bus: Bus, node: str, archives: Archives) -> None:
    """Answer for the files of the containers of this host."""
    read = subjects.runtime(node, subjects.RUNTIME_ARCHIVE_READ)
    write = subjects.runtime(node, subjects.RUNTIME_ARCHIVE_WRITE)
    open_read = subjects.runtime(node, subjects.RUNTIME_ARCHIVE_OPEN_READ)
    open_write = subjects.runtime(node, subjects.RUNTIME_ARCHIVE_OPEN_WRITE)
    await bus.serve(open_read, ReadArchive, archives.open_read)
    await bus.serve(open_write, WriteArchive, archives.open_write)
    bus.at_close(archives.close)
    await serve_downloads(bus, read, ReadArchive, archives.read)
    await serve_uploads(bus, write, WriteArchive, archives.write)

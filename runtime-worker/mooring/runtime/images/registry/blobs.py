"""Blobs from host to host: one serves its content store, the other verifies what it gets."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.errors import EngineError, InvalidParameter, NotFound
from mooring.kit.models.registry import OpenBlob
from mooring.kit.streams import Source, download, serve_downloads
from mooring.runtime.images.store import ImageStore

_HASHED = 1 << 20


class _File:
    """Source: a file. Blobs never change, so that nothing sent has to be kept."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size

    async def read(self, offset: int, limit: int) -> bytes:
        """See Source."""
        return os.pread(self._fd, limit, offset)

    async def close(self) -> None:
        """See Source."""
        os.close(self._fd)


async def serve_blobs(bus: Bus, node: str, store: ImageStore) -> None:
    """Hand blobs of the store to whoever asks, from any offset."""

    async def open_blob(request: OpenBlob) -> tuple[Source, int]:
        try:
            source = _File(store.blob(request.digest))
        except ValueError as exc:
            raise InvalidParameter(str(exc)) from exc
        except FileNotFoundError:
            raise NotFound(f"no such blob: {request.digest}") from None
        if not 0 <= request.offset <= source.size:
            await source.close()
            raise InvalidParameter(f"blob {request.digest} has {source.size} bytes")
        return source, request.offset

    await serve_downloads(
        bus, subjects.runtime(node, subjects.RUNTIME_BLOB_OPEN), OpenBlob, open_blob
    )


async def fetch_blob(bus: Bus, node: str, digest: str, path: Path) -> int:
    """Get a blob from another host into a file, which may hold its beginning; its bytes.

    EngineError if it is not what its digest says: then the file is gone. NotFound, Unavailable.
    """
    with open(path, "ab+", buffering=0) as file:
        hashed = await asyncio.to_thread(_hash, file.fileno())
        have = file.tell()
        request = OpenBlob(digest=digest, offset=have)
        subject = subjects.runtime(node, subjects.RUNTIME_BLOB_OPEN)
        async with download(bus, subject, request, resume=_at) as reading:
            async for _, piece in reading:
                hashed.update(piece)
                rest = piece
                while rest:
                    rest = rest[file.write(rest) :]
        if f"sha256:{hashed.hexdigest()}" != digest:
            path.unlink()
            raise EngineError(f"blob {digest} of node {node} has the digest {hashed.hexdigest()}")
        await asyncio.to_thread(os.fsync, file.fileno())
        return file.tell()


def _hash(fd: int) -> hashlib._Hash:
    hashed, at = hashlib.sha256(), 0
    while piece := os.pread(fd, _HASHED, at):
        hashed.update(piece)
        at += len(piece)
    return hashed


def _at(request: OpenBlob, offset: int) -> OpenBlob:
    return request.model_copy(update={"offset": offset, "request_id": ""})

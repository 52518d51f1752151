"""Files on their way in that look like layers: unpacked while the rest of them still arrives."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .compress import Compression, detect
from .store import begin_writeback
from .unpack import BadArchive, Job, Limits, Unpacked, Unpacking, start

_AT_ONCE = 2 + (os.cpu_count() or 1)
_FLUSH = 16 << 20
"""Bytes of a file that are given to the disk while more arrives: then little is left to sync."""
_MAGIC = 257
"""Where a tar header has `ustar`."""
STORED_AS = (Compression.NONE, Compression.GZIP, Compression.ZSTD)
"""What the OCI image format has media types for; other layers are stored decompressed."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A file that came in: where it is now and the digest of its bytes."""

    path: Path
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that was unpacked into `files`' parent, and what of it is kept as its blob."""

    built: Path
    unpacked: Unpacked
    blob: Blob
    compression: Compression


Told = Callable[[int], None]
"""Told how many bytes of a layer are here."""


class Pieces(Protocol):
    """Gives the bytes of one file, piece by piece; the empty one is the end."""

    def __call__(self) -> bytes | memoryview: ...


class Incoming:
    """What arrives in one job's directory."""

    def __init__(self, job: Path, limits: Limits) -> None:
        self._job, self._limits = job, limits
        self._running: dict[Path, Unpacking] = {}
        self._done: dict[Path, Layer | BadArchive] = {}
        """Of children that have ended: each of them would go on holding two descriptors."""
        self._serial = 0

    def receive(
        self,
        path: Path,
        pieces: Pieces,
        *,
        layer: bool | None = None,
        told: Told | None = None,
    ) -> Blob | None:
        """Store a file; None if it is being unpacked: ask for `results` in the end.

        layer: whether it is one; None: by its first bytes. told: of one, how many bytes are here.
        """
        digest, size, flushed = hashlib.sha256(), 0, 0
        child: Unpacking | None = None
        with open(path, "wb", buffering=0) as file:
            while piece := pieces():
                if not size:
                    layer = _is_layer(piece) if layer is None else layer
                    child = self._begin(path, detect(bytes(piece[:6]))) if layer else None
                if child is None:
                    digest.update(piece)
                size += len(piece)
                view = memoryview(piece)
                while view:
                    view = view[os.write(file.fileno(), view) :]
                if child is not None:
                    child.grown(size)
                if layer and told is not None:
                    told(size)
                if size - flushed >= _FLUSH:
                    begin_writeback(file.fileno(), flushed, size - flushed)
                    flushed = size
        if child is None:
            return Blob(path, f"sha256:{digest.hexdigest()}", size)
        child.end()
        return None

    def begin(self, blob: Blob, *, trusted: bool) -> None:
        """Unpack a file that is here; then ask for its result."""
        with open(blob.path, "rb") as file:
            compression = detect(file.read(6))
        job = self._job_for(blob.path, compression, blob.digest, trusted=trusted)
        self._running[blob.path] = start(job)

    def result(self, path: Path) -> Layer:
        """Wait until a file is unpacked; BadArchive, OSError."""
        if (done := self._done.pop(path, None)) is not None:
            if isinstance(done, BadArchive):
                raise done
            return done
        child = self._running.pop(path)
        unpacked = child.finish()
        target = Path(child.job.target)
        plain = child.job.plain
        if plain:
            blob = Blob(Path(plain), unpacked.diff_id, unpacked.plain_size)
            return Layer(target, unpacked, blob, Compression.NONE)
        blob = Blob(path, unpacked.digest, unpacked.blob_size)
        return Layer(target, unpacked, blob, unpacked.compression)

    def results(self) -> Iterator[tuple[Path, Layer | BadArchive]]:
        """Wait for everything that was begun."""
        for path in [*self._done, *self._running]:
            yield path, self._result_or_fault(path)

    def abort(self) -> None:
        """End what is still being unpacked."""
        while self._running:
            self._running.popitem()[1].abort()

    def _result_or_fault(self, path: Path) -> Layer | BadArchive:
        try:
            return self.result(path)
        except BadArchive as exc:
            return exc

    def _begin(self, path: Path, compression: Compression) -> Unpacking | None:
        for ended in [path for path, child in self._running.items() if child.ended]:
            self._done[ended] = self._result_or_fault(ended)
        if len(self._running) >= _AT_ONCE:
            return None
        child = start(self._job_for(path, compression), whole=False)
        self._running[path] = child
        return child

    def _job_for(
        self, path: Path, compression: Compression, digest: str = "", *, trusted: bool = False
    ) -> Job:
        self._serial += 1
        # ext4 chooses the place of a directory by its name, see store.spread.
        target = self._job / f"layer-{self._serial}-{os.urandom(6).hex()}"
        stored = compression in STORED_AS
        return Job(
            blob=str(path),
            target=str(target),
            digest=digest,
            compression=compression.value,
            plain="" if stored else f"{target}.plain",
            trusted=trusted,
            max_size=self._limits.size,
            max_files=self._limits.files,
        )


def _is_layer(start: bytes | memoryview) -> bool:
    head = bytes(start[: _MAGIC + 5])
    return detect(head) is not Compression.NONE or head[_MAGIC:] == b"ustar"

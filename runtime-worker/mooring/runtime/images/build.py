"""Making layers of blobs: several at once, verified, put in place from the bottom up."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .archive import Blob
from .compress import Compression, detect
from .inherit import inherit
from .pending import Pending
from .store import ImageStore, LayerInfo
from .unpack import BadArchive, Unpacked, Unpacking, start

_STORED_AS = (Compression.NONE, Compression.GZIP, Compression.ZSTD)
"""What the OCI image format has media types for; other layers are stored decompressed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A layer to be made. Without a diff_id (an import) whatever comes out is right."""

    number: int
    blob: Blob
    diff_id: str = ""
    chain_id: str = ""
    lowers: tuple[str, ...] = ()
    """Chain ids of the layers below, the uppermost first."""
    again: bool = False
    """The layer is there, and the new one takes its place."""


@dataclass(slots=True)
class _Running:
    plan: Plan
    built: Path
    compression: Compression
    plain: Path | None
    child: Unpacking


class Builder:
    """Builds layers in one job's directory and moves them into the store."""

    def __init__(self, store: ImageStore, job: Path, *, trusted: bool = True) -> None:
        """trusted: the digests of blobs were computed as they arrived."""
        self._store, self._job = store, job
        self._trusted = trusted
        self._pending = Pending(job)
        self._serial = 0

    def build(self, plans: Iterable[Plan]) -> list[LayerInfo]:
        """Make the layers, given from the bottom up; BadArchive. As many at once as CPUs."""
        waiting = deque(plans)
        running: deque[_Running] = deque()
        built: list[LayerInfo] = []
        try:
            while waiting or running:
                while waiting and len(running) < (os.cpu_count() or 1):
                    running.append(self._start(waiting.popleft()))
                oldest = running.popleft()
                built.append(self._finish(oldest, oldest.child.finish()))
        finally:
            for left in running:
                left.child.abort()
        return built

    def add_blob(self, blob: Blob) -> None:
        """Keep a blob that is no layer: a config."""
        self._pending.blob(blob.digest, self._store)
        self._store.add_blob(blob.path, blob.digest)

    def _start(self, plan: Plan) -> _Running:
        self._serial += 1
        built = self._job / f"layer-{id(self):x}-{self._serial}"
        files = built / "fs"
        files.mkdir(parents=True)
        files.chmod(0o755)
        with open(plan.blob.path, "rb") as file:
            compression = detect(file.read(6))
        plain = None if compression in _STORED_AS else built.with_suffix(".plain")
        plain_known = self._trusted and compression is Compression.NONE
        known = plan.blob.digest if plain_known else ""
        child = start(plan.blob.path, compression, files, diff_id=known, plain_copy=plain)
        return _Running(plan, built, compression, plain, child)

    def _finish(self, running: _Running, result: Unpacked) -> LayerInfo:
        plan, built = running.plan, running.built
        if plan.diff_id and result.diff_id != plan.diff_id:
            raise BadArchive(
                f'invalid diffID for layer {plan.number}: expected "{plan.diff_id}", '
                f'got "{result.diff_id}"'
            )
        inherit(built / "fs", result.implied, self._files(plan.lowers))
        blob, compression = plan.blob, running.compression
        if running.plain is not None:
            blob = Blob(running.plain, result.diff_id, running.plain.stat().st_size)
            compression = Compression.NONE
        info = LayerInfo(
            chain_id=plan.chain_id or result.diff_id,
            diff_id=result.diff_id,
            blob=blob.digest,
            compression=compression.value,
            size=result.size,
            parent=plan.lowers[0] if plan.lowers else "",
        )
        if plan.again:
            self._store.exchange_layer(built, info)
        elif not self._store.has_layer(info.chain_id):
            self.add_blob(blob)
            self._pending.layer(info.chain_id)
            self._store.add_layer(built, info)
        return self._store.layer_info(info.chain_id)

    def _files(self, chain_ids: Sequence[str]) -> list[Path]:
        return [self._store.layer(chain_id) / "fs" for chain_id in chain_ids]

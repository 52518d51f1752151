"""Layers that a build makes: mounted over what is below, filled, taken into the store."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mooring.kit.faults import point
from mooring.kit.models.image import Layer
from mooring.runtime.images.fromdir import layer_from_directory
from mooring.runtime.images.pending import Pending
from mooring.runtime.images.store import ImageStore

from . import rootfs
from .dockerfile.errors import StepError
from .place import Root


class Layers:
    """The store as one build uses it; chains are chain ids from the bottom up. Blocking."""

    def __init__(self, store: ImageStore, job: Path) -> None:
        self._store = store
        self._job = job
        self._pending = Pending(job)
        self._empty = job / "empty"
        self._serial = 0
        self._configs: list[tuple[str, Path]] = []

    @contextmanager
    def mounted(self, chain: Sequence[str]) -> Iterator[int]:
        """The files of an image, read-only, as a descriptor of their root."""
        self._empty.mkdir(exist_ok=True)
        with rootfs.mounted(self._lowers(chain), self._empty) as root:
            yield root

    def make(self, chain: Sequence[str], fill: Callable[[int], None]) -> Layer | None:
        """The layer of what `fill` does to a mounted root; None if it does nothing."""
        self._serial += 1
        upper = self._job / f"upper-{self._serial}"
        work = self._job / f"work-{self._serial}"
        for directory in (work, upper, self._empty):
            directory.mkdir(exist_ok=True)
        lowers = self._lowers(chain)
        if lowers:
            _copy_attributes(lowers[0], upper)
        with rootfs.mounted(lowers, self._empty, upper, work) as root:
            fill(root)
        point("build.layer.filled")
        return self.take(chain, upper, move=True)

    def directory(self, chain: Sequence[str], path: str) -> Layer | None:
        """The layer that has a directory; None if it was there. StepError."""
        with self.mounted(chain) as root:
            if Root(root).is_directory(path):
                return None
        try:
            return self.make(chain, lambda root: os.close(Root(root).make_directories(path)))
        except NotADirectoryError:
            raise StepError(f"Cannot mkdir: {path} is not a directory") from None

    def take(self, chain: Sequence[str], upper: Path, *, move: bool) -> Layer | None:
        """The layer of an overlay's upper directory, which is gone then if it may be moved."""
        lowers = tuple(reversed(chain))
        info = layer_from_directory(self._store, self._job, upper, lowers=lowers, move=move)
        if info is None:
            return None
        return Layer(diff_id=info.diff_id, chain_id=info.chain_id, size=info.size)

    def write_config(self, digest: str, data: bytes) -> None:
        """Keep an image's config until `store_configs`."""
        path = self._job / f"config-{digest.removeprefix('sha256:')}"
        path.write_bytes(data)
        self._configs.append((digest, path))

    def store_configs(self) -> None:
        """Put the configs into the store."""
        for digest, path in self._configs:
            self._pending.blob(digest, self._store)
            self._store.add_blob(path, digest)
        self._configs.clear()

    def _lowers(self, chain: Sequence[str]) -> list[str]:
        return [self._store.lower(chain_id) for chain_id in reversed(chain)]


def _copy_attributes(source: str, target: Path) -> None:
    """An overlay shows its root directory as the upper one is."""
    found = os.stat(source)
    os.chown(target, found.st_uid, found.st_gid)
    os.chmod(target, stat.S_IMODE(found.st_mode))
    for name in os.listxattr(source):
        if not name.startswith("trusted.overlay."):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))

"""Snapshots: what a container writes, over the unpacked layers of its image.

Preparing one is two mkdir(2): the lower directories of an image are looked up once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mooring.kit.errors import EngineError
from mooring.kit.models.image import ImageRecord

from .images.store import ImageStore
from .overlay import Overlay

Discard = Callable[[Path], None]


class Snapshots:
    """The active snapshots in `containers/<id>/` of a state directory: `upper` and `work`."""

    def __init__(self, state_dir: Path) -> None:
        self._containers = str(state_dir / "containers")
        self._store = ImageStore(state_dir)
        self._lowers: dict[str, tuple[str, ...]] = {}
        """By image id."""

    def prepare(self, container_id: str, image: ImageRecord) -> Overlay:
        """The snapshot of a container, made if it is not there yet; EngineError, OSError."""
        overlay = self.overlay(container_id, image)
        for directory in (overlay.upper, overlay.work):
            try:
                os.mkdir(directory, 0o755)
            except FileExistsError:
                continue
            except FileNotFoundError:
                os.makedirs(directory, 0o755)
        return overlay

    def overlay(self, container_id: str, image: ImageRecord) -> Overlay:
        """How to see the snapshot of a container; EngineError if a layer is missing here."""
        base = f"{self._containers}/{container_id}"
        return Overlay(self.lowers(image), f"{base}/upper", f"{base}/work")

    def lowers(self, image: ImageRecord) -> tuple[str, ...]:
        """The directories of an image's layers, the uppermost first."""
        lowers = self._lowers.get(image.id)
        if lowers is None:
            try:
                lowers = tuple(self._store.lower(layer.chain_id) for layer in image.layers[::-1])
            except FileNotFoundError as exc:
                raise EngineError(f"image {image.id} is not complete on this host: {exc}") from exc
            # overlayfs needs a lower directory, and an image may have no layer at all.
            self._lowers[image.id] = lowers = lowers or (str(self._empty()),)
        return lowers

    def forget(self, image_id: str) -> None:
        """The layers of an image may be gone."""
        self._lowers.pop(image_id, None)

    def remove(self, container_id: str) -> None:
        """Remove a snapshot; its directories are in the trash afterwards."""
        for name in ("upper", "work"):
            self._store.discard(Path(f"{self._containers}/{container_id}/{name}"))

    def size(self, container_id: str) -> int:
        """Bytes of the files a container has written; a file with several links counts once."""
        total = 0
        linked: set[int] = set()
        pending = [f"{self._containers}/{container_id}/upper"]
        while pending:
            # A running container makes and removes files meanwhile.
            with (
                suppress(FileNotFoundError, NotADirectoryError),
                os.scandir(pending.pop()) as found,
            ):
                for entry in found:
                    with suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISDIR(status.st_mode):
                            pending.append(entry.path)
                        elif status.st_nlink == 1:
                            total += status.st_size
                        elif status.st_ino not in linked:
                            linked.add(status.st_ino)
                            total += status.st_size
        return total

    def _empty(self) -> Path:
        empty = self._store.layers / "empty"
        empty.mkdir(parents=True, exist_ok=True)
        return empty

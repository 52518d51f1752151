"""Snapshots: what a container writes, over the unpacked layers of its image.

Preparing one is two mkdir(2): what is known of an image's layers is looked up once.
"""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mooring.kit.errors import EngineError, NotFound
from mooring.kit.models.image import ImageRecord

from .images import initlayer
from .images.store import ImageStore
from .overlay import Overlay, View

logger = logging.getLogger(__name__)

_USUAL_MODE = 0o755


class _Root(NamedTuple):
    """The attributes of an image's root directory: an overlay shows those of the upper one."""

    uid: int
    gid: int
    mode: int
    times: tuple[int, int]
    """Accessed and modified, ns."""
    attributes: tuple[tuple[str, bytes], ...]

    @classmethod
    def of(cls, directory: str) -> _Root:
        found = os.stat(directory)
        names = [n for n in os.listxattr(directory) if not n.startswith("trusted.overlay.")]
        return cls(
            found.st_uid,
            found.st_gid,
            stat.S_IMODE(found.st_mode),
            (found.st_atime_ns, found.st_mtime_ns),
            tuple((name, os.getxattr(directory, name)) for name in names),
        )

    @property
    def usual(self) -> bool:
        """Whether it is as mkdir(2) makes one."""
        return not self.uid and not self.gid and self.mode == _USUAL_MODE and not self.attributes


class _Base(NamedTuple):
    """What every snapshot of an image has below it."""

    lowers: tuple[str, ...]
    root: _Root


class Snapshots:
    """The active snapshots in `containers/<id>/` of a state directory: `upper` and `work`."""

    def __init__(self, state_dir: Path) -> None:
        self._containers = str(state_dir / "containers")
        self._store = ImageStore(state_dir)
        self._bases: dict[str, _Base] = {}
        """By image id."""

    def prepare(self, container_id: str, image: ImageRecord) -> Overlay:
        """The snapshot of a container, made if it is not there yet; EngineError, OSError."""
        overlay = self.overlay(container_id, image)
        try:
            os.mkdir(overlay.work, 0o755)
        except FileExistsError:
            pass
        except FileNotFoundError:
            os.makedirs(overlay.work, 0o755)
        _make_upper(overlay.upper, self._base(image).root)
        return overlay

    def overlay(self, container_id: str, image: ImageRecord) -> Overlay:
        """How to see the snapshot of a container; EngineError if a layer is missing here."""
        base = f"{self._containers}/{container_id}"
        return Overlay(self.lowers(image), f"{base}/upper", f"{base}/work")

    def lowers(self, image: ImageRecord) -> tuple[str, ...]:
        """The directories of an image's layers, the uppermost first, below its init layer."""
        return self._base(image).lowers

    def shown(self, image: ImageRecord, subpath: str) -> tuple[str, ...]:
        """The directories, topmost first, or the file that an image is at a path.

        NotFound if there is nothing. The layers of an image never change: the paths stay true.
        """
        lowers = self.lowers(image)
        # Below the init layer, which is no part of the image.
        lowers = lowers[1:] if image.layers and lowers[0].endswith("/../init") else lowers
        if not subpath:
            return lowers
        with View(Overlay(lowers[1:], lowers[0], "")) as view:
            found = view.merged(subpath)
            if not found:
                raise NotFound(f"cannot access path {subpath} of the image: no such file")
            return tuple(os.readlink(f"/proc/self/fd/{fd}") for fd in found)

    def _base(self, image: ImageRecord) -> _Base:
        base = self._bases.get(image.id)
        if base is None:
            try:
                lowers = tuple(self._store.lower(layer.chain_id) for layer in image.layers[::-1])
            except FileNotFoundError as exc:
                raise EngineError(f"image {image.id} is not complete on this host: {exc}") from exc
            # overlayfs needs a lower directory, and an image may have no layer at all.
            lowers = self._with_init(image, lowers) if lowers else (str(self._empty()),)
            self._bases[image.id] = base = _Base(lowers, _Root.of(lowers[0]))
        return base

    def _with_init(self, image: ImageRecord, lowers: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return (initlayer.ensure(self._store, image.layers[-1].chain_id, lowers), *lowers)
        except OSError as exc:
            # Then each container makes what it misses in its own upper directory.
            logger.warning("no init layer for image %s: %s", image.id, exc)
            return lowers

    def forget(self, image_id: str) -> None:
        """The layers of an image may be gone."""
        self._bases.pop(image_id, None)

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


def _make_upper(path: str, root: _Root) -> None:
    if not root.usual:
        if os.path.isdir(path):
            return
        # Whoever finds it there, after a kill, finds it with everything.
        new = f"{path}.new"
        with suppress(FileExistsError):
            os.mkdir(new)
        os.chown(new, root.uid, root.gid)
        os.chmod(new, root.mode)
        for name, value in root.attributes:
            os.setxattr(new, name, value)
        os.rename(new, path)
    else:
        try:
            os.mkdir(path, _USUAL_MODE)
        except FileExistsError:
            return
    os.utime(path, ns=root.times)

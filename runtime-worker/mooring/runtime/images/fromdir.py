"""Layers from directories: what a container, or a step of a build, has written.

The blob of such a layer is its tar, not compressed: nothing is spent on bytes that may never leave
this host, and a push compresses while it sends.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from .build import commit_layer
from .compress import Compression
from .incoming import Blob, Layer
from .pack import pack
from .pending import Pending
from .store import ImageStore, LayerInfo, chain_id_on
from .unpack import Job, Unpacked, start

_USUAL_ROOT = (0, 0, 0o755)


def layer_from_directory(
    store: ImageStore,
    job: Path,
    directory: Path,
    *,
    lowers: Sequence[str] = (),
    move: bool = False,
) -> LayerInfo | None:
    """Put what is in a directory into the store, as a layer above lowers; None if it is nothing.

    lowers: chain ids, the uppermost first. The directory is an overlay's upper one, or any tree on
    the state directory's file system. move: its files become the layer's, and it is gone; else
    they are copied. What it adds is noted in the job's Pending. OSError.
    """
    blob = job / f"blob-{os.urandom(6).hex()}"
    built = job / f"built-{os.urandom(6).hex()}"
    with_root = _root_differs(store, directory, lowers)
    if move:
        layer = _moved(directory, blob, built, with_root=with_root)
    else:
        layer = _copied(directory, blob, built, with_root=with_root)
    if layer is None:
        return None
    chain_id = chain_id_on(lowers[0] if lowers else "", layer.unpacked.diff_id)
    # What it was made of is not needed to have it on disk at once: who waits for the image would
    # wait for the disk, and all of it follows in the background (ImageService).
    return commit_layer(store, Pending(job), layer, chain_id=chain_id, lowers=lowers, settled=False)


def _moved(directory: Path, blob: Path, built: Path, *, with_root: bool) -> Layer | None:
    digest, size = hashlib.sha256(), 0
    with open(blob, "xb", buffering=0) as file:

        def write(data: bytes) -> None:
            nonlocal size
            digest.update(data)
            _write_all(file.fileno(), data)
            size += len(data)

        packed = pack(directory, write, upper=True, clean=True, with_root=with_root)
    if not packed.entries:
        return None
    built.mkdir()
    directory.rename(built / "fs")
    name = f"sha256:{digest.hexdigest()}"
    unpacked = Unpacked(name, name, packed.size, packed.entries, size, size, Compression.NONE)
    return Layer(built, unpacked, Blob(blob, name, size), Compression.NONE)


def _copied(directory: Path, blob: Path, built: Path, *, with_root: bool) -> Layer | None:
    with open(blob, "xb", buffering=0) as file:
        child = start(Job(blob=str(blob), target=str(built), compression=""), whole=False)
        try:
            size = 0

            def write(data: bytes) -> None:
                nonlocal size
                _write_all(file.fileno(), data)
                size += len(data)
                child.grown(size)

            packed = pack(directory, write, upper=True, with_root=with_root)
            child.end()
        except BaseException:
            child.abort()
            raise
    unpacked = child.finish()
    whole = Blob(blob, unpacked.digest, size)
    return Layer(built, unpacked, whole, Compression.NONE) if packed.entries else None


def _root_differs(store: ImageStore, directory: Path, lowers: Sequence[str]) -> bool:
    """Whether the root directory itself has another owner or mode than the layers' below."""
    below = _attributes(store.layer(lowers[0]) / "fs") if lowers else _USUAL_ROOT
    return _attributes(directory) != below


def _attributes(directory: Path) -> tuple[int, int, int]:
    found = os.stat(directory)
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]

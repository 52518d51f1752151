"""The saver: a process to a stream of an image's or a container's bytes, written to its stdout.

    worker                                 saver
    exec, stdin: the order as JSON ──────▶ save, export or changes
    stdout ◀────────────────────────────── the bytes, from the offset that was asked for
    stderr ◀────────────────────────────── what went wrong, and status 1

Blobs go from the page cache to the pipe without passing through this process's memory.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mooring.runtime.oci.rootsource import Overlay, mount_overlay

from .differences import differences
from .layout import StoredImage, StoredLayer, archive
from .pack import pack
from .store import ImageStore, LayerInfo
from .unpack import end_with

_STDOUT = 1
_PIPE_SIZE = 1 << 20


def main() -> None:
    """Carry out the order on stdin."""
    order: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    end_with(order["parent"])
    with suppress(OSError):
        fcntl.fcntl(_STDOUT, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    kinds: dict[str, Callable[[Mapping[str, Any]], None]] = {
        "save": _save,
        "export": _export,
        "changes": _changes,
    }
    try:
        kinds[order["kind"]](order)
    except BrokenPipeError:
        # Nobody wants it any more.
        os._exit(0)
    except (OSError, ValueError) as exc:
        sys.stderr.write(str(exc))
        sys.exit(1)


def _save(order: Mapping[str, Any]) -> None:
    store = ImageStore(Path(order["state_dir"]))
    with ExitStack() as files:
        opened: dict[str, int] = {}

        def open_blob(digest: str) -> int:
            """The size of a blob, which is kept open: it may be removed meanwhile."""
            if digest not in opened:
                opened[digest] = files.enter_context(open(store.blob(digest), "rb")).fileno()
            return os.fstat(opened[digest]).st_size

        skip: int = order["offset"]
        images = [_stored(store, image, open_blob) for image in order["images"]]
        if skip:
            _check_unchanged(store, order)
        for part in archive(images):
            if skip >= part.length:
                skip -= part.length
                continue
            if part.blob:
                _send_file(opened[part.blob], skip, part.size)
            else:
                _write_all(part.data[skip:])
            skip = 0


def _stored(
    store: ImageStore, image: Mapping[str, Any], open_blob: Callable[[str], int]
) -> StoredImage:
    layers = []
    for chain_id in image["chain_ids"]:
        info, size = _opened(store, chain_id, open_blob)
        layers.append(StoredLayer(info.blob, size, info.compression))
    return StoredImage(
        image["id"],
        open_blob(image["id"]),
        image["architecture"],
        image["variant"],
        tuple(layers),
        tuple(image["references"]),
    )


def _opened(
    store: ImageStore, chain_id: str, open_blob: Callable[[str], int]
) -> tuple[LayerInfo, int]:
    """A layer and the size of its blob, which a push may be about to exchange."""
    info = store.layer_info(chain_id)
    try:
        return info, open_blob(info.blob)
    except FileNotFoundError:
        info = store.layer_info(chain_id)
        return info, open_blob(info.blob)


def _check_unchanged(store: ImageStore, order: Mapping[str, Any]) -> None:
    """OSError if what was sent of the archive so far may have been of other blobs."""
    for image in order["images"]:
        for chain_id in image["chain_ids"]:
            described = store.layer(chain_id) / "layer.json"
            if described.stat().st_mtime >= order["began"]:
                raise OSError(
                    "a layer was compressed for a push while its image was saved: save it again"
                )


def _send_file(fd: int, offset: int, end: int) -> None:
    while offset < end:
        sent = os.sendfile(_STDOUT, fd, offset, end - offset)
        if not sent:
            raise OSError("a blob is shorter than it was")
        offset += sent


def _export(order: Mapping[str, Any]) -> None:
    root = mount_overlay(Overlay([order["upper"], *order["lowers"]]))
    skip: int = order["offset"]

    def write(data: bytes) -> None:
        nonlocal skip
        if skip >= len(data):
            skip -= len(data)
            return
        _write_all(data[skip:])
        skip = 0

    pack(root, write, upper=False)


def _changes(order: Mapping[str, Any]) -> None:
    found = differences(order["upper"], order["lowers"])
    _write_all(json.dumps([asdict(change) for change in found]).encode())


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(_STDOUT, view) :]


if __name__ == "__main__":
    main()

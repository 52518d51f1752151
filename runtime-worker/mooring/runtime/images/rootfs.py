"""`docker import`: an image of one layer out of a root file system's tar."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import changes
from .build import Builder, commit_layer
from .compress import Read
from .fetchwords import get_failed
from .incoming import Blob, Incoming
from .load import LoadedImage
from .pending import Pending
from .store import ImageStore
from .tar import CHUNK
from .unpack import BadArchive

_PATIENCE = 60.0
"""Seconds that a server may be silent."""


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What the user says about the image. Architecture and variant are OCI's words."""

    source: str = ""
    """The URL of the tar, if it did not come by upload."""
    message: str = ""
    changes: tuple[str, ...] = ()
    architecture: str = "amd64"
    variant: str = ""


@contextmanager
def opened(url: str) -> Iterator[Read]:
    """The bytes of a URL, http or https; BadArchive if it cannot be had."""
    # Loaded for this alone: most imports are uploads.
    import http.client
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE) as answer:
            yield answer.read
    except urllib.error.HTTPError as exc:
        raise BadArchive(f"failed to GET {url} with status {exc.code} {exc.reason}") from exc
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ValueError) as exc:
        if isinstance(exc, BadArchive):
            raise
        raise BadArchive(get_failed(url, exc)) from exc


def receive_rootfs(read: Read, job: Path, incoming: Incoming) -> Path:
    """Store the stream as it comes, and unpack it meanwhile."""
    path = job / "rootfs"
    blob = incoming.receive(path, lambda: read(CHUNK), layer=True)
    if blob is not None:
        incoming.begin(blob, trusted=True)
    return path


def import_rootfs(
    rootfs: Path,
    options: ImportOptions,
    store: ImageStore,
    job: Path,
    incoming: Incoming,
    now: datetime | None = None,
) -> LoadedImage:
    """Make the image; BadArchive, also for a change that is no valid instruction."""
    try:
        config = changes.apply({}, options.changes)
    except changes.InvalidChange as exc:
        raise BadArchive(str(exc)) from exc
    layer = incoming.result(rootfs)
    info = commit_layer(store, Pending(job), layer, chain_id=layer.unpacked.diff_id)
    image = _image_config(config, options, info.diff_id, now or datetime.now(UTC))
    data = json.dumps(image, separators=(",", ":"), ensure_ascii=False).encode()
    path = job / "config"
    path.write_bytes(data)
    blob = Blob(path, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
    Builder(store, job, incoming).add_blob(blob)
    return LoadedImage(blob.digest, image, (info,))


def _image_config(
    config: changes.Config, options: ImportOptions, diff_id: str, now: datetime
) -> dict[str, Any]:
    created = now.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    comment = options.message or f"Imported from {options.source or '-'}"
    image: dict[str, Any] = {
        "architecture": options.architecture,
        "config": config,
        "created": created,
        "history": [{"created": created, "comment": comment}],
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    }
    if options.variant:
        image["variant"] = options.variant
    return image

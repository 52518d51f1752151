"""The archive of `docker save`: an OCI layout that is a docker-archive as well. Pure.

Blobs are in it as the store has them, compressed or not: nothing is compressed anew, and who loads
it (Docker since 1.10, and OCI tools) takes either. Its bytes depend on nothing but the images, so
an archive that was broken off goes on at the byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mooring.kit import references

from .tar import DIRECTORY, REGULAR
from .tarwrite import END, header, padding

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer's blob in the store; compression as in Compression."""

    digest: str
    size: int
    compression: str


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image to be saved. references in full form; they may be none."""

    id: str
    config_size: int
    architecture: str
    variant: str
    layers: tuple[StoredLayer, ...]
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of the archive: these, or all of a blob of the store."""

    data: bytes = b""
    blob: str = ""
    size: int = 0

    @property
    def length(self) -> int:
        """How many bytes it is."""
        return self.size if self.blob else len(self.data)


def manifest(image: StoredImage) -> bytes:
    """The OCI manifest of an image."""
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": {"mediaType": _CONFIG, "digest": image.id, "size": image.config_size},
            "layers": [
                {
                    "mediaType": _LAYER + (f"+{layer.compression}" if layer.compression else ""),
                    "digest": layer.digest,
                    "size": layer.size,
                }
                for layer in image.layers
            ],
        }
    )


def archive(images: Sequence[StoredImage]) -> Iterator[Part]:
    """The whole archive, in order."""
    described = [(image, manifest(image)) for image in images]
    own = {_digest(data): data for _, data in described}
    blobs: dict[str, int] = {}
    for image in images:
        blobs.update({layer.digest: layer.size for layer in image.layers})
        blobs[image.id] = image.config_size
    for folder in (b"blobs/", b"blobs/sha256/"):
        yield Part(header(folder, DIRECTORY, mode=0o755))
    for digest in sorted({*blobs, *own}):
        name = _path(digest)
        if digest in own:
            yield from _file(name, own[digest])
        else:
            size = blobs[digest]
            yield Part(header(name.encode(), REGULAR, mode=0o444, size=size))
            yield Part(blob=digest, size=size)
            yield Part(padding(size))
    yield from _file("index.json", _index(described))
    yield from _file("manifest.json", _docker_manifest(images))
    yield from _file("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    if repositories := _repositories(images):
        yield from _file("repositories", _json(repositories))
    yield Part(END)


def _file(name: str, data: bytes) -> Iterable[Part]:
    head = header(name.encode(), REGULAR, mode=0o644, size=len(data))
    return [Part(head + data + padding(len(data)))]


def _index(described: Iterable[tuple[StoredImage, bytes]]) -> bytes:
    entries: list[dict[str, Any]] = []
    for image, data in described:
        platform = {"architecture": image.architecture, "os": "linux"}
        if image.variant:
            platform["variant"] = image.variant
        entry = {
            "mediaType": _MANIFEST,
            "digest": _digest(data),
            "size": len(data),
            "platform": platform,
        }
        for full in image.references:
            annotations = {
                "io.containerd.image.name": full,
                "org.opencontainers.image.ref.name": references.parse(full).tag,
            }
            entries.append({**entry, "annotations": annotations})
        if not image.references:
            entries.append(entry)
    return _json({"schemaVersion": 2, "mediaType": _INDEX, "manifests": entries})


def _docker_manifest(images: Iterable[StoredImage]) -> bytes:
    return _json(
        [
            {
                "Config": _path(image.id),
                "RepoTags": [references.familiar(full) for full in image.references] or None,
                "Layers": [_path(layer.digest) for layer in image.layers],
            }
            for image in images
        ]
    )


def _repositories(images: Iterable[StoredImage]) -> dict[str, dict[str, str]]:
    """What the oldest readers look for: the uppermost layer of each tag."""
    found: dict[str, dict[str, str]] = {}
    for image in images:
        for full in image.references:
            reference = references.parse(full)
            top = image.layers[-1].digest if image.layers else image.id
            name = found.setdefault(reference.familiar_name, {})
            name[reference.tag] = top.removeprefix("sha256:")
    return found


def _path(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()

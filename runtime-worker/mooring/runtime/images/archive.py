"""Taking an image archive apart as it arrives, and what it says it holds.

No path on disk is derived from a name in the archive: a member becomes `<n>` in the job's
directory, and the archive's names, links included, are only looked up in a table.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .compress import Read, decompressed, detect, peek
from .incoming import Blob, Incoming, Layer, Told
from .store import hex_of
from .tar import DIRECTORY, HARD_LINK, REGULAR, SYMLINK, TarReader
from .unpack import BadArchive

Known = Callable[[str], bool]
"""Whether the layer of a blob with this digest is unpacked here."""

Say = Callable[[str, int, int], None]
"""Told of a layer's first digits, how many bytes of it are here, and of how many."""

_SAID = 0.1
"""Seconds between two words on one layer."""
_HEX = re.compile(r"[0-9a-f]{64}")
_MEMBERS = 1 << 16
_NAMES = 32 << 20
"""Bytes of the names of all members and of what links lead to."""
_JSON_LIMIT = 16 << 20
_LINKS = 16
_INDEX_DEPTH = 8

_INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_NAME_ANNOTATION = "io.containerd.image.name"
_REF_ANNOTATION = "org.opencontainers.image.ref.name"


@dataclass(frozen=True, slots=True)
class ImageParts:
    """One image of an archive. A layer is None when it is not in the archive."""

    config: Blob
    layers: tuple[Blob | None, ...]
    layer_names: tuple[str, ...]
    references: tuple[str, ...]


class Archive:
    """The members of an archive by name."""

    def __init__(
        self,
        files: Mapping[str, Blob],
        links: Mapping[str, str],
        unpacked: Mapping[Path, Layer | BadArchive] | None = None,
    ) -> None:
        self._files, self._links = files, links
        self.unpacked = unpacked or {}
        """What became of files that looked like layers."""

    def get(self, name: str) -> Blob | None:
        """A file, also through links; None if there is none."""
        name = _clean(name)
        for _ in range(_LINKS):
            if name in self._files:
                return self._files[name]
            target = self._links.get(name)
            if target is None:
                break
            name = target
        return None

    def require(self, name: str) -> Blob:
        """A file that has to be there; BadArchive."""
        if (blob := self.get(name)) is None:
            raise BadArchive(f"open {name}: no such file or directory")
        return blob

    def json(self, blob: Blob, what: str) -> Any:
        """The value of a JSON file; BadArchive."""
        if blob.size > _JSON_LIMIT:
            raise BadArchive(f"{what} is larger than {_JSON_LIMIT >> 20} MiB")
        try:
            return json.loads(blob.path.read_bytes())
        except (ValueError, RecursionError) as exc:
            raise BadArchive(f"invalid JSON in {what}: {exc}") from exc

    def images(self, architecture: str) -> list[ImageParts]:
        """What the archive holds, by manifest.json or else as an OCI layout."""
        if manifest := self.get("manifest.json"):
            return [
                self._docker_image(entry)
                for entry in _objects(self.json(manifest, "manifest.json"))
            ]
        if index := self.get("index.json"):
            return list(self._oci_images(self.json(index, "index.json"), architecture))
        raise BadArchive("open manifest.json: no such file or directory")

    def _docker_image(self, entry: dict[str, Any]) -> ImageParts:
        names = _strings(entry.get("Layers"), "Layers")
        return ImageParts(
            self.require(_string(entry.get("Config"), "Config")),
            tuple(self.get(name) for name in names),
            tuple(names),
            tuple(_strings(entry.get("RepoTags"), "RepoTags")),
        )

    def _oci_images(self, index: Any, architecture: str) -> Iterator[ImageParts]:
        for descriptor in _descriptors(index):
            annotations = descriptor.get("annotations")
            manifest = self._manifest(descriptor, architecture, _INDEX_DEPTH)
            if manifest is not None:
                yield self._oci_image(manifest, _reference(annotations))

    def _manifest(self, descriptor: dict[str, Any], architecture: str, depth: int) -> Any:
        """The image manifest a descriptor leads to, through indexes by platform."""
        value = self._described(descriptor)
        if not isinstance(value, dict):
            raise BadArchive("an OCI manifest is no JSON object")
        nested = descriptor.get("mediaType") in _INDEX_TYPES or "manifests" in value
        if not nested:
            return None if _is_attestation(descriptor) else value
        if not depth:
            raise BadArchive("OCI indexes nested too deeply")
        candidates = [d for d in _descriptors(value) if not _is_attestation(d)]
        matching = [d for d in candidates if _platform(d) in (architecture, "")]
        # An archive of one platform out of several keeps the index that lists them all.
        for candidate in matching or candidates:
            if self.get(_blob_name(candidate)):
                return self._manifest(candidate, architecture, depth - 1)
        return None

    def _oci_image(self, manifest: Any, references: tuple[str, ...]) -> ImageParts:
        config = manifest.get("config")
        if not isinstance(config, dict):
            raise BadArchive("an OCI manifest has no config")
        layers = _objects(manifest.get("layers") or [])
        names = tuple(_blob_name(layer) for layer in layers)
        for layer in layers:
            self._check(layer, self.get(_blob_name(layer)))
        return ImageParts(
            self._checked(config), tuple(self.get(name) for name in names), names, references
        )

    def _described(self, descriptor: dict[str, Any]) -> Any:
        return self.json(self._checked(descriptor), _blob_name(descriptor))

    def _checked(self, descriptor: dict[str, Any]) -> Blob:
        blob = self.require(_blob_name(descriptor))
        self._check(descriptor, blob)
        return blob

    def _check(self, descriptor: dict[str, Any], blob: Blob | None) -> None:
        if blob is not None and blob.digest != descriptor["digest"]:
            raise BadArchive(
                f"blob {descriptor['digest']} has the digest {blob.digest}: the archive is damaged"
            )


def receive(
    read: Read, directory: Path, incoming: Incoming, known: Known, say: Say | None = None
) -> Archive:
    """Store the members of an archive, which may be compressed; TarError, CompressionError.

    What looks like a layer is unpacked meanwhile, unless its name says that it is known.
    """
    start, read = peek(read)
    reader = TarReader(decompressed(read, detect(start)))
    files: dict[str, Blob] = {}
    paths: dict[str, Path] = {}
    links: dict[str, str] = {}
    names = 0
    for number, member in enumerate(reader):
        names += len(member.name) + len(member.link)
        if number >= _MEMBERS or names > _NAMES:
            raise BadArchive(f"more than {_MEMBERS} files, or too long names, in an image archive")
        name = _clean(_text(member.name))
        if member.type == REGULAR and member.sparse is None:
            path = directory / str(number)
            paths[name] = path
            is_layer = False if known(_digest_of(name)) else None
            told = _meter(say, name, member.size)
            received = incoming.receive(path, reader.data, layer=is_layer, told=told)
            if received is not None:
                files[name] = received
            links.pop(name, None)
        elif member.type == SYMLINK:
            links[name] = _clean(posixpath.join(posixpath.dirname(name), _text(member.link)))
        elif member.type == HARD_LINK:
            links[name] = _clean(_text(member.link))
        elif member.type != DIRECTORY:
            raise BadArchive(f"{name} is no file, directory or link: not an image archive")
    reader.drain()
    unpacked = dict(incoming.results())
    for path, layer in unpacked.items():
        if isinstance(layer, BadArchive):
            # No layer perhaps: an archive within the archive, of which nothing is wanted.
            blob = _hashed(path)
        else:
            blob = Blob(path, layer.unpacked.digest, layer.unpacked.blob_size)
        for name, found in paths.items():
            if found == path:
                files[name] = blob
    return Archive(files, links, unpacked)


def _meter(say: Say | None, name: str, total: int) -> Told | None:
    """Tells how far a layer is, by the digits in its name: its real id comes with the last byte."""
    found = _HEX.search(name)
    if say is None or found is None:
        return None
    layer, last = found[0][:12], 0.0

    def told(current: int) -> None:
        nonlocal last
        now = time.monotonic()
        if current == total or now - last >= _SAID:
            last = now
            say(layer, current, total)

    return told


def _digest_of(name: str) -> str:
    """The digest that a name in an OCI layout says; empty for another name."""
    return f"sha256:{name[13:]}" if name.startswith("blobs/sha256/") else ""


def _hashed(path: Path) -> Blob:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return Blob(path, f"sha256:{digest.hexdigest()}", path.stat().st_size)


def _clean(name: str) -> str:
    return posixpath.normpath("/" + name).lstrip("/")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _blob_name(descriptor: dict[str, Any]) -> str:
    digest = _string(descriptor.get("digest"), "digest")
    try:
        return f"blobs/sha256/{hex_of(digest)}"
    except ValueError as exc:
        raise BadArchive(str(exc)) from exc


def _descriptors(index: Any) -> list[dict[str, Any]]:
    if not isinstance(index, dict):
        raise BadArchive("an OCI index is no JSON object")
    return _objects(index.get("manifests") or [])


def _platform(descriptor: dict[str, Any]) -> str:
    """The architecture of a Linux image; `-` for another system; empty if it is not said."""
    platform = descriptor.get("platform")
    if not isinstance(platform, dict):
        return ""
    return str(platform.get("architecture")) if platform.get("os") == "linux" else "-"


def _is_attestation(descriptor: dict[str, Any]) -> bool:
    annotations = descriptor.get("annotations")
    if isinstance(annotations, dict) and "vnd.docker.reference.type" in annotations:
        return True
    platform = descriptor.get("platform")
    return isinstance(platform, dict) and platform.get("os") == "unknown"


def _reference(annotations: Any) -> tuple[str, ...]:
    """The name an index gives an image. A bare tag names nothing: it has no repository."""
    if not isinstance(annotations, dict):
        return ()
    name = annotations.get(_NAME_ANNOTATION)
    if not name:
        name = annotations.get(_REF_ANNOTATION, "")
        if not isinstance(name, str) or not ({":", "/"} & set(name)):
            return ()
    return (_string(name, _NAME_ANNOTATION),)


def _objects(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise BadArchive("a list of JSON objects was expected in the archive's manifest")
    return value


def _strings(value: Any, name: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadArchive(f"{name} is no list of strings in the archive's manifest")
    return [_string(entry, name) for entry in value]


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadArchive(f"{name} is no string in the archive's manifest")
    return value

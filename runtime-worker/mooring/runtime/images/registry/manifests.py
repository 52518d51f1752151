"""Manifests and indexes as registries hand them out, and the one that fits a platform. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mooring.kit.errors import InvalidParameter, NotFound
from mooring.runtime.images.platforms import Platform
from mooring.runtime.images.store import hex_of

from .words import TransferFault

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_SCHEMA1 = (
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/vnd.docker.distribution.manifest.v1+json",
)
ACCEPT = ", ".join((DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX, _SCHEMA1[0], "*/*"))

MANIFEST_LIMIT = 4 << 20
"""Bytes of a manifest; the distribution specification's."""
CONFIG_LIMIT = 16 << 20
_CONFIGS = (DOCKER_CONFIG, OCI_CONFIG, "application/octet-stream", "")
_LAYER = re.compile(
    r"application/vnd\.(?:"
    r"docker\.image\.rootfs\.(?:foreign\.)?diff\.tar(?:\.gzip|\.zstd)?"
    r"|oci\.image\.layer\.(?:nondistributable\.)?v1\.tar(?:\+gzip|\+zstd)?)"
)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What something is, its digest, and how many bytes it has."""

    media_type: str
    digest: str
    size: int
    urls: tuple[str, ...] = ()
    platform: dict[str, Any] = field(default_factory=dict, compare=False)
    annotations: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def foreign(self) -> bool:
        """A layer that its owner does not allow registries to hand out."""
        return bool(self.urls) and ("foreign" in self.media_type or "nondis" in self.media_type)


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image for one platform."""

    raw: bytes
    digest: str
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """A list of manifests, or of further lists."""

    raw: bytes
    digest: str
    media_type: str
    manifests: tuple[Descriptor, ...]


def digest_of(data: bytes) -> str:
    """`sha256:…`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def parse(raw: bytes, content_type: str, shown: str) -> Manifest | Index:
    """From a registry's answer; TransferFault, or InvalidParameter for the schema of old."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise TransferFault(f"invalid manifest for {shown}: {exc}") from exc
    if not isinstance(value, dict):
        raise TransferFault(f"invalid manifest for {shown}: it is no JSON object")
    given = content_type.partition(";")[0].strip().lower()
    inner = value.get("mediaType")
    known = (DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX)
    if given in _SCHEMA1 or value.get("schemaVersion") == 1:
        raise InvalidParameter(
            "[DEPRECATION NOTICE] Docker Image Format v1 and Docker Image manifest version 2, "
            "schema 1 support is disabled by default and will be removed in an upcoming release. "
            f"Suggest the author of {shown} to upgrade the image to the OCI Format or Docker "
            "Image manifest v2, schema 2. More information at "
            "https://docs.docker.com/go/deprecated-image-specs/"
        )
    if given in known and inner in known and given != inner:
        raise TransferFault(f"mediaType in manifest should be '{given}' not '{inner}'")
    media_type = given if given in known else str(inner)
    if media_type not in known or value.get("schemaVersion") != 2:
        raise TransferFault(
            f"unsupported manifest media type and no default available: {content_type or inner}"
        )
    digest = digest_of(raw)
    if media_type in (DOCKER_LIST, OCI_INDEX):
        entries = tuple(_descriptor(entry, shown) for entry in _list(value, "manifests", shown))
        return Index(raw, digest, media_type, entries)
    config = _descriptor(value.get("config"), shown)
    if config.media_type not in _CONFIGS:
        raise TransferFault(f'Encountered remote "{config.media_type}"(unknown) when fetching')
    layers = tuple(_descriptor(entry, shown) for entry in _list(value, "layers", shown))
    for layer in layers:
        if not _LAYER.fullmatch(layer.media_type):
            raise TransferFault(f"unsupported layer media type {layer.media_type!r} in {shown}")
    return Manifest(raw, digest, media_type, config, layers)


def _list(value: dict[str, Any], name: str, shown: str) -> list[Any]:
    found = value.get(name) or []
    if not isinstance(found, list):
        raise TransferFault(f"invalid manifest for {shown}: {name} is no list")
    return found


def _descriptor(value: Any, shown: str) -> Descriptor:
    if not isinstance(value, dict):
        raise TransferFault(f"invalid manifest for {shown}: a descriptor is no JSON object")
    digest, size = value.get("digest"), value.get("size")
    urls, platform = value.get("urls") or [], value.get("platform") or {}
    annotations = value.get("annotations") or {}
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise TransferFault(f"invalid manifest for {shown}: a descriptor without a size")
    check_digest(digest)
    if not isinstance(urls, list) or not isinstance(platform, dict):
        raise TransferFault(f"invalid manifest for {shown}: a malformed descriptor")
    return Descriptor(
        str(value.get("mediaType") or ""),
        str(digest),
        size,
        tuple(map(str, urls)),
        platform,
        annotations if isinstance(annotations, dict) else {},
    )


def check_digest(digest: object) -> None:
    """TransferFault for a digest that we can't verify, in Docker's words."""
    text = str(digest)
    algorithm, colon, _ = text.partition(":")
    if (
        colon
        and algorithm != "sha256"
        and re.fullmatch(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*", algorithm)
    ):
        raise TransferFault(f"unsupported digest algorithm: {text}")
    try:
        hex_of(text)
    except ValueError:
        raise TransferFault("invalid checksum digest format") from None


def choose(index: Index, platform: Platform) -> Descriptor:
    """The entry of an index that fits best; NotFound in Docker's words."""
    best: tuple[int, Descriptor] | None = None
    wishes = wishlist(platform)
    for entry in index.manifests:
        if is_attestation(entry):
            continue
        rank = rank_of(entry.platform, wishes)
        if rank >= 0 and (best is None or rank < best[0]):
            best = rank, entry
    if best is None:
        raise NotFound(
            f"no matching manifest for {show_platform(platform)} in the manifest list entries"
        )
    return best[1]


def is_attestation(entry: Descriptor) -> bool:
    """Something about another entry, and no image."""
    return "vnd.docker.reference.type" in entry.annotations


def wishlist(platform: Platform) -> list[Platform]:
    """What a machine can run, the best first."""
    architecture, variant = platform
    if architecture == "arm64":
        return [Platform("arm64", "v8"), *wishlist(Platform("arm", "v8"))]
    if architecture == "arm":
        newest = int(variant[1:]) if re.fullmatch(r"v[5-8]", variant) else 7
        return [Platform("arm", f"v{n}") for n in range(newest, 4, -1)]
    if architecture == "amd64":
        newest = int(variant[1:]) if re.fullmatch(r"v[1-4]", variant) else 1
        return [*(Platform("amd64", f"v{n}") for n in range(newest, 0, -1)), Platform("386")]
    return [platform]


def rank_of(platform: dict[str, Any], wishes: Sequence[Platform]) -> int:
    """The place of a descriptor's platform among the wishes; -1 if it is none of them."""
    if platform.get("os") != "linux":
        return -1
    architecture = str(platform.get("architecture"))
    variant = str(platform.get("variant") or "")
    default = {"arm64": "v8", "arm": "v7", "amd64": "v1"}.get(architecture, "")
    wanted = Platform(architecture, variant or default)
    return wishes.index(wanted) if wanted in wishes else -1


def show_platform(platform: Platform) -> str:
    """`linux/arm64/v8`."""
    return "/".join(part for part in ("linux", *platform) if part)


def generate(config: Descriptor, layers: Sequence[Descriptor], media_type: str) -> bytes:
    """A manifest in the very form that Docker gives it, so that its digest is the same."""

    def entry(descriptor: Descriptor) -> dict[str, Any]:
        found: dict[str, Any] = {
            "mediaType": descriptor.media_type,
            "size": descriptor.size,
            "digest": descriptor.digest,
        }
        return found | ({"urls": list(descriptor.urls)} if descriptor.urls else {})

    value = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": entry(config),
        "layers": [entry(layer) for layer in layers],
    }
    return json.dumps(value, indent=3).encode()


def layer_type(compression: str, *, oci: bool) -> str:
    """The media type of a layer that is stored like this; only OCI has one for zstd."""
    if oci:
        return OCI_LAYER + {"gzip": "+gzip", "zstd": "+zstd"}.get(compression, "")
    return DOCKER_LAYER + {"gzip": ".gzip"}.get(compression, "")

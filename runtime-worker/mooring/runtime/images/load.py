"""`docker load`: from an archive to images in the store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .archive import Archive, ImageParts, Say, receive
from .build import Builder, Plan
from .compress import CompressionError, Read
from .incoming import Incoming
from .store import ImageStore, LayerInfo, chain_ids, hex_of
from .tar import TarError
from .unpack import BadArchive

_LAYERS = 500
"""The most that one overlay mount takes."""


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image that is complete in the store; the references as the archive has them."""

    id: str
    config: dict[str, Any]
    layers: tuple[LayerInfo, ...]
    references: tuple[str, ...] = ()


@contextmanager
def archive_faults() -> Iterator[None]:
    """Whatever is wrong with the bytes of an archive becomes a BadArchive."""
    try:
        yield
    except (TarError, CompressionError) as exc:
        raise BadArchive(str(exc)) from exc


def receive_archive(
    read: Read, store: ImageStore, job: Path, incoming: Incoming, say: Say | None = None
) -> Archive:
    """Store the members of an archive in the job's directory; BadArchive. say: how far it is."""
    members = job / "members"
    members.mkdir()
    known: set[str] | None = None

    def is_known(digest: str) -> bool:
        nonlocal known
        if not digest:
            return False
        if known is None:
            known = {info.blob for info in store.all_layers()}
        return digest in known

    with archive_faults():
        return receive(read, members, incoming, is_known, say)


def load(
    archive: Archive, store: ImageStore, job: Path, incoming: Incoming, architecture: str
) -> list[LoadedImage]:
    """Put every image of an archive into the store; BadArchive, then undo the job's Pending."""
    builder = Builder(store, job, incoming, unpacked=archive.unpacked)
    parts = archive.images(architecture)
    return [_load_image(archive, image, store, builder) for image in parts]


def _load_image(
    archive: Archive, parts: ImageParts, store: ImageStore, builder: Builder
) -> LoadedImage:
    config = archive.json(parts.config, "the image's config")
    diff_ids = config_diff_ids(config)
    if len(diff_ids) != len(parts.layers):
        raise BadArchive(
            f"invalid manifest, layers length mismatch: expected {len(diff_ids)}, "
            f"got {len(parts.layers)}"
        )
    chains = chain_ids(diff_ids)
    plans = []
    for number, (chain_id, blob) in enumerate(zip(chains, parts.layers, strict=True)):
        if store.has_layer(chain_id):
            continue
        if blob is None:
            raise BadArchive(f"open {parts.layer_names[number]}: no such file or directory")
        lowers = tuple(reversed(chains[:number]))
        plans.append(Plan(number, blob, diff_ids[number], chain_id, lowers))
    builder.build(plans)
    builder.add_blob(parts.config)
    layers = tuple(map(store.layer_info, chains))
    return LoadedImage(parts.config.digest, config, layers, parts.references)


def config_diff_ids(config: Any) -> list[str]:
    """The diff ids of an image's config; BadArchive for what is no config of a Linux image."""
    if not isinstance(config, dict):
        raise BadArchive("the image's config is no JSON object")
    if (system := config.get("os") or "linux") != "linux":
        raise BadArchive(f'image operating system "{system}" cannot be used on this platform')
    rootfs = config.get("rootfs")
    diff_ids = (rootfs.get("diff_ids") if isinstance(rootfs, dict) else None) or []
    if not isinstance(diff_ids, list) or not all(isinstance(d, str) for d in diff_ids):
        raise BadArchive("rootfs.diff_ids of the image's config is no list of strings")
    if len(diff_ids) > _LAYERS:
        raise BadArchive(f"max depth exceeded: {len(diff_ids)} layers, {_LAYERS} can be mounted")
    try:
        for diff_id in diff_ids:
            hex_of(diff_id)
    except ValueError as exc:
        raise BadArchive(str(exc)) from exc
    return diff_ids

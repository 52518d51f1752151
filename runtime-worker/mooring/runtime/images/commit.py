"""An image out of a container: its config, merged as Docker does it, and its layer.

The first half is pure; `commit` is for the loader, a short-lived process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import changes
from .fromdir import layer_from_directory
from .incoming import Blob
from .load import LoadedImage
from .pending import Pending
from .store import ImageStore, chain_ids
from .unpack import BadArchive

Config = dict[str, Any]
"""`config` of an OCI image configuration, with Docker's keys."""


@dataclass(frozen=True, slots=True)
class Step:
    """What an image's history says of its newest step."""

    created_by: str = ""
    author: str = ""
    comment: str = ""


def committed_config(given: Config | None, own: Config, instructions: Sequence[str]) -> Config:
    """The config of a container's image; changes.InvalidChange.

    given: what the user wants instead of the container's own; what it leaves out is filled in.
    """
    return merge(changes.apply(own if given is None else given, instructions), own)


def merge(given: Config, below: Config) -> Config:
    """What is given, completed by what is below, by Docker's rules for each key."""
    merged = dict(given)
    for key in ("User", "WorkingDir", "StopSignal"):
        merged[key] = given.get(key) or below.get(key) or ""
    for key in ("ExposedPorts", "Volumes", "Labels"):
        merged[key] = {**(below.get(key) or {}), **(given.get(key) or {})} or None
    merged["Env"] = _environment(given.get("Env") or [], below.get("Env") or [])
    if not given.get("Entrypoint"):
        if not given.get("Cmd"):
            merged["Cmd"] = below.get("Cmd")
        if given.get("Entrypoint") is None:
            merged["Entrypoint"] = below.get("Entrypoint")
    merged["Healthcheck"] = _health_check(given.get("Healthcheck"), below.get("Healthcheck"))
    return {key: value for key, value in merged.items() if value is not None}


def _environment(given: list[str], below: list[str]) -> list[str]:
    names = {entry.partition("=")[0] for entry in given}
    return given + [entry for entry in below if entry.partition("=")[0] not in names]


def _health_check(given: Config | None, below: Config | None) -> Config | None:
    if not given or not below:
        return given or below
    return {**below, **{key: value for key, value in given.items() if value}}


def child_image(
    parent: Mapping[str, Any],
    config: Config,
    step: Step,
    created: str,
    diff_id: str | None,
    **more: Any,
) -> dict[str, Any]:
    """The config file of an image upon another; without a diff id nothing was added to its files.

    parent: the other one's config file, or {"architecture": …, "os": …}. created: RFC 3339.
    """
    entry = {
        "created": created,
        "author": step.author,
        "created_by": step.created_by,
        "comment": step.comment,
        "empty_layer": diff_id is None,
    }
    diff_ids = list((parent.get("rootfs") or {}).get("diff_ids") or [])
    if diff_id is not None:
        diff_ids.append(diff_id)
    kept = ("architecture", "variant", "os", "os.version", "os.features")
    return {
        **{key: parent[key] for key in kept if parent.get(key)},
        "author": step.author,
        "config": config,
        "created": created,
        "history": [
            *(parent.get("history") or []),
            {key: value for key, value in entry.items() if value},
        ],
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        **more,
    }


def now() -> str:
    """RFC 3339 with microseconds, as configs have it."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def add_config(store: ImageStore, job: Path, config: Mapping[str, Any]) -> str:
    """Put the config file of an image into the store; the image's id."""
    data = json.dumps(config, separators=(",", ":"), ensure_ascii=False).encode()
    blob = Blob(job / "config", f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
    blob.path.write_bytes(data)
    Pending(job).blob(blob.digest, store)
    store.add_blob(blob.path, blob.digest)
    return blob.digest


def commit(store: ImageStore, job: Path, order: Mapping[str, Any]) -> LoadedImage:
    """Make the image that service.py orders; BadArchive for a change that is none, OSError."""
    try:
        config = committed_config(order["given"], order["own"], order["changes"])
    except changes.InvalidChange as exc:
        raise BadArchive(str(exc)) from exc
    parent = json.loads(store.read_blob(order["image"])) if order["image"] else order["platform"]
    chains = chain_ids((parent.get("rootfs") or {}).get("diff_ids") or [])
    directory = Path(order["directory"])
    added = None
    # A container that never ran has none.
    if directory.is_dir():
        move = order.get("move", False)
        added = layer_from_directory(store, job, directory, lowers=chains[::-1], move=move)
    step = Step(order["created_by"], order["author"], order["message"])
    image = child_image(
        parent,
        config,
        step,
        now(),
        added.diff_id if added is not None else None,
        container=order["container"],
    )
    image_id = add_config(store, job, image)
    layers = [store.layer_info(chain) for chain in chains]
    return LoadedImage(image_id, image, (*layers, *([added] if added is not None else [])))

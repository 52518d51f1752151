"""Image records as `docker images`, `inspect` and `history` show them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from mooring.kit.models.image import ImageRecord

from .texts import ZERO_TIME, rfc3339

_RUNTIME_FIELDS = (
    "Hostname",
    "Domainname",
    "AttachStdin",
    "AttachStdout",
    "AttachStderr",
    "Tty",
    "OpenStdin",
    "StdinOnce",
    "Image",
)
"""Of a container's configuration, left out of an image's from API 1.50 on."""
_EMPTY_CONFIG: dict[str, Any] = {
    "Hostname": "",
    "Domainname": "",
    "User": "",
    "AttachStdin": False,
    "AttachStdout": False,
    "AttachStderr": False,
    "Tty": False,
    "OpenStdin": False,
    "StdinOnce": False,
    "Env": None,
    "Cmd": None,
    "Image": "",
    "Volumes": None,
    "WorkingDir": "",
    "Entrypoint": None,
    "OnBuild": None,
    "Labels": None,
}
"""What every configuration shows before API 1.50, set or not."""


def created_seconds(image: ImageRecord) -> int:
    """When the image was made, Unix seconds; 0 if it does not say."""
    if not image.created:
        return 0
    text = image.created.replace("Z", "+00:00")
    whole, dot, rest = text.partition(".")
    if dot:
        digits = len(rest) - len(rest.lstrip("0123456789"))
        text = whole + rest[digits:]
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError):
        return 0


def summary(
    image: ImageRecord,
    tags: list[str],
    digests: list[str],
    *,
    version: tuple[int, int],
    containers: int,
    shared_size: int,
) -> dict[str, Any]:
    """An element of the list; containers is -1 where it was not counted."""
    found: dict[str, Any] = {
        "Containers": containers,
        "Created": created_seconds(image),
        "Id": image.id,
        "Labels": image.config.get("Labels") or {},
        "ParentId": image.parent,
        "RepoDigests": digests,
        "RepoTags": tags,
        "SharedSize": shared_size,
        "Size": image.size,
    }
    if version < (1, 44):
        found["VirtualSize"] = image.size
    if version < (1, 43) and not tags and not digests:
        found["RepoTags"] = ["<none>:<none>"]
        found["RepoDigests"] = ["<none>@<none>"]
    return found


def inspect(
    image: ImageRecord,
    tags: list[str],
    digests: list[str],
    tagged_ns: int,
    version: tuple[int, int],
) -> dict[str, Any]:
    """The whole of an image."""
    config = dict(image.config)
    if version >= (1, 50):
        for name in _RUNTIME_FIELDS:
            config.pop(name, None)
    else:
        config = _EMPTY_CONFIG | config
    found: dict[str, Any] = {
        "Id": image.id,
        "RepoTags": tags,
        "RepoDigests": digests,
        "Parent": image.parent,
        "Comment": image.history[-1].comment if image.history else "",
        "Created": image.created or ZERO_TIME,
        "DockerVersion": "",
        "Author": image.author,
        "Config": config,
        "Architecture": image.architecture,
        "Os": image.os,
        "Size": image.size,
        "GraphDriver": {"Name": "overlay2", "Data": {}},
        "RootFS": {"Type": "layers", "Layers": [layer.diff_id for layer in image.layers]},
        "Metadata": {"LastTagTime": rfc3339(tagged_ns)},
        # Docker leaves it out from 1.45 on, and Compose 1.29, which asks for the newest version
        # there is, then can't make a container again: KeyError 'ContainerConfig'.
        "ContainerConfig": dict(_EMPTY_CONFIG),
    }
    if image.variant:
        found["Variant"] = image.variant
    if version < (1, 45):
        found["Container"] = ""
    if version < (1, 44):
        found["VirtualSize"] = image.size
    return found


def history(image: ImageRecord, lineage: list[tuple[str, list[str]]]) -> list[dict[str, Any]]:
    """The image's steps, newest first.

    lineage: ids and tags of it and of those it was made upon, newest first.
    """
    sizes = iter([layer.size for layer in image.layers])
    rows: list[dict[str, Any]] = []
    for entry in image.history:
        created = created_seconds(image.model_copy(update={"created": entry.created}))
        rows.append(
            {
                "Id": "<missing>",
                "Created": created,
                "CreatedBy": entry.created_by,
                "Tags": None,
                "Size": 0 if entry.empty_layer else next(sizes, 0),
                "Comment": entry.comment,
            }
        )
    if not rows:
        rows = [
            {"Id": "<missing>", "Created": created_seconds(image), "CreatedBy": "", "Tags": None,
             "Size": size, "Comment": ""}
            for size in sizes
        ]  # fmt: skip
    rows.reverse()
    for row, (image_id, tags) in zip(rows, lineage, strict=False):
        row["Id"] = image_id
        row["Tags"] = tags or None
    return rows

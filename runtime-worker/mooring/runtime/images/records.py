"""From what the loader stored to the record of an image. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from mooring.kit.errors import InvalidParameter
from mooring.kit.models.container import ContainerConfig
from mooring.kit.models.event import Event
from mooring.kit.models.image import ImageRecord

_LARGEST = 1 << 20
"""Bytes of a record. Labels are in its events as well, and all that is one message of the bus."""
_DEEPEST = 100
"""Values in values; msgpack has a limit too, and whatever the record is put into counts as well."""
_SETS = ("ExposedPorts", "Volumes")
"""Keys whose values are sets: what their members are does not matter, null neither."""


class Origin(NamedTuple):
    """Where images come from, what they are called, and what is said of each."""

    action: str
    names: Sequence[str] = ()
    """References in full form; none: those that the images bring along."""
    parent: str = ""
    events: Sequence[Callable[[str], Event]] = ()
    """Made of an image's id."""


def image_record(image: dict[str, Any], node: str, now_ns: int, parent: str = "") -> ImageRecord:
    """The record of a LoadedImage (as JSON); InvalidParameter for a config that fits no image."""
    try:
        record = _record(image, node, now_ns, parent)
        size = len(record.pack())
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidParameter(f"invalid image config: {where}: {first['msg']}") from exc
    except (ValueError, OverflowError, RecursionError) as exc:
        # Numbers, text and depths that JSON has and nothing else.
        raise InvalidParameter(f"invalid image config: {exc}") from exc
    if size > _LARGEST:
        raise InvalidParameter(f"invalid image config: it is larger than {_LARGEST} bytes")
    return record


def _record(image: dict[str, Any], node: str, now_ns: int, parent: str) -> ImageRecord:
    config = image["config"]
    layers = [
        {"diff_id": layer["diff_id"], "chain_id": layer["chain_id"], "size": layer["size"]}
        for layer in image["layers"]
    ]
    known = ("created", "author", "architecture", "variant", "os", "config", "history")
    # A key that is null is as good as absent.
    fields = {key: config[key] for key in known if config.get(key) is not None}
    if isinstance(inner := fields.get("config"), dict):
        if _is_deep(inner):
            raise ValueError("it is nested too deeply")
        sets = [key for key in _SETS if isinstance(inner.get(key), dict)]
        inner = inner | {key: {member: {} for member in inner[key]} for key in sets}
        fields["config"] = {k: v for k, v in inner.items() if v is not None}
        # Whoever makes a container of it must be able to read it, and everyone lists its labels.
        ContainerConfig.model_validate(fields["config"])
    return ImageRecord.model_validate(
        fields
        | {
            "id": image["id"],
            "added_ns": now_ns,
            "layers": layers,
            "size": sum(layer["size"] for layer in image["layers"]),
            "nodes": [node],
            "parent": parent,
        }
    )


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            below
            for each in level
            if isinstance(each, dict | list)
            for below in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True

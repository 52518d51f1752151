"""From what the loader stored to the record of an image. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mooring.kit.models.event import Event
from mooring.kit.models.image import ImageRecord


class Origin(NamedTuple):
    """Where images come from, what they are called, and what is said of each."""

    action: str
    names: Sequence[str] = ()
    """References in full form; none: those that the images bring along."""
    parent: str = ""
    events: Sequence[Callable[[str], Event]] = ()
    """Made of an image's id."""


def image_record(image: dict[str, Any], node: str, now_ns: int, parent: str = "") -> ImageRecord:
    """The record of a LoadedImage (as JSON); ValidationError for a config that fits no image."""
    config = image["config"]
    layers = [
        {"diff_id": layer["diff_id"], "chain_id": layer["chain_id"], "size": layer["size"]}
        for layer in image["layers"]
    ]
    known = ("created", "author", "architecture", "variant", "os", "config", "history")
    # A key that is null is as good as absent.
    fields = {key: config[key] for key in known if config.get(key) is not None}
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

"""The filters of the image list."""

from __future__ import annotations

import re
from collections.abc import Callable

from mooring.gateway.schema.images import created_seconds
from mooring.gateway.schema.query import Filters, boolean_filter, has_labels, until_filter
from mooring.kit import references
from mooring.kit.errors import InvalidParameter
from mooring.kit.models.image import ImageRecord

from .images import ImageViews

NAMES = frozenset({"before", "dangling", "label", "label!", "reference", "since", "until"})
_LONGEST = 512

Found = tuple[ImageRecord, list[str]]
"""An image and the tags of it that are shown."""


def select(views: ImageViews, given: Filters, *, intermediate: bool = False) -> list[Found]:
    """The images that pass, newest first, with the tags that pass.

    intermediate: also those without a name that others were made upon.
    """
    parents = set() if intermediate else views.parents()
    tests = [_test(views, name, values, given) for name, values in given.items()]
    shown = _reference_test(given.get("reference", []))
    found: list[Found] = []
    for entry in views.all():
        image = entry.record
        tags = views.tags(image.id)
        if not tags and image.id in parents:
            continue
        if not all(test(image, tags) for test in tests):
            continue
        if "reference" in given:
            tags = [tag for tag in tags if shown(tag)]
            if not tags:
                continue
        found.append((image, tags))
    found.sort(key=lambda pair: -created_seconds(pair[0]))
    return found


def _test(
    views: ImageViews, name: str, values: list[str], given: Filters
) -> Callable[[ImageRecord, list[str]], bool]:
    match name:
        case "dangling":
            wanted = boolean_filter(given, "dangling")
            return lambda image, tags: (not tags and not views.digests(image.id)) == wanted
        case "label":
            return lambda image, tags: has_labels(_labels(image), values)
        case "label!":
            return lambda image, tags: not any(has_labels(_labels(image), [v]) for v in values)
        case "before":
            first = min(created_seconds(views.find(value)) for value in values)
            return lambda image, tags: created_seconds(image) < first
        case "since":
            last = max(created_seconds(views.find(value)) for value in values)
            return lambda image, tags: created_seconds(image) > last
        case "until":
            limit = until_filter(given) or 0
            return lambda image, tags: created_seconds(image) * 1_000_000_000 < limit
    return lambda image, tags: True


def _labels(image: ImageRecord) -> dict[str, str]:
    labels: dict[str, str] | None = image.config.get("Labels")
    return labels or {}


def _reference_test(patterns: list[str]) -> Callable[[str], bool]:
    compiled = [_glob(pattern) for pattern in patterns]

    def test(tag: str) -> bool:
        reference = references.parse(tag)
        names = (tag, reference.familiar_name, str(reference), reference.name)
        return any(pattern.fullmatch(name) for pattern in compiled for name in names)

    return test


def _glob(pattern: str) -> re.Pattern[str]:
    """A shell pattern in which `*` and `?` stop at slashes."""
    if len(pattern) > _LONGEST or pattern.count("*") > 8:
        raise InvalidParameter("invalid filter 'reference': the pattern is too complex")
    # Runs of stars mean one; without this they would multiply the work.
    parts = re.split(r"(\*+|\?|\[\^?\]?[^\]]*\])", pattern)
    text = ""
    for part in parts:
        if part.startswith("*"):
            text += "[^/]*"
        elif part == "?":
            text += "[^/]"
        elif part.startswith("["):
            text += part.replace("\\", "\\\\")
        else:
            text += re.escape(part)
    try:
        return re.compile(text)
    except re.error:
        raise InvalidParameter(f"invalid filter 'reference={pattern}'") from None

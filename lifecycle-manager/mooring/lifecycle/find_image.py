"""From what a user wrote to the image that is meant."""

from __future__ import annotations

from mooring.kit import references
from mooring.kit.errors import InvalidParameter, NotFound
from mooring.kit.models.image import ImageRecord, ReferenceRecord
from mooring.kit.store import key_for

from .engine import Engine

_HEX = frozenset("0123456789abcdef")


def image_key(image_id: str) -> str:
    """The key of an image's record: the digits of its id."""
    return image_id.removeprefix("sha256:")


def find_image(engine: Engine, text: str) -> ImageRecord:
    """By reference, else by id or a unique prefix of one; NotFound in Docker's words."""
    if not references.is_image_id(text):
        reference = references.parse(text).tagged()
        named = engine.references.get(key_for(str(reference)))
        if named is not None:
            row = engine.images.get(image_key(named.record.image_id))
            if row is not None and not row.record.orphan:
                return row.record
    by_id = find_by_id(engine, text)
    if by_id is not None:
        return by_id
    raise NotFound(f"No such image: {_shown(text)}")


def find_by_id(engine: Engine, text: str) -> ImageRecord | None:
    """By id or a unique prefix of one, or None."""
    prefix = text.removeprefix("sha256:").lower()
    if not prefix or not _HEX.issuperset(prefix):
        return None
    exact = engine.images.get(prefix)
    if exact is not None:
        return None if exact.record.orphan else exact.record
    found = [
        row.record
        for row in engine.images.rows()
        if row.key.startswith(prefix) and not row.record.orphan
    ]
    if len(found) > 1:
        raise InvalidParameter(f"multiple IDs found with provided prefix: {prefix}")
    return found[0] if found else None


def references_of(engine: Engine, image_id: str) -> list[ReferenceRecord]:
    """All references to an image, sorted."""
    found = [r for r in engine.references.records() if r.image_id == image_id]
    return sorted(found, key=lambda record: record.reference)


def children_of(engine: Engine, image_id: str) -> list[ImageRecord]:
    """The images that were made upon an image."""
    return [i for i in engine.images.records() if i.parent == image_id and not i.orphan]


def _shown(text: str) -> str:
    try:
        return references.parse(text).tagged().familiar()
    except InvalidParameter:
        return text

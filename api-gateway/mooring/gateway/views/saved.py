"""Which images and which of their names `docker save` puts into an archive."""

from __future__ import annotations

from mooring.kit import references
from mooring.kit.errors import NotFound
from mooring.kit.models.image import ImageRecord

from .images import ImageViews

Chosen = dict[str, tuple[ImageRecord, list[str]]]
"""By image id: the image, and its references in full form that go along."""


def selected(views: ImageViews, names: list[str]) -> Chosen:
    """What the names mean; NotFound, InvalidParameter.

    A tag means itself, a repository all of its tags, an id the image without any name.
    """
    chosen: Chosen = {}
    for name in names:
        for image, full in _meant(views, name):
            _, found = chosen.setdefault(image.id, (image, []))
            if full and full not in found:
                found.append(full)
    return chosen


def _meant(views: ImageViews, name: str) -> list[tuple[ImageRecord, str]]:
    if references.is_image_id(name):
        return [(views.find(name), "")]
    reference = references.parse(name)
    if reference.tag or reference.digest:
        image_id = views.names(name)
        image = views.get(image_id) if image_id else None
        if image is None:
            raise NotFound("reference does not exist")
        return [(image, "" if reference.digest else str(reference))]
    tags = [full for full in views.repository(reference.name) if "@" not in full]
    found = [(image, full) for full in tags if (image := views.get(views.names(full)))]
    if found:
        return found
    try:
        # A unique prefix of an id, perhaps.
        return [(views.find(name), "")]
    except NotFound:
        raise NotFound(f"No such image: {name}") from None

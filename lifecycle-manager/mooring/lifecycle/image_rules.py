"""When an image may be removed: Docker's rules and words."""

from __future__ import annotations

from collections.abc import Sequence

from mooring.kit import references
from mooring.kit.errors import Conflict
from mooring.kit.models.container import ContainerRecord
from mooring.kit.models.image import ReferenceRecord

from .states import LIVE

_SHORT = 12


def is_one_repository(tags: Sequence[ReferenceRecord]) -> bool:
    """At most one tag, and digests only of the same repository: one name for the image."""
    parsed = [references.parse(tag.reference) for tag in tags]
    if len(parsed) <= 1:
        return True
    plain = [reference for reference in parsed if not reference.digest]
    return len(plain) <= 1 and len({reference.name for reference in parsed}) == 1


def check_removable(
    image_id: str,
    tags: Sequence[ReferenceRecord],
    users: Sequence[ContainerRecord],
    *,
    has_children: bool,
    force: bool,
) -> None:
    """Conflict for an image, given by its id, that must not go; users: running ones first."""
    conflict = removal_conflict(users, has_children=has_children, force=force)
    if conflict is None and not force and not is_one_repository(tags):
        conflict = "must be forced", "image is referenced in multiple repositories"
    if conflict is not None:
        way_out, reason = conflict
        short = image_id.removeprefix("sha256:")[:_SHORT]
        raise Conflict(f"conflict: unable to delete {short} ({way_out}) - {reason}")


def removal_conflict(
    users: Sequence[ContainerRecord], *, has_children: bool, force: bool
) -> tuple[str, str] | None:
    """Why containers and other images forbid an image's removal; running ones come first."""
    if has_children:
        return "cannot be forced", "image has dependent child images"
    if not users:
        return None
    user = users[0]
    if user.state in LIVE:
        return (
            "cannot be forced",
            f"image is being used by running container {user.id[:_SHORT]}",
        )
    if force:
        return None
    return "must be forced", f"image is being used by stopped container {user.id[:_SHORT]}"

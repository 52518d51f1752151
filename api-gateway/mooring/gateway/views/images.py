"""Images and their references: found by any name, and as they are listed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mooring.kit import references
from mooring.kit.errors import EngineError, InvalidParameter, NotFound, Unavailable
from mooring.kit.models.image import ImageRecord, ReferenceRecord
from mooring.kit.store import Entry, Mirror, key_for

_HEX = frozenset("0123456789abcdef")


class ImageViews:
    """The images, with an index from image to references."""

    def __init__(self, images: Mirror[ImageRecord], names: Mirror[ReferenceRecord]) -> None:
        self.images = images
        self.references = names
        self.generation = 0
        """Changes whenever an image or a reference does."""
        self._tags: dict[str, list[ReferenceRecord]] | None = None
        self._waiting: list[Callable[[], bool]] = []
        images.subscribe(self._changed)
        names.subscribe(self._renamed)

    def _changed(self, key: str, old: object, new: object) -> None:
        self.generation += 1
        self._waiting = [wake for wake in self._waiting if not wake()]

    def _renamed(self, key: str, old: object, new: object) -> None:
        self._tags = None
        self._changed(key, old, new)

    async def until(self, holds: Callable[[], bool], timeout: float = 5.0) -> None:
        """Wait until something holds of the images; Unavailable."""
        if holds():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> bool:
            if not future.done() and holds():
                future.set_result(None)
            return future.done()

        self._waiting.append(wake)
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            raise Unavailable("the copy of the images is behind") from None

    def tags(self, image_id: str) -> list[str]:
        """The references of an image in their familiar form, tags only, sorted."""
        return sorted(
            references.familiar(record.reference)
            for record in self._references().get(image_id, ())
            if "@" not in record.reference
        )

    def digests(self, image_id: str) -> list[str]:
        """The references of an image by digest in their familiar form, sorted."""
        return sorted(
            references.familiar(record.reference)
            for record in self._references().get(image_id, ())
            if "@" in record.reference
        )

    def lineage(self, image: ImageRecord) -> list[tuple[str, list[str]]]:
        """Ids and tags of an image and of those that a build made it upon, newest first."""
        found: list[tuple[str, list[str]]] = []
        above: ImageRecord | None = image
        while above is not None and len(found) <= len(image.history):
            found.append((above.id, self.tags(above.id)))
            above = self.get(above.parent) if above.parent else None
        return found

    def tagged_ns(self, image_id: str) -> int:
        """When a reference was last pointed at the image."""
        return max((record.tagged_ns for record in self._references().get(image_id, ())), default=0)

    def repository(self, name: str) -> list[str]:
        """All references of a repository (its name in full), sorted."""
        found = (entry.record.reference for entry in self.references.values())
        return sorted(full for full in found if references.parse(full).name == name)

    def get(self, image_id: str) -> ImageRecord | None:
        """The image with exactly this id, `sha256:…`; also one that only containers need."""
        entry = self.images.get(image_id.removeprefix("sha256:"))
        return entry.record if entry is not None else None

    def is_listed(self, image_id: str) -> bool:
        """Whether there is an image with exactly this id that is found by it."""
        found = self.get(image_id)
        return found is not None and not found.orphan

    def names(self, reference: str) -> str:
        """The id of the image that a reference names now; empty if none."""
        try:
            full = references.normalize(reference)
        except EngineError:
            return ""
        entry = self.references.get(key_for(full))
        return entry.record.image_id if entry is not None else ""

    def find(self, name: str) -> ImageRecord:
        """The image by reference, id, or unique prefix of its id; NotFound, InvalidParameter."""
        if references.is_image_id(name):
            found = self.get(name)
            if found is not None and not found.orphan:
                return found
            raise NotFound(f"No such image: {name}")
        image_id = self.names(name)
        found = self.get(image_id) if image_id else None
        if found is not None and not found.orphan:
            return found
        prefix = name.removeprefix("sha256:")
        if prefix and _HEX.issuperset(prefix):
            matching = [
                entry.record
                for entry in self.images.values()
                if entry.record.id.startswith(f"sha256:{prefix}") and not entry.record.orphan
            ]
            if len(matching) > 1:
                raise InvalidParameter(f"multiple IDs found with provided prefix: {name}")
            if matching:
                return matching[0]
        raise NotFound(f"No such image: {self._missing(name)}")

    def shown_name(self, given: str, image_id: str) -> str:
        """How a container's image is listed: its name, unless that names another image now."""
        if references.is_image_id(given):
            return given
        return given if self.names(given) == image_id or given in image_id else image_id

    def all(self) -> list[Entry[ImageRecord]]:
        """Every image that is found by some name."""
        return [entry for entry in self.images.values() if not entry.record.orphan]

    def parents(self) -> set[str]:
        """The ids of images that others were made upon."""
        return {entry.record.parent for entry in self.all()}

    def _references(self) -> dict[str, list[ReferenceRecord]]:
        if self._tags is None:
            self._tags = {}
            for entry in self.references.values():
                self._tags.setdefault(entry.record.image_id, []).append(entry.record)
        return self._tags

    @staticmethod
    def _missing(name: str) -> str:
        """The name with the tag that was looked for."""
        try:
            return references.parse(name).tagged().familiar()
        except EngineError as exc:
            raise InvalidParameter(exc.message) from None

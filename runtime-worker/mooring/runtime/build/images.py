"""Images as a build sees them: found by name, found in the cache, made one out of another."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from mooring.kit import references
from mooring.kit.errors import EngineError
from mooring.kit.models.image import HistoryEntry, ImageRecord, Layer, ReferenceRecord
from mooring.kit.store import Entry, Mirror, key_for

_HEX = frozenset("0123456789abcdef")


class ImageIndex:
    """The records of all images, and which of them are the result of which step."""

    def __init__(self, images: Mirror[ImageRecord], names: Mirror[ReferenceRecord]) -> None:
        self.mirror = images
        self._names = names
        self._results: dict[tuple[str, str], set[str]] = {}
        """By parent and key: ids of images."""
        for entry in images.values():
            self._changed(entry.key, None, entry)
        images.subscribe(self._changed)

    def get(self, image_id: str) -> ImageRecord | None:
        """By its whole id."""
        entry = self.mirror.get(image_id.removeprefix("sha256:"))
        # An orphan is there for the containers that still need its layers, and for nobody else.
        return entry.record if entry is not None and not entry.record.orphan else None

    def find(self, name: str) -> ImageRecord | None:
        """By reference, id or unique prefix of one; None. InvalidParameter for a bad name."""
        if references.is_image_id(name):
            return self.get(name)
        prefix = name.removeprefix("sha256:")
        try:
            reference = str(references.parse(name).tagged())
        except EngineError:
            if not prefix or not _HEX.issuperset(prefix):
                raise
            reference = ""
        if reference and (entry := self._names.get(key_for(reference))) is not None:
            return self.get(entry.record.image_id)
        if prefix and _HEX.issuperset(prefix):
            matching = [key for key in self.mirror if key.startswith(prefix)]
            if len(matching) == 1:
                return self.get(matching[0])
        return None

    def known(self, repository: str) -> dict[str, str]:
        """The image ids of a repository's references, by full reference."""
        return {
            entry.record.reference: entry.record.image_id
            for entry in self._names.values()
            if entry.record.reference.startswith(repository)
        }

    async def arrived(self, image_id: str, timeout: float) -> ImageRecord | None:
        """The image, once it is on record; None if it is not in time (seconds)."""
        key = image_id.removeprefix("sha256:")
        try:
            await self.mirror.until(key, lambda entry: entry is not None, timeout)
        except TimeoutError:
            return None
        return self.get(image_id)

    def result(self, parent: str, key: str) -> ImageRecord | None:
        """What that step made of that image before; the newest."""
        known = (self.get(image_id) for image_id in self._results.get((parent, key), ()))
        return max(
            (image for image in known if image is not None),
            key=lambda image: image.created,
            default=None,
        )

    def is_below(self, image: ImageRecord, parent: str) -> bool:
        """Whether an image was built, by whatever steps, on that one."""
        seen: ImageRecord | None = image
        while seen is not None:
            if seen.id == parent:
                return True
            seen = self.get(seen.parent) if seen.parent else None
        return False

    def _changed(
        self, key: str, old: Entry[ImageRecord] | None, new: Entry[ImageRecord] | None
    ) -> None:
        for entry, present in ((old, False), (new, True)):
            record = entry.record if entry is not None else None
            if record is None or not record.build_key:
                continue
            place = (record.parent, record.build_key)
            if present:
                self._results.setdefault(place, set()).add(record.id)
            elif found := self._results.get(place):
                found.discard(record.id)
                if not found:
                    del self._results[place]


class Cache:
    """Where the results of steps are looked for in one build."""

    def __init__(
        self, index: ImageIndex, sources: Sequence[ImageRecord], *, enabled: bool, limited: bool
    ) -> None:
        """sources: --cache-from; limited: it was given, so nothing else counts."""
        self._index = index
        self._sources = list(sources)
        self._enabled = enabled
        self._limited = limited
        self._missed = False

    def enter_stage(self) -> None:
        """A miss in one stage does not count in the next."""
        self._missed = False

    def look_up(
        self, parent: ImageRecord | None, key: str, command: Sequence[str]
    ) -> ImageRecord | None:
        """What was made before by this step; after a miss there is none in this stage."""
        if not self._enabled or self._missed:
            return None
        found = self._find(parent, key, command)
        self._missed = found is None
        return found

    def _find(
        self, parent: ImageRecord | None, key: str, command: Sequence[str]
    ) -> ImageRecord | None:
        found = self._index.result(parent.id if parent is not None else "", key)
        if not self._limited:
            return found
        if found is not None and any(self._index.is_below(s, found.id) for s in self._sources):
            return found
        for source in self._sources:
            image = _restored(parent, source, key, command)
            if image is not None:
                # No jumping from one image to another in the middle.
                self._sources = [source]
                return image
        return None


def _restored(
    parent: ImageRecord | None, source: ImageRecord, key: str, command: Sequence[str]
) -> ImageRecord | None:
    """The image that source was after this step, told by its history alone."""
    below = parent.history if parent is not None else []
    layers = parent.layers if parent is not None else []
    count = len(below)
    if len(source.history) <= count or source.history[count].created_by != " ".join(command):
        return None
    for mine, theirs in zip(below, source.history, strict=False):
        if (mine.created_by, mine.created) != (theirs.created_by, theirs.created):
            return None
    if [x.diff_id for x in layers] != [x.diff_id for x in source.layers[: len(layers)]]:
        return None
    if len(source.history) == count + 1:
        return source
    entry = source.history[count]
    layer = None if entry.empty_layer else source.layers[len(layers)]
    # What it was configured as in between is not known: the caller says what the step does.
    return ImageRecord(
        id="",
        created=entry.created,
        history=[entry],
        layers=[layer] if layer is not None else [],
        build_key=key,
    )


def child(
    parent: ImageRecord | None,
    config: Mapping[str, Any],
    layer: Layer | None,
    history: HistoryEntry,
    *,
    author: str,
    platform: tuple[str, str],
    node: str,
    key: str,
) -> tuple[ImageRecord, bytes]:
    """The image that a step makes of its parent, and its config as it is stored."""
    layers = [*(parent.layers if parent is not None else []), *([layer] if layer else [])]
    steps = [*(parent.history if parent is not None else []), history]
    architecture = parent.architecture if parent is not None else platform[0]
    variant = parent.variant if parent is not None else platform[1]
    content: dict[str, Any] = {
        "architecture": architecture,
        "config": {name: value for name, value in config.items() if value},
        "created": history.created,
        "history": [step.model_dump(exclude_defaults=True) for step in steps],
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [each.diff_id for each in layers]},
    }
    if author:
        content["author"] = author
    if variant:
        content["variant"] = variant
    data = json.dumps(content, separators=(",", ":"), ensure_ascii=False, sort_keys=True).encode(
        "utf-8", "surrogateescape"
    )
    record = ImageRecord(
        id=f"sha256:{hashlib.sha256(data).hexdigest()}",
        created=history.created,
        added_ns=time.time_ns(),
        author=author,
        architecture=architecture,
        variant=variant,
        config=content["config"],
        layers=layers,
        history=steps,
        size=sum(each.size for each in layers),
        nodes=[node],
        parent=parent.id if parent is not None else "",
        build_key=key,
    )
    return record, data


def now() -> str:
    """The time as an image's config has it; nanoseconds tell quick steps apart."""
    stamp = time.time_ns()
    whole, fraction = divmod(stamp, 1_000_000_000)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"

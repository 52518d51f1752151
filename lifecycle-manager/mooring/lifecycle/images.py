"""Images and references: adding, tagging, removing, by Docker's rules.

What a command comes to is decided first and written down as an `ImageChange`; then it is
carried out step by step. A replica that dies in between leaves the change, and whoever finds
it carries it out from the beginning: every step can be repeated.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Container, Iterable, Sequence

from mooring.kit import faults, references
from mooring.kit.errors import Conflict, InvalidParameter, NotFound
from mooring.kit.models.base import Done
from mooring.kit.models.container import ContainerRecord, Event, State
from mooring.kit.models.image import (
    AddImage,
    ImageChange,
    ImageRecord,
    ImageRemoved,
    NoteImage,
    ReferenceRecord,
    RemoveImage,
    RemoveLayers,
    TagImage,
)
from mooring.kit.store import key_for

from .engine import Engine
from .find_image import children_of, find_image, image_key, references_of
from .image_rules import check_removable, is_one_repository, removal_conflict
from .states import LIVE
from .table import Row

_EVENTS = ("load", "import", "pull")
"""Where an image may come from that is an event of its own."""
_TAG_EVENTS = ("import", "commit", "build")
"""Where its tags are events of their own."""


class ImageHandlers:
    """add, tag, remove, and finishing what was decided."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # --- add, tag ---

    async def add(self, request: AddImage) -> Done:
        """A worker has unpacked an image: record it and tag it."""
        if (before := self._begun(request.request_id)) is not None:
            return Done(revision=(await self._finish_held(before)).revision)
        now = time.time_ns()
        image = request.image
        known = self._engine.images.get(image_key(image.id))
        if known is not None:
            image = _merged(known.record, image)
        elif request.action == "push":
            raise NotFound(f"No such image: {image.id}")
        tags = [references.normalize(text) for text in request.references]
        happenings = _happenings(request, image.id, tags)
        change = ImageChange(
            id=request.request_id,
            add=image.model_copy(update={"added_ns": image.added_ns or now}),
            tag=[ReferenceRecord(reference=t, image_id=image.id, tagged_ns=now) for t in tags],
        )
        done = await self._carry_out(change, image, happenings, request.events)
        return Done(revision=done.revision)

    async def tag(self, request: TagImage) -> Done:
        """Make a reference name an image; it may have named another one."""
        if (before := self._begun(request.request_id)) is not None:
            return Done(revision=(await self._finish_held(before)).revision)
        reference = references.parse(request.reference)
        if reference.digest:
            raise InvalidParameter("refusing to create a tag with a digest reference")
        if reference.domain == references.DEFAULT_DOMAIN and reference.familiar_name in (
            "sha256",
            "sha384",
            "sha512",
        ):
            raise InvalidParameter(
                f"invalid reference format: {reference.familiar_name} is a digest algorithm"
            )
        reference = reference.tagged()
        image = find_image(self._engine, request.image)
        record = ReferenceRecord(
            reference=str(reference), image_id=image.id, tagged_ns=time.time_ns()
        )
        known = self._engine.references.get(key_for(record.reference))
        if known is not None and known.record.image_id == image.id:
            return await self._tag_again(request.request_id, image, record)
        change = ImageChange(id=request.request_id, tag=[record])
        done = await self._carry_out(change, image, [("tag", image.id, reference.familiar())])
        return Done(revision=done.revision)

    async def _tag_again(self, command: str, image: ImageRecord, record: ReferenceRecord) -> Done:
        """The same name for the same image: as whoever asked asks again, nothing can be half done.

        The event comes first. It has the same id when it is published once more.
        """
        name = references.familiar(record.reference)
        event = _event(image, "tag", image.id, name, record.tagged_ns)
        event.id = f"{image_key(image.id)}.{command}.0"
        await self._engine.events.publish(event.actor, event)
        row = await self._engine.references.put(key_for(record.reference), record)
        return Done(revision=row.revision)

    async def note(self, request: NoteImage) -> Done:
        """Publish an event of images that changes none."""
        now = time.time_ns()
        for number, text in enumerate(request.images):
            image = find_image(self._engine, text)
            event = _event(image, request.action, image.id, image.id, now + number)
            event.id = f"{image_key(image.id)}.note.{request.request_id}"
            await self._engine.events.publish(event.actor, event)
        return Done()

    # --- remove ---

    async def remove(self, request: RemoveImage) -> ImageRemoved:
        """Untag, and delete when the last reference goes; Conflict while it is used."""
        if (before := self._begun(request.request_id)) is not None:
            return _answer(await self._finish_held(before))
        if not request.image.strip():
            raise InvalidParameter("image name cannot be blank")
        image = find_image(self._engine, request.image)
        tags = references_of(self._engine, image.id)
        users = self.users(image.id)
        has_children = bool(children_of(self._engine, image.id))
        named = self._named(request.image, image)
        if named is not None:
            untag = self._untag_one(image, named, tags, users, force=request.force)
            conflict = removal_conflict(users, has_children=has_children, force=False)
            delete = len(untag) == len(tags) and conflict is None
        else:
            check_removable(image.id, tags, users, has_children=has_children, force=request.force)
            untag, delete = tags, True
        if not delete:
            return await self._remove(request.request_id, image, untag, [])
        if users:
            return await self._orphan(request.request_id, image, untag)
        parents = [] if request.noprune else self._idle_parents(image)
        return await self._remove(request.request_id, image, untag, [image, *parents])

    def _idle_parents(self, image: ImageRecord) -> list[ImageRecord]:
        """The images it was made upon, as far as they are there for nothing else."""
        found: list[ImageRecord] = []
        child = image
        while child.parent:
            row = self._engine.images.get(image_key(child.parent))
            if row is None or row.record.orphan:
                break
            parent = row.record
            others = [c for c in children_of(self._engine, parent.id) if c.id != child.id]
            if others or references_of(self._engine, parent.id) or self.users(parent.id):
                break
            found.append(parent)
            child = parent
        return found

    async def collect(self) -> None:
        """Remove for good what was removed by force, once no container needs it any more."""
        for image in self._engine.images.records():
            if image.orphan and not self.users(image.id):
                change = ImageChange(id=secrets.token_hex(16), delete=image)
                await self._carry_out(change, image, [])

    def _named(self, text: str, image: ImageRecord) -> ReferenceRecord | None:
        """The reference that the user gave; None if it was an id."""
        if references.is_image_id(text):
            return None
        with contextlib.suppress(InvalidParameter):
            key = key_for(references.normalize(text))
            row = self._engine.references.get(key)
            if row is not None and row.record.image_id == image.id:
                return row.record
        return None

    def _untag_one(
        self,
        image: ImageRecord,
        named: ReferenceRecord,
        tags: list[ReferenceRecord],
        users: list[ContainerRecord],
        *,
        force: bool,
    ) -> list[ReferenceRecord]:
        if is_one_repository(tags) and users and not force:
            shown = references.familiar(named.reference)
            raise Conflict(
                f'conflict: unable to remove repository reference "{shown}" (must force) - '
                f"container {users[0].id[:12]} is using its referenced image "
                f"{image_key(image.id)[:12]}"
            )
        name = references.parse(named.reference).name
        rest = [tag for tag in tags if tag.reference != named.reference]
        same = [tag for tag in rest if references.parse(tag.reference).name == name]
        if any(not references.parse(tag.reference).digest for tag in same):
            return [named]
        # What is left of this repository are digests: they go with its last tag.
        return [named, *same]

    async def _remove(
        self,
        command: str,
        image: ImageRecord,
        untag: list[ReferenceRecord],
        delete: list[ImageRecord],
    ) -> ImageRemoved:
        """delete: the image, then those that it was made upon; or nothing."""
        happenings = [("untag", image.id, image.id) for _ in untag]
        happenings += [("delete", gone.id, gone.id) for gone in delete]
        kept = set(self._chains_of_others({gone.id for gone in delete}))
        deleted: list[str] = []
        for number, gone in enumerate(delete):
            # A layer goes with the last image that has it.
            later = {layer.chain_id for other in delete[number + 1 :] for layer in other.layers}
            chains = [layer.chain_id for layer in reversed(gone.layers)]
            deleted += [gone.id, *(c for c in chains if c not in kept and c not in later)]
        change = ImageChange(
            id=command,
            untag=untag,
            delete=delete[0] if delete else None,
            parents=delete[1:],
            deleted=deleted,
        )
        return _answer(await self._carry_out(change, image, happenings))

    async def _orphan(
        self, command: str, image: ImageRecord, untag: list[ReferenceRecord]
    ) -> ImageRemoved:
        """Removed for everyone but the stopped containers that need its layers."""
        change = ImageChange(
            id=command,
            add=image.model_copy(update={"orphan": True, "parent": ""}),
            untag=untag,
            deleted=[image.id],
        )
        happenings = [("untag", image.id, image.id) for _ in untag]
        happenings.append(("delete", image.id, image.id))
        return _answer(await self._carry_out(change, image, happenings))

    def users(self, image_id: str) -> list[ContainerRecord]:
        """The containers of an image, running ones first."""
        users = [
            record
            for record in self._engine.containers.records()
            if record.state is not State.REMOVED
            and (record.image_id == image_id or any(m.image_id == image_id for m in record.mounts))
        ]
        return sorted(users, key=lambda record: record.state not in LIVE)

    def _chains_of_others(self, image_ids: Container[str]) -> Iterable[str]:
        for image in self._engine.images.records():
            if image.id not in image_ids:
                yield from (layer.chain_id for layer in image.layers)

    # --- carrying out ---

    async def _carry_out(
        self,
        change: ImageChange,
        image: ImageRecord,
        happenings: list[tuple[str, str, str]],
        more: Sequence[Event] = (),
    ) -> ImageChange:
        now = time.time_ns()
        change.owner, change.decided_ns = self._engine.owner, now
        change.events = [
            _event(image, action, actor, name, now + number)
            for number, (action, actor, name) in enumerate(happenings)
        ]
        for number, event in enumerate(change.events):
            event.id = f"{image_key(image.id)}.{change.id}.{number}"
        last = now + len(change.events)
        change.events += [
            event.model_copy(update={"time_ns": last + number}) for number, event in enumerate(more)
        ]
        key = key_for(change.id)
        with self._engine.holding(key):
            try:
                row = await self._engine.changes.create(key, change)
            except Conflict:
                # The same request again, at another replica.
                row = await self._engine.changes.fetch(key)
            faults.point("lifecycle.image.decided")
            return await self.finish(row)

    def _begun(self, command: str) -> Row[ImageChange] | None:
        """The change that this very command was decided to be, if it is sent again."""
        return self._engine.changes.get(key_for(command))

    async def _finish_held(self, row: Row[ImageChange]) -> ImageChange:
        with self._engine.holding(row.key):
            return await self.finish(row)

    async def finish(self, row: Row[ImageChange]) -> ImageChange:
        """Carry out a change that was decided; the change, done."""
        engine, change = self._engine, row.record
        if change.done_ns:
            return change
        revision = 0
        if change.add is not None:
            added = await engine.images.put(image_key(change.add.id), change.add)
            revision = added.revision
        for tag in change.tag:
            revision = (await engine.references.put(key_for(tag.reference), tag)).revision
        for tag in change.untag:
            revision = max(revision, await self._untag(tag))
        faults.point("lifecycle.image.tagged")
        if change.delete is not None:
            for image in (change.delete, *change.parents):
                revision = await engine.images.delete(image_key(image.id))
                faults.point("lifecycle.image.deleted")
                await self._free_layers(image)
        for event in change.events:
            await engine.events.publish(event.actor, event)
        faults.point("lifecycle.image.published")
        done = change.model_copy(update={"done_ns": time.time_ns(), "revision": revision})
        await engine.changes.put(row.key, done)
        return done

    async def _untag(self, tag: ReferenceRecord) -> int:
        """Delete a reference unless it names another image by now."""
        table, key = self._engine.references, key_for(tag.reference)
        with contextlib.suppress(NotFound, Conflict):
            row = await table.fetch(key)
            if row.record.image_id == tag.image_id:
                return await table.delete(key, row.revision)
        return 0

    async def _free_layers(self, image: ImageRecord) -> None:
        keep = sorted(set(self._chains_of_others({image.id})))
        for node in image.nodes or [n.id for n in self._engine.nodes.records()]:
            request = RemoveLayers(image=image, keep=keep)
            with contextlib.suppress(NotFound):
                await self._engine.hosts.remove_layers(node, request)


def _event(image: ImageRecord, action: str, actor: str, name: str, time_ns: int) -> Event:
    labels: dict[str, str] = image.config.get("Labels") or {}
    return Event(
        type="image",
        action=action,
        actor=actor,
        attributes={**labels, "name": name},
        time_ns=time_ns,
    )


def _happenings(request: AddImage, image_id: str, tags: list[str]) -> list[tuple[str, str, str]]:
    """What is told: action, actor, name. A pull is told of the reference."""
    if request.action == "pull" and tags:
        reference = references.parse(tags[0])
        return [(request.action, reference.familiar(), reference.familiar_name)]
    found = [(request.action, image_id, image_id)] if request.action in _EVENTS else []
    if request.action in _TAG_EVENTS:
        found += [("tag", image_id, references.familiar(tag)) for tag in tags]
    return found


def _answer(change: ImageChange) -> ImageRemoved:
    return ImageRemoved(
        revision=change.revision,
        untagged=[references.familiar(tag.reference) for tag in change.untag],
        deleted=change.deleted,
    )


def _merged(known: ImageRecord, new: ImageRecord) -> ImageRecord:
    """The image again, perhaps from another host or another registry."""
    return new.model_copy(
        update={
            "added_ns": known.added_ns,
            "nodes": sorted({*known.nodes, *new.nodes}),
            "manifests": list(dict.fromkeys([*known.manifests, *new.manifests])),
            # Where a build made it, that it came once more from an archive changes nothing.
            "parent": new.parent or known.parent,
            "build_key": new.build_key or known.build_key,
        }
    )

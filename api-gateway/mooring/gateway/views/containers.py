"""Containers: found by any name, and their JSON kept as bytes until something changes."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable

from mooring.gateway.http.reply import JSON, Reply, dumps
from mooring.gateway.schema import containers as schema
from mooring.kit.errors import InvalidParameter, NotFound
from mooring.kit.models.container import ContainerRecord, State
from mooring.kit.models.exec import ExecRecord, ExecState
from mooring.kit.store import Entry, Mirror

from .images import ImageViews
from .networks import NetworkViews

_ID_LENGTH = 64
_HEX = frozenset("0123456789abcdef")


class _Listed:
    """A container's element of the list: bytes around its status, and the status."""

    __slots__ = ("after", "before", "body", "until_ns")

    def __init__(self, before: bytes, after: bytes) -> None:
        self.before = before
        self.after = after
        self.body = b""
        self.until_ns = 0


class ContainerViews:
    """The containers of the engine. Tombstones are in `mirror`, and in nothing else here."""

    def __init__(
        self,
        mirror: Mirror[ContainerRecord],
        execs: Mirror[ExecRecord],
        images: ImageViews,
        networks: NetworkViews,
        run_dir: Callable[[str], str],
    ) -> None:
        self.mirror = mirror
        self._images = images
        self.networks = networks
        self._run_dir = run_dir
        self._execs: dict[str, set[str]] = {}
        self._by_name: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._stale: set[str] = set(mirror)
        """Containers whose name may have changed since the index was made."""
        self._ids: list[str] | None = None
        self._newest: list[ContainerRecord] | None = None
        self._listed: dict[str, _Listed] = {}
        self._lists: dict[bool, tuple[int, Reply]] = {}
        self._image_generation = images.generation
        self._inspected: dict[str, Reply] = {}
        for exec_entry in execs.values():
            self._exec_changed(exec_entry.key, None, exec_entry)
        mirror.subscribe(self._changed)
        execs.subscribe(self._exec_changed)

    # --- following the records ---

    def _changed(
        self, key: str, old: Entry[ContainerRecord] | None, new: Entry[ContainerRecord] | None
    ) -> None:
        # Decoding the record can wait until somebody asks: most revisions nobody does.
        self._stale.add(key)
        self._ids = self._newest = None
        self._listed.pop(key, None)
        self._inspected.pop(key, None)
        self._lists.clear()

    def _refresh_names(self) -> None:
        """Bring the index of names up to date."""
        for key in self._stale:
            before = self._names.pop(key, "")
            if self._by_name.get(before) == key:
                del self._by_name[before]
            entry = self.mirror.get(key)
            if entry is not None and entry.record.state is not State.REMOVED:
                self._names[key] = entry.record.name
                self._by_name[entry.record.name] = key
        self._stale.clear()

    def _exec_changed(
        self, key: str, old: Entry[ExecRecord] | None, new: Entry[ExecRecord] | None
    ) -> None:
        entry = new or old
        if entry is None:
            return
        container = entry.record.container
        mine = self._execs.setdefault(container, set())
        if new is None or new.record.state is ExecState.EXITED:
            mine.discard(key)
        else:
            mine.add(key)
        if not mine:
            del self._execs[container]
        self._inspected.pop(container, None)

    # --- finding one ---

    def find(self, name: str) -> ContainerRecord:
        """The container by id, name (with or without slash) or unique prefix of its id.

        NotFound; InvalidParameter if the prefix is not unique.
        """
        record = self._exact(name)
        if record is not None:
            return record
        if name and len(name) < _ID_LENGTH and _HEX.issuperset(name):
            ids = self._sorted_ids()
            at = bisect_left(ids, name)
            if at < len(ids) and ids[at].startswith(name):
                if at + 1 < len(ids) and ids[at + 1].startswith(name):
                    raise InvalidParameter(f"multiple IDs found with provided prefix: {name}")
                return self.mirror[ids[at]].record
        raise NotFound(f"No such container: {name}")

    def _exact(self, name: str) -> ContainerRecord | None:
        entry = self.mirror.get(name) if len(name) == _ID_LENGTH else None
        if entry is None:
            if self._stale:
                self._refresh_names()
            key = self._by_name.get(name.removeprefix("/"))
            entry = self.mirror.get(key) if key is not None else None
        if entry is None or entry.record.state is State.REMOVED:
            return None
        return entry.record

    def newest_first(self) -> list[ContainerRecord]:
        """All containers that are there, newest first."""
        if self._newest is None:
            found = [entry.record for entry in self.mirror.values()]
            self._newest = sorted(
                (record for record in found if record.state is not State.REMOVED),
                key=lambda record: -record.created_ns,
            )
        return self._newest

    def _sorted_ids(self) -> list[str]:
        if self._ids is None:
            self._ids = sorted(record.id for record in self.newest_first())
        return self._ids

    # --- as bytes ---

    def list_all(self, *, stopped: bool) -> Reply:
        """The whole list, of running containers or of all."""
        now = time.time_ns()
        self._follow_images()
        kept = self._lists.get(stopped)
        if kept is not None and now < kept[0]:
            return kept[1]
        records = self.newest_first()
        if not stopped:
            records = [record for record in records if record.state in schema.RUNNING_STATES]
        until = 1 << 63
        bodies: list[bytes] = []
        for record in records:
            listed = self._entry(record, now)
            bodies.append(listed.body)
            until = min(until, listed.until_ns)
        reply = Reply(200, b"[" + b",".join(bodies) + b"]\n", JSON)
        self._lists[stopped] = (until, reply)
        return reply

    def element(self, record: ContainerRecord) -> bytes:
        """One container's element of the list, now."""
        self._follow_images()
        return self._entry(record, time.time_ns()).body

    def inspect(self, record: ContainerRecord) -> Reply:
        """The container's whole description; the same in every version served."""
        reply = self._inspected.get(record.id)
        if reply is None:
            exec_ids = sorted(self._execs.get(record.id, ()))
            body = schema.inspect(record, exec_ids, self._run_dir(record.node))
            reply = self._inspected[record.id] = Reply(200, dumps(body) + b"\n", JSON)
        return reply

    def exec_ids(self, container_id: str) -> list[str]:
        """The execs of a container that have not ended."""
        return sorted(self._execs.get(container_id, ()))

    def _entry(self, record: ContainerRecord, now: int) -> _Listed:
        listed = self._listed.get(record.id)
        if listed is None:
            name = self._images.shown_name(record.image, record.image_id)
            body = dumps(schema.summary(record, name))
            listed = self._listed[record.id] = _Listed(body[:-1] + b',"Status":"', b'"}')
        if now >= listed.until_ns:
            text, listed.until_ns = schema.status(record, now)
            listed.body = listed.before + text.encode() + listed.after
        return listed

    def _follow_images(self) -> None:
        """A container's image is listed by name only as long as that names it."""
        if self._image_generation != self._images.generation:
            self._image_generation = self._images.generation
            self._listed.clear()
            self._lists.clear()

"""Records as this replica knows them: a watched copy, what it wrote itself, and compare-and-set.

Decisions are taken from memory and proved by the store: a write that was decided on an outdated
copy fails its compare-and-set, and a refusal is given only after looking at the store itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

from mooring.kit.errors import EngineError, StaleRevision
from mooring.kit.models.base import Model

R = TypeVar("R", bound=Model)
R_co = TypeVar("R_co", bound=Model, covariant=True)


class Entry(Protocol[R_co]):
    """A record as the store has it at one revision."""

    @property
    def key(self) -> str: ...
    @property
    def record(self) -> R_co: ...
    @property
    def revision(self) -> int: ...


class Mirror(Protocol[R_co]):
    """A watched copy of a bucket."""

    def get(self, key: str) -> Entry[R_co] | None: ...
    def values(self) -> Sequence[Entry[R_co]]: ...
    def subscribe(
        self, callback: Callable[[str, Entry[R_co] | None, Entry[R_co] | None], None]
    ) -> Callable[[], None]: ...


class Bucket(Protocol[R]):
    """What is needed of kit.store.Bucket."""

    async def get(self, key: str) -> Entry[R]: ...
    async def create(self, key: str, record: R) -> int: ...
    async def update(self, key: str, record: R, revision: int) -> int: ...
    async def put(self, key: str, record: R) -> int: ...
    async def delete(self, key: str, revision: int | None = None) -> int: ...


class Row(Generic[R]):
    """One record at one revision. Do not change the record: it is shared."""

    __slots__ = ("key", "record", "revision")

    def __init__(self, key: str, record: R, revision: int) -> None:
        self.key = key
        self.record = record
        self.revision = revision


Watcher = Callable[[str, R | None, R | None], None]


class Table(Generic[R]):
    """One bucket. `prepare` sees each record before it is written, `written` after."""

    def __init__(
        self,
        bucket: Bucket[R],
        mirror: Mirror[R],
        *,
        prepare: Callable[[R], R] | None = None,
        written: Callable[[R], None] | None = None,
    ) -> None:
        self._bucket = bucket
        self._prepare = prepare
        self._written = written
        self._rows: dict[str, Row[R]] = {}
        self._writing: dict[str, list[Entry[R] | None]] = {}
        """The keys that are being written here, and how the watched copy saw them change since."""
        self._watchers: list[Watcher[R]] = []
        self._waiting: dict[str, list[tuple[Callable[[R | None], bool], asyncio.Future[None]]]]
        self._waiting = {}
        mirror.subscribe(self._on_change)
        for entry in mirror.values():
            self._accept(Row(entry.key, entry.record, entry.revision))

    # --- what is known here ---

    def get(self, key: str) -> Row[R] | None:
        """The newest version that this process has seen."""
        return self._rows.get(key)

    def rows(self) -> list[Row[R]]:
        """All that this process has seen, in no particular order."""
        return list(self._rows.values())

    def records(self) -> list[R]:
        """The records of all rows."""
        return [row.record for row in self._rows.values()]

    def watch(self, watcher: Watcher[R]) -> None:
        """Call `watcher(key, old, new)` at each change, and now for each row there is."""
        self._watchers.append(watcher)
        for row in self._rows.values():
            watcher(row.key, None, row.record)

    async def until(
        self, key: str, predicate: Callable[[R | None], bool], timeout: float
    ) -> Row[R] | None:
        """Wait until the record of `key` (None: there is none) satisfies; TimeoutError."""
        row = self._rows.get(key)
        if predicate(row.record if row else None):
            return row
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (predicate, future)
        self._waiting.setdefault(key, []).append(waiter)
        try:
            async with asyncio.timeout(timeout):
                await future
            return self._rows.get(key)
        finally:
            waiters = self._waiting.get(key, [])
            with contextlib.suppress(ValueError):
                waiters.remove(waiter)
            if not waiters:
                self._waiting.pop(key, None)

    # --- the store ---

    async def fetch(self, key: str) -> Row[R]:
        """The record as the store has it now; NotFound."""
        entry = await self._bucket.get(key)
        row = Row(key, entry.record, entry.revision)
        self._accept(row)
        return row

    async def find(self, key: str) -> Row[R]:
        """From memory, or else from the store; NotFound."""
        return self._rows.get(key) or await self.fetch(key)

    async def create(self, key: str, record: R) -> Row[R]:
        """Write a record that is not there yet; Conflict if it is."""
        return await self._write(key, record, self._bucket.create(key, record))

    async def put(self, key: str, record: R) -> Row[R]:
        """Write a record, whatever was there."""
        return await self._write(key, record, self._bucket.put(key, record))

    async def delete(self, key: str, revision: int | None = None) -> int:
        """Delete a key (if it is still at `revision`); StaleRevision."""
        deleted = await self._bucket.delete(key, revision)
        self._drop(key)
        return deleted

    async def change(self, key: str, decide: Callable[[R], R]) -> Row[R]:
        """Replace the record by what `decide` makes of it; NotFound, or what `decide` raises.

        `decide` may be called several times. It returns the record itself to change nothing.
        """
        row = self._rows.get(key)
        # Memory may lag behind the store, so it is only good for what a write will prove.
        proved = row is None
        if row is None:
            row = await self.fetch(key)
        while True:
            try:
                record = decide(row.record)
            except EngineError:
                if proved:
                    raise
                record = row.record
            if record is row.record:
                if proved:
                    return row
                row, proved = await self.fetch(key), True
                continue
            if self._prepare is not None:
                record = self._prepare(record)
            try:
                return await self._write(
                    key, record, self._bucket.update(key, record, row.revision)
                )
            except StaleRevision:
                row, proved = await self.fetch(key), True

    async def check(self, key: str, check: Callable[[R], None]) -> Row[R]:
        """The row, if its record passes; NotFound, or what `check` raises.

        What passes by memory passes; a refusal is given only after looking at the store.
        """
        row = self._rows.get(key)
        if row is not None:
            try:
                check(row.record)
            except EngineError:
                pass
            else:
                return row
        row = await self.fetch(key)
        check(row.record)
        return row

    # --- keeping up ---

    async def _write(self, key: str, record: R, write: Awaitable[int]) -> Row[R]:
        # The watched copy usually has our own write before we know that it succeeded: what comes
        # meanwhile is looked at afterwards, when it need not even be decoded.
        changes = self._writing.setdefault(key, [])
        row: Row[R] | None = None
        own: Row[R] | None = None
        try:
            row = own = Row(key, record, await write)
        finally:
            if self._writing.get(key) is changes:
                del self._writing[key]
                for change in changes:
                    if own is not None and change is not None and change.revision >= own.revision:
                        self._accept(own)
                        own = None
                    self._follow(key, change)
        if own is not None:
            self._accept(own)
        if self._written is not None:
            self._written(record)
        return row

    def _on_change(self, key: str, old: Entry[R] | None, new: Entry[R] | None) -> None:
        writing = self._writing.get(key)
        if writing is not None:
            writing.append(new)
        else:
            self._follow(key, new)

    def _follow(self, key: str, new: Entry[R] | None) -> None:
        if new is None:
            self._drop(key)
            return
        known = self._rows.get(key)
        # Our own write comes back: it need not even be decoded.
        if known is None or known.revision < new.revision:
            self._accept(Row(key, new.record, new.revision))

    def _accept(self, row: Row[R]) -> None:
        known = self._rows.get(row.key)
        if known is not None and known.revision >= row.revision:
            return
        self._rows[row.key] = row
        self._changed(row.key, known.record if known else None, row.record)

    def _drop(self, key: str) -> None:
        known = self._rows.pop(key, None)
        if known is not None:
            self._changed(key, known.record, None)

    def _changed(self, key: str, old: R | None, new: R | None) -> None:
        for watcher in self._watchers:
            watcher(key, old, new)
        for predicate, future in self._waiting.get(key, ()):
            if not future.done() and predicate(new):
                future.set_result(None)

"""A table's rows while it writes: its own writes, those of others, and deletions, in any order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from mooring.kit.models.container import NameRecord
from mooring.kit.store import Entry
from mooring.lifecycle.table import Table

KEY = "web"
Change = Callable[[str, Entry[NameRecord] | None, Entry[NameRecord] | None], None]


class Copy:
    """A watched copy that changes when the test says so."""

    def __init__(self) -> None:
        self.callbacks: list[Change] = []

    def get(self, key: str) -> Entry[NameRecord] | None:
        """Nothing at the beginning."""
        return None

    def values(self) -> Sequence[Entry[NameRecord]]:
        """Nothing at the beginning."""
        return []

    def subscribe(self, callback: Change) -> Callable[[], None]:
        """Remember whom to tell."""
        self.callbacks.append(callback)
        return lambda: None

    def sees(self, revision: int, id_: str | None) -> None:
        """A change arrives; None: the key is deleted."""
        raw = NameRecord(id=id_).pack() if id_ is not None else b""
        entry = Entry(KEY, raw, revision, NameRecord) if id_ is not None else None
        for callback in self.callbacks:
            callback(KEY, None, entry)


class Store:
    """A bucket whose writes succeed when the test says so."""

    def __init__(self) -> None:
        self.written: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def put(self, key: str, record: NameRecord) -> int:
        """Wait for the test."""
        return await self.written


def seen(table: Table[NameRecord]) -> tuple[int, str] | None:
    row = table.get(KEY)
    return (row.revision, row.record.id) if row is not None else None


async def begin() -> tuple[Table[NameRecord], Copy, Store, asyncio.Task[object]]:
    copy, store = Copy(), Store()
    table: Table[NameRecord] = Table(store, copy)  # type: ignore[arg-type]
    writing = asyncio.create_task(table.put(KEY, NameRecord(id="mine")))
    await asyncio.sleep(0)
    return table, copy, store, writing


async def test_an_own_write_that_comes_back_before_its_answer_is_not_decoded() -> None:
    table, copy, store, writing = await begin()
    for callback in copy.callbacks:
        callback(KEY, None, Entry(KEY, b"never looked at", 5, NameRecord))
    store.written.set_result(5)
    await writing
    assert seen(table) == (5, "mine")


async def test_what_others_wrote_after_an_own_write_wins() -> None:
    table, copy, store, writing = await begin()
    copy.sees(5, "mine")
    copy.sees(6, "theirs")
    store.written.set_result(5)
    await writing
    assert seen(table) == (6, "theirs")


async def test_a_deletion_before_an_own_write_does_not_hide_it() -> None:
    table, copy, store, writing = await begin()
    copy.sees(3, "old")
    copy.sees(4, None)
    copy.sees(5, "mine")
    store.written.set_result(5)
    await writing
    assert seen(table) == (5, "mine")


async def test_a_deletion_after_an_own_write_is_not_undone_by_its_answer() -> None:
    table, copy, store, writing = await begin()
    copy.sees(5, "mine")
    copy.sees(6, None)
    store.written.set_result(5)
    await writing
    assert seen(table) is None


async def test_a_write_that_failed_hides_nothing() -> None:
    table, copy, store, writing = await begin()
    copy.sees(7, "theirs")
    store.written.set_exception(RuntimeError("refused"))
    await asyncio.gather(writing, return_exceptions=True)
    assert seen(table) == (7, "theirs")
    copy.sees(8, "later")
    assert seen(table) == (8, "later")

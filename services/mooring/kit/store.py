"""Records in JetStream KV buckets: compare-and-set by revision, and watched copies in memory.

A bucket's revision is the sequence of its stream, so one number says how far a copy has come.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from .errors import Conflict, NotFound, StaleRevision, Unavailable
from .jetstream import WRONG_LAST_SEQUENCE, ApiError, JetStream, OrderedReader
from .models.base import Model
from .nats_protocol import Msg, encode_headers

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Model)

TOMBSTONE_AGE = 60.0
"""Seconds that the mark of a deleted key is kept for copies that have not seen it yet."""


def key_for(text: str) -> str:
    """Any text as a key: what NATS does not allow in one is encoded, the result is reversible."""
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=") or "="


def text_of(key: str) -> str:
    """The text that `key_for` made this key of."""
    if key == "=":
        return ""
    return base64.urlsafe_b64decode(key + "=" * (-len(key) % 4)).decode()


class Entry(Generic[R]):
    """A record as it was at one revision. `raw` is its msgpack."""

    __slots__ = ("_model", "_record", "key", "raw", "revision")

    def __init__(self, key: str, raw: bytes, revision: int, model: type[R]) -> None:
        self.key = key
        self.raw = raw
        self.revision = revision
        self._model = model
        self._record: R | None = None

    @property
    def record(self) -> R:
        """The record; decoded when first asked for. Do not change it: it is shared."""
        if self._record is None:
            self._record = self._model.unpack(self.raw)
        return self._record


_Watcher = tuple[Callable[[Entry[R] | None], bool], "asyncio.Future[Entry[R] | None]"]


class Bucket(Generic[R]):
    """One KV bucket, one type of record."""

    def __init__(self, jetstream: JetStream, name: str, model: type[R]) -> None:
        self.name = name
        self._jetstream = jetstream
        self._model = model
        self._stream = f"KV_{name}"
        self._prefix = f"$KV.{name}."
        self._mirror: Mirror[R] | None = None
        self._mirror_lock = asyncio.Lock()
        self._sweeper = _Sweeper(jetstream, self._stream)

    async def ensure(self) -> None:
        """Create the bucket's stream if it is not there."""
        await self._jetstream.ensure_stream(
            {
                "name": self._stream,
                "subjects": [f"{self._prefix}>"],
                "retention": "limits",
                "max_consumers": -1,
                "max_msgs": -1,
                "max_bytes": -1,
                "max_age": 0,
                "max_msgs_per_subject": 1,
                "discard": "new",
                "storage": "file",
                "num_replicas": 1,
                "allow_direct": True,
                "allow_rollup_hdrs": True,
            }
        )

    async def get(self, key: str) -> Entry[R]:
        """The record as the server has it now; NotFound."""
        message = await self._jetstream.last(self._stream, self._prefix + key)
        if message is None or b"KV-Operation" in message.header:
            raise NotFound(f"no {key} in {self.name}")
        revision = int(message.headers()["Nats-Sequence"])
        return Entry(key, message.data, revision, self._model)

    async def create(self, key: str, record: R) -> int:
        """Store a record under a key that is free; Conflict if it is not."""
        try:
            return await self._write(key, record.pack(), 0)
        except StaleRevision:
            # The key may have been deleted: then its mark is what holds the last revision.
            message = await self._jetstream.last(self._stream, self._prefix + key)
        if message is not None and b"KV-Operation" not in message.header:
            raise Conflict(f"{key} exists in {self.name}")
        revision = int(message.headers()["Nats-Sequence"]) if message is not None else 0
        try:
            return await self._write(key, record.pack(), revision)
        except StaleRevision:
            raise Conflict(f"{key} exists in {self.name}") from None

    async def update(self, key: str, record: R, revision: int) -> int:
        """Store a record if the key is still at `revision`; StaleRevision if it is not."""
        return await self._write(key, record.pack(), revision)

    async def put(self, key: str, record: R) -> int:
        """Store a record, whatever was there."""
        return await self._write(key, record.pack(), None)

    async def delete(self, key: str, revision: int | None = None) -> int:
        """Delete a key (if it is still at `revision`); StaleRevision."""
        revision = await self._write(key, b"", revision, deleting=True)
        self._sweeper.add(revision)
        return revision

    async def mirror(self) -> Mirror[R]:
        """The watched copy of this bucket, complete when this returns; one to a process."""
        async with self._mirror_lock:
            if self._mirror is None:
                mirror = Mirror(self, self._jetstream, self._model)
                await mirror.open(self._stream, self._prefix)
                self._mirror = mirror
            return self._mirror

    async def close(self) -> None:
        """Stop watching and sweeping."""
        if self._mirror is not None:
            await self._mirror.close()
        await self._sweeper.close()

    async def _write(
        self, key: str, data: bytes, expected: int | None, *, deleting: bool = False
    ) -> int:
        fields = {"KV-Operation": "DEL"} if deleting else {}
        if expected is not None:
            fields["Nats-Expected-Last-Subject-Sequence"] = str(expected)
        header = encode_headers(fields) if fields else b""
        uncertain: list[bool] = []
        try:
            return await self._jetstream.publish(
                self._prefix + key,
                data,
                header=header,
                on_uncertain=lambda: uncertain.append(True),
            )
        except ApiError as exc:
            if exc.code != WRONG_LAST_SEQUENCE:
                raise Unavailable(f"cannot write to {self.name}: {exc}") from exc
        if uncertain:
            # Sent again after the connection broke: perhaps it was us who changed it.
            message = await self._jetstream.last(self._stream, self._prefix + key)
            if message is not None and message.data == data:
                revision = int(message.headers()["Nats-Sequence"])
                if revision > (expected or 0) and deleting == (b"KV-Operation" in message.header):
                    return revision
        raise StaleRevision(f"{key} in {self.name} was changed by another")


class Mirror(Generic[R]):
    """A bucket's content in memory, kept up to date by watching it. Reads like a mapping."""

    def __init__(self, bucket: Bucket[R], jetstream: JetStream, model: type[R]) -> None:
        self._bucket = bucket.name
        self._jetstream = jetstream
        self._model = model
        self._entries: dict[str, Entry[R]] = {}
        self._unseen: set[str] | None = None
        self._prefix_length = 0
        self._reader: OrderedReader | None = None
        self._complete = asyncio.Event()
        self._callbacks: list[Callable[[str, Entry[R] | None, Entry[R] | None], None]] = []
        self._watchers: dict[str, list[_Watcher[R]]] = {}
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    # --- a mapping ---

    def __getitem__(self, key: str) -> Entry[R]:
        return self._entries[key]

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def get(self, key: str) -> Entry[R] | None:
        """The entry, or None."""
        return self._entries.get(key)

    def values(self) -> list[Entry[R]]:
        """All entries, in the order in which their keys were created."""
        return list(self._entries.values())

    # --- following it ---

    @property
    def revision(self) -> int:
        """How far this copy has come."""
        return self._reader.seq if self._reader is not None else 0

    async def reached(self, revision: int, timeout: float = 5.0) -> None:
        """Wait until this copy has seen `revision`; Unavailable after `timeout` seconds."""
        if self.revision >= revision:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        item = (revision, future)
        self._waiting.append(item)
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            raise Unavailable(
                f"the copy of {self._bucket} is behind: at {self.revision}, not yet {revision}"
            ) from None
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(item)

    def subscribe(
        self, callback: Callable[[str, Entry[R] | None, Entry[R] | None], None]
    ) -> Callable[[], None]:
        """Call back with key, old and new entry at each change; returns what ends it."""
        self._callbacks.append(callback)

        def unsubscribe() -> None:
            with contextlib.suppress(ValueError):
                self._callbacks.remove(callback)

        return unsubscribe

    async def until(
        self,
        key: str,
        predicate: Callable[[Entry[R] | None], bool],
        timeout: float | None = None,
    ) -> Entry[R] | None:
        """Wait until the entry of `key` (None: there is none) satisfies; TimeoutError."""
        entry = self._entries.get(key)
        if predicate(entry):
            return entry
        future: asyncio.Future[Entry[R] | None] = asyncio.get_running_loop().create_future()
        watcher = (predicate, future)
        watchers = self._watchers.setdefault(key, [])
        watchers.append(watcher)
        try:
            async with asyncio.timeout(timeout):
                return await future
        finally:
            watchers.remove(watcher)
            if not watchers and self._watchers.get(key) is watchers:
                del self._watchers[key]

    # --- the watch ---

    async def open(self, stream: str, prefix: str) -> None:
        """Begin to watch; returns when the copy is complete."""
        self._prefix_length = len(prefix)
        self._reader = OrderedReader(
            self._jetstream,
            stream,
            ">",
            on_message=self._on_message,
            on_begin=self._on_begin,
            on_current=self._on_current,
            whole_after=TOMBSTONE_AGE / 2,
        )
        await self._reader.start()
        await self._complete.wait()

    async def close(self) -> None:
        """Stop watching."""
        if self._reader is not None:
            await self._reader.close()

    def _on_begin(self) -> None:
        # The bucket was made anew: what is not in the new one by its end is gone.
        self._unseen = set(self._entries)

    def _on_current(self) -> None:
        unseen, self._unseen = self._unseen, None
        for key in unseen or ():
            self._change(key, None)
        self._complete.set()
        self._wake()

    def _on_message(self, message: Msg, seq: int, time_ns: int) -> None:
        key = message.subject[self._prefix_length :]
        if self._unseen is not None:
            self._unseen.discard(key)
        deleted = message.header and b"KV-Operation" in message.header
        self._change(key, None if deleted else Entry(key, message.data, seq, self._model))
        if self._waiting:
            self._wake()

    def _change(self, key: str, new: Entry[R] | None) -> None:
        old = self._entries.get(key)
        if new is not None:
            self._entries[key] = new
        elif old is not None:
            del self._entries[key]
        else:
            return
        for callback in tuple(self._callbacks):
            try:
                callback(key, old, new)
            except Exception:
                logger.exception("a change of %s in %s was not handled", key, self._bucket)
        for predicate, future in self._watchers.get(key, ()):
            if not future.done():
                try:
                    if predicate(new):
                        future.set_result(new)
                except Exception as exc:
                    future.set_exception(exc)

    def _wake(self) -> None:
        reached = self.revision
        for revision, future in self._waiting:
            if revision <= reached and not future.done():
                future.set_result(None)


class _Sweeper:
    """Removes the marks of keys that this process deleted, when every copy has seen them."""

    def __init__(self, jetstream: JetStream, stream: str) -> None:
        self._jetstream = jetstream
        self._stream = stream
        self._marks: deque[tuple[float, int]] = deque()
        self._task: asyncio.Task[None] | None = None

    def add(self, revision: int) -> None:
        """Remove this mark when it is old enough."""
        self._marks.append((time.monotonic() + TOMBSTONE_AGE, revision))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._sweep(), name=f"sweep {self._stream}")

    async def close(self) -> None:
        """Stop; what is left is removed by nobody, it only costs its few bytes."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _sweep(self) -> None:
        while self._marks:
            due, revision = self._marks[0]
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            try:
                await self._jetstream.api(
                    f"STREAM.MSG.DELETE.{self._stream}", {"seq": revision, "no_erase": True}
                )
            except ApiError:
                pass  # Overwritten since: the key was created again.
            except Unavailable:
                continue
            self._marks.popleft()

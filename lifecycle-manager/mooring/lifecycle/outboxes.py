"""Events that were decided and perhaps not published: found and published, once.

The stream forgets an event's id after two minutes; until then publishing it again does no harm.
So an outbox that is older is compared with the stream first, and one whose events are known to
be stored is emptied well before it gets that old.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from typing import NamedTuple, TypeVar, cast

from mooring.kit import subjects
from mooring.kit.errors import NotFound
from mooring.kit.models.container import ContainerRecord, Event
from mooring.kit.models.exec import ExecRecord
from mooring.kit.models.network import NetworkRecord

from .engine import Engine, Message
from .states import SECOND

_DEDUPLICATED = 90 * SECOND
"""Publishing again is harmless for so long; the stream remembers ids for 120 s."""
_EMPTY_AFTER = 45 * SECOND
_FOREIGN_AFTER = 5 * SECOND
"""What another replica should have published is published here after this time."""
_MARGIN = 10 * SECOND
"""How far the clocks of this process and of the stream may be apart."""


_R = TypeVar("_R", ContainerRecord, ExecRecord, NetworkRecord)


class _Outbox(NamedTuple):
    key: str
    actor: str
    events: list[Event]


class Outboxes:
    """The outboxes of all records, containers and execs."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def recover(self) -> None:
        """At the start of a replica: publish what the last one may not have published."""
        await self._publish(list(self._all()))

    async def look(self, now: int) -> None:
        """Publish what nobody is known to have published; empty what is old and stored."""
        unknown = []
        for outbox in self._all():
            age = now - outbox.events[-1].time_ns
            if age < _FOREIGN_AFTER:
                continue
            if not self._is_stored(outbox.events):
                unknown.append(outbox)
            elif age > _EMPTY_AFTER:
                await self._empty(outbox)
        await self._publish(unknown)

    def _is_stored(self, events: Iterable[Event]) -> bool:
        return all(self._engine.events.is_stored(event) for event in events)

    async def _publish(self, outboxes: list[_Outbox]) -> None:
        """Publish outboxes, after a look at the stream for events that are old."""
        limit = time.time_ns() - _DEDUPLICATED
        await self._mark_stored(
            [e for outbox in outboxes for e in outbox.events if e.time_ns < limit]
        )
        for outbox in outboxes:
            self._engine.events.push(outbox.actor, outbox.events)

    async def _mark_stored(self, old: list[Event]) -> None:
        events = self._engine.events
        wanted = {event.id: event for event in old if not events.is_stored(event)}
        if not wanted:
            return
        bus = self._engine.bus
        since = min(event.time_ns for event in wanted.values()) - _MARGIN
        last = await bus.last(subjects.EVENTS_STREAM, subjects.EVENTS)
        if last is None or last.time_ns < since:
            return
        stream = bus.follow(subjects.EVENTS_STREAM, subject=subjects.EVENTS, since_ns=since)
        async with contextlib.aclosing(cast(AsyncGenerator[Message, None], stream)) as messages:
            async for message in messages:
                event = wanted.pop(Event.unpack(message.data).id, None)
                if event is not None:
                    events.mark_stored(event)
                if message.seq >= last.seq or not wanted:
                    return

    async def _empty(self, outbox: _Outbox) -> None:
        with contextlib.suppress(NotFound):
            if self._engine.networks.get(outbox.key) is not None:
                await self._engine.networks.change(outbox.key, self._emptied)
            elif outbox.key == outbox.actor:
                await self._engine.containers.change(outbox.key, self._emptied)
            else:
                await self._engine.execs.change(outbox.key, self._emptied)

    def _emptied(self, record: _R) -> _R:
        if not record.outbox or not self._is_stored(record.outbox):
            return record
        return record.model_copy(update={"outbox": []})

    def _all(self) -> Iterator[_Outbox]:
        for container in self._engine.containers.records():
            if container.outbox:
                yield _Outbox(container.id, container.id, container.outbox)
        for execution in self._engine.execs.records():
            if execution.outbox:
                yield _Outbox(execution.id, execution.container, execution.outbox)
        for network in self._engine.networks.records():
            if network.outbox:
                yield _Outbox(network.id, network.id, network.outbox)

"""Docker's events: their attributes, and publishing each of them exactly once, in order.

An event is written in the outbox of the record whose change it tells of, in the same
compare-and-set, and published afterwards. Whoever writes a record publishes all of its outbox,
and leaves out of the next version only what it has itself seen stored. So an event is on the
stream at least once and, as its id is its Nats-Msg-Id, at most once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NamedTuple

from mooring.kit.errors import EngineError
from mooring.kit.models.container import ContainerRecord, Event, MountPoint

from .tasks import wind_up

logger = logging.getLogger(__name__)

_RETRY_WAIT = 0.5


class NetworkHappening(NamedTuple):
    """An event to be: a container is connected to a network, or disconnected."""

    action: str
    network: str
    network_id: str
    driver: str


class VolumeHappening(NamedTuple):
    """An event to be: a volume is mounted for a container, or was."""

    action: str
    volume: str
    attributes: Mapping[str, str]


Happening = tuple[str, Mapping[str, str]] | NetworkHappening | VolumeHappening
"""An event to be: action, and the attributes that only this action has."""


def container_event(
    record: ContainerRecord, happening: Happening, event_id: str, time_ns: int
) -> Event:
    """An event of a container, with the attributes that all of them have."""
    if isinstance(happening, NetworkHappening):
        return Event(
            id=event_id,
            type="network",
            action=happening.action,
            actor=happening.network_id,
            attributes={
                "container": record.id,
                "name": happening.network,
                "type": happening.driver,
            },
            time_ns=time_ns,
        )
    if isinstance(happening, VolumeHappening):
        return Event(
            id=event_id,
            type="volume",
            action=happening.action,
            actor=happening.volume,
            attributes={"container": record.id, **happening.attributes},
            time_ns=time_ns,
        )
    action, own = happening
    attributes = dict(record.config.labels or {})
    attributes.update(own)
    if record.image:
        attributes["image"] = record.image
    attributes["name"] = record.name
    return Event(
        id=event_id, action=action, actor=record.id, attributes=attributes, time_ns=time_ns
    )


def mounted(mounts: Iterable[MountPoint]) -> list[Happening]:
    """A container starts with these mounts: what happens to its volumes."""
    found: list[Happening] = []
    for mount in mounts:
        if mount.type == "volume":
            attributes = {
                "driver": mount.driver,
                "destination": mount.destination,
                "read/write": "true" if mount.rw else "false",
                "propagation": mount.propagation,
            }
            found.append(VolumeHappening("mount", mount.name, attributes))
    return found


def unmounted(mounts: Iterable[MountPoint]) -> list[Happening]:
    """It has ended."""
    return [
        VolumeHappening("unmount", mount.name, {"driver": mount.driver})
        for mount in mounts
        if mount.type == "volume"
    ]


def origin_of(event: Event) -> tuple[str, int]:
    """Whose outbox the event is from, and its number there (0 for one that is in no outbox)."""
    origin, _, serial = event.id.rpartition(".")
    return origin, int(serial) if serial.isdigit() else 0


class Publisher:
    """Publishes in the order of the pushes to one actor; actors don't wait for one another."""

    def __init__(self, publish: Callable[[Event], Awaitable[None]]) -> None:
        self._publish = publish
        self._queues: dict[str, deque[tuple[Event, asyncio.Future[None] | None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._queued: dict[str, int] = {}
        self._stored: dict[str, int] = {}

    def push(self, actor: str, events: Iterable[Event]) -> None:
        """Publish those of an outbox that were not pushed before; does not wait."""
        for event in events:
            origin, serial = origin_of(event)
            if serial > self._queued.get(origin, 0):
                self._queued[origin] = serial
                self._append(actor, event, None)

    async def publish(self, actor: str, event: Event) -> None:
        """Publish an event that is in no outbox, after those pushed before; waits for it."""
        done = asyncio.get_running_loop().create_future()
        self._append(actor, event, done)
        await done

    def is_stored(self, event: Event) -> bool:
        """Whether this process has seen the event stored."""
        origin, serial = origin_of(event)
        return serial <= self._stored.get(origin, 0)

    def mark_stored(self, event: Event) -> None:
        """Somebody else has seen it stored."""
        origin, serial = origin_of(event)
        self._stored[origin] = max(serial, self._stored.get(origin, 0))
        self._queued[origin] = max(serial, self._queued.get(origin, 0))

    def forget(self, origin: str) -> None:
        """There will be no more events of this record."""
        self._queued.pop(origin, None)
        self._stored.pop(origin, None)

    async def close(self, timeout: float = 2.0) -> None:
        """Wait for what is under way, `timeout` seconds at most; the rest is in the outboxes."""
        await wind_up(self._tasks, timeout)

    def _append(self, actor: str, event: Event, done: asyncio.Future[None] | None) -> None:
        queue = self._queues.get(actor)
        if queue is not None:
            queue.append((event, done))
            return
        self._queues[actor] = deque([(event, done)])
        task = asyncio.create_task(self._drain(actor), name=f"events of {actor}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drain(self, actor: str) -> None:
        queue = self._queues[actor]
        while queue:
            event, done = queue[0]
            try:
                await self._publish(event)
            except EngineError as exc:
                logger.warning("event %s is not published yet: %s", event.id, exc)
                await asyncio.sleep(_RETRY_WAIT)
                continue
            queue.popleft()
            self._note_stored(event)
            if done is not None and not done.done():
                done.set_result(None)
        del self._queues[actor]

    def _note_stored(self, event: Event) -> None:
        origin, serial = origin_of(event)
        # After forget() there is nobody who would ask, or remove the number again.
        if serial and origin in self._queued:
            self._stored[origin] = serial

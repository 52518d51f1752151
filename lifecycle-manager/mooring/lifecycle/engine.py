"""What the handlers of one replica share: the records, the way to the hosts, the events.

Nothing here is the only copy of anything: a replica that is killed loses no more than time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Protocol, TypeVar

from mooring.kit import subjects
from mooring.kit.errors import Unavailable
from mooring.kit.models.base import Done, Model, Request
from mooring.kit.models.container import ContainerRecord, Event, NameRecord, State
from mooring.kit.models.exec import ExecRecord
from mooring.kit.models.host import NodeRecord
from mooring.kit.models.image import ImageChange, ImageRecord, ReferenceRecord
from mooring.kit.models.network import NetworkClaims, NetworkRecord
from mooring.kit.models.volume import VolumeRecord

from .events import Publisher
from .hosts import Hosts
from .names import Names
from .states import Claim
from .table import Bucket, Mirror, Table
from .tasks import Tasks

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Model)

_PING_VALID = 1.0
"""Seconds that an answer of another replica counts."""
_PING_TIMEOUT = 0.6
"""Seconds; a replica that does not answer for so long has its transitions taken over."""


class Message(Protocol):
    """One message of a stream."""

    @property
    def seq(self) -> int: ...
    @property
    def time_ns(self) -> int: ...
    @property
    def data(self) -> bytes: ...


class Bus(Protocol):
    """What is needed of kit.bus.Bus."""

    async def request(
        self, subject: str, message: Request, reply: type[R], *, timeout: float = 30.0
    ) -> R: ...
    async def publish(self, subject: str, message: Model) -> None: ...
    async def publish_durable(self, subject: str, message: Model, *, msg_id: str) -> None: ...
    async def bucket(self, name: str, model: type[R]) -> MirroredBucket[R]: ...
    def follow(
        self, stream: str, *, subject: str, since_ns: int | None = None
    ) -> AsyncIterator[Message]: ...
    async def last(self, stream: str, subject: str) -> Message | None: ...


class MirroredBucket(Bucket[R], Protocol[R]):
    """A bucket and its watched copy."""

    async def mirror(self) -> Mirror[R]: ...


class Engine:
    """One replica's view of everything. Made by `open_engine`."""

    def __init__(self, bus: Bus, owner: str) -> None:
        self.bus = bus
        self.owner = owner
        self.hosts = Hosts(bus)
        self.events = Publisher(self._publish)
        self.tasks = Tasks()
        self.containers: Table[ContainerRecord]
        self.execs: Table[ExecRecord]
        self.images: Table[ImageRecord]
        self.references: Table[ReferenceRecord]
        self.nodes: Table[NodeRecord]
        self.changes: Table[ImageChange]
        self.networks: Table[NetworkRecord]
        self.network_claims: Table[NetworkClaims]
        self.volumes: Table[VolumeRecord]
        self.names: Names
        self.by_name: dict[str, str] = {}
        """Container ids by name, of all that are not removed."""
        self.by_command: dict[str, str] = {}
        """Container ids by the command that changed them last, for its repetition."""
        self.execs_of: dict[str, dict[str, None]] = {}
        """The execs of each container, oldest first."""
        self._held: Counter[str] = Counter()
        self._alive: dict[str, tuple[float, bool]] = {}

    # --- who does what ---

    def claim(self, command: str) -> Claim:
        """A change by this replica, now."""
        return Claim(self.owner, command, time.time_ns())

    @contextlib.contextmanager
    def holding(self, key: str) -> Iterator[None]:
        """While this lasts, a transition of this record is being carried out here."""
        self._held[key] += 1
        try:
            yield
        finally:
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]

    def is_held(self, key: str) -> bool:
        """Whether this replica is at it."""
        return key in self._held

    async def abandoned(self, owner: str, key: str) -> bool:
        """Whether nobody is carrying out a transition any more that `owner` began."""
        if owner == self.owner:
            return key not in self._held
        if not owner:
            return True
        return not await self._is_alive(owner)

    async def _is_alive(self, owner: str) -> bool:
        seen = self._alive.get(owner)
        if seen is not None and time.monotonic() - seen[0] < _PING_VALID:
            return seen[1]
        alive = await self._answers(owner)
        self._alive[owner] = time.monotonic(), alive
        return alive

    async def _answers(self, owner: str) -> bool:
        try:
            await self.bus.request(subjects.replica(owner), Request(), Done, timeout=_PING_TIMEOUT)
        except Unavailable:
            return False
        return True

    # --- records ---

    async def open(self) -> None:
        """Open every bucket; returns when this replica knows all there is."""
        bus = self.bus
        containers, execs, images, references, nodes, changes = await asyncio.gather(
            bus.bucket(subjects.BUCKET_CONTAINERS, ContainerRecord),
            bus.bucket(subjects.BUCKET_EXECS, ExecRecord),
            bus.bucket(subjects.BUCKET_IMAGES, ImageRecord),
            bus.bucket(subjects.BUCKET_REFERENCES, ReferenceRecord),
            bus.bucket(subjects.BUCKET_NODES, NodeRecord),
            bus.bucket(subjects.BUCKET_CHANGES, ImageChange),
        )
        self.containers = Table(
            containers,
            await containers.mirror(),
            prepare=self._prune_outbox,
            written=lambda record: self.events.push(record.id, record.outbox),
        )
        self.execs = Table(
            execs,
            await execs.mirror(),
            prepare=self._prune_outbox,
            written=lambda record: self.events.push(record.container, record.outbox),
        )
        self.images = Table(images, await images.mirror())
        self.references = Table(references, await references.mirror())
        self.nodes = Table(nodes, await nodes.mirror())
        self.changes = Table(changes, await changes.mirror())
        volumes = await bus.bucket(subjects.BUCKET_VOLUMES, VolumeRecord)
        self.volumes = Table(volumes, await volumes.mirror())
        names = await bus.bucket(subjects.BUCKET_NAMES, NameRecord)
        self.names = Names(names, await names.mirror(), self.containers, self.owner, self.abandoned)
        networks, claims = await asyncio.gather(
            bus.bucket(subjects.BUCKET_NETWORKS, NetworkRecord),
            bus.bucket(subjects.BUCKET_NETWORK_CLAIMS, NetworkClaims),
        )
        self.networks = Table(
            networks,
            await networks.mirror(),
            prepare=self._prune_outbox,
            written=lambda record: self.events.push(record.id, record.outbox),
        )
        self.network_claims = Table(claims, await claims.mirror())
        self.containers.watch(self._index)
        self.execs.watch(self._index_exec)

    async def close(self) -> None:
        """End the work in the background; what is left undone is found again by anybody."""
        await self.tasks.close()
        await self.events.close()

    def load(self) -> dict[str, int]:
        """How many containers each node has."""
        return Counter(
            record.node for record in self.containers.records() if record.state != State.REMOVED
        )

    def _index(self, key: str, old: ContainerRecord | None, new: ContainerRecord | None) -> None:
        renamed = old is not None and (new is None or new.name != old.name or _is_removed(new))
        if old is not None and renamed and self.by_name.get(old.name) == key:
            del self.by_name[old.name]
        if old is not None and (new is None or new.command_id != old.command_id):
            self.by_command.pop(old.command_id, None)
        if new is not None:
            self.by_command[new.command_id] = key
            if not _is_removed(new):
                self.by_name[new.name] = key

    def _index_exec(self, key: str, old: ExecRecord | None, new: ExecRecord | None) -> None:
        if new is not None:
            self.execs_of.setdefault(new.container, {})[key] = None
        elif old is not None:
            of = self.execs_of.get(old.container, {})
            of.pop(key, None)
            if not of:
                self.execs_of.pop(old.container, None)

    def _prune_outbox(self, record: OutboxRecord) -> OutboxRecord:
        """Leave out what this replica has seen stored; the record is not written yet."""
        if any(self.events.is_stored(event) for event in record.outbox):
            record.outbox = [e for e in record.outbox if not self.events.is_stored(e)]
        return record

    async def _publish(self, event: Event) -> None:
        subject = subjects.event(event.type, event.action)
        await self.bus.publish_durable(subject, event, msg_id=event.id)


OutboxRecord = TypeVar("OutboxRecord", ContainerRecord, ExecRecord, NetworkRecord)


def _is_removed(record: ContainerRecord) -> bool:
    return record.state is State.REMOVED


async def open_engine(bus: Bus, owner: str) -> Engine:
    """An engine that knows every record."""
    engine = Engine(bus, owner)
    await engine.open()
    return engine

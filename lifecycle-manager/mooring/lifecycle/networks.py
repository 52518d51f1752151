"""Creating and removing networks.

A network's name, subnets and link are claimed in one record (NetworkClaims) by compare-and-set, so
of two creates that want the same one fails. Then it has a record (creating), is made on its host,
and is active. Removing goes the other way. Whatever is left half-done is finished by `finish`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Iterable

from mooring.kit import faults
from mooring.kit.endpoints import PREDEFINED, predefined_id
from mooring.kit.errors import (
    Conflict,
    EngineError,
    Forbidden,
    InvalidParameter,
    NotFound,
    StaleRevision,
    Unavailable,
)
from mooring.kit.models.base import Done
from mooring.kit.models.container import ContainerRecord, Event
from mooring.kit.models.network import (
    BridgeReady,
    Claimed,
    CreateNetwork,
    IpamPool,
    NetworkClaims,
    NetworkCreated,
    NetworkRecord,
    NetworkRequest,
    NetworksPruned,
    Progress,
    PruneNetworks,
)

from . import network_rules, network_states
from .engine import Engine
from .states import SECOND
from .table import Row

logger = logging.getLogger(__name__)

CLAIMS = "all"
"""The key of the only record in its bucket."""
_DRIVERS = {"bridge": "bridge", "host": "host", "none": "null"}
_CLAIM_LIMIT = 120 * SECOND
"""A claim without a record that is older than this belongs to nobody, whoever lives."""

SETTLED_SECONDS = 20.0
"""How long a create waits for a network of the same name that is being made or removed."""
_LOOK_SECONDS = 1.0
"""After so long it is looked at again: a claim whose replica died is given back."""


class NetworkHandlers:
    """create, remove, prune; and the networks that always exist."""

    def __init__(self, engine: Engine, pools: str) -> None:
        self._engine = engine
        self._pools = pools

    # --- create ---

    async def create(self, request: CreateNetwork) -> NetworkCreated:
        """Create a network; Conflict for the name, Forbidden for a subnet."""
        engine = self._engine
        network_id = hashlib.sha256(f"network {request.request_id}".encode()).hexdigest()
        known = engine.networks.get(network_id)
        if known is None:
            known = await self._begin(request, network_id)
        with engine.holding(network_id):
            row = await self.finish_create(known)
        return NetworkCreated(network_id=network_id, revision=row.revision)

    async def _begin(self, request: CreateNetwork, network_id: str) -> Row[NetworkRecord]:
        engine = self._engine
        record = network_rules.draft(request, network_id)
        nodes = engine.nodes.records()
        if not nodes:
            raise Unavailable("no host has joined the engine yet: its runtime worker is starting")
        record.node = max(nodes, key=lambda node: node.seen_ns).id
        with engine.holding(network_id):
            record = await self._claim_in_turn(record)
            faults.point("lifecycle.network.claimed")
            record = network_states.creating(record, engine.claim(request.request_id))
            try:
                return await engine.networks.create(network_id, record)
            except Conflict:
                # A repetition of this very request was faster.
                return await engine.networks.fetch(network_id)

    async def finish_create(self, row: Row[NetworkRecord]) -> Row[NetworkRecord]:
        """Have the host make it; a refusal takes everything back."""
        engine, record = self._engine, row.record
        if record.progress is not Progress.CREATING:
            return row
        try:
            await engine.hosts.ensure_network(record.node, record)
        except Unavailable:
            raise
        except EngineError:
            await self._take_back(record)
            raise
        faults.point("lifecycle.network.made")
        now = time.time_ns()
        return await engine.networks.change(row.key, lambda r: network_states.created(r, now))

    async def _take_back(self, record: NetworkRecord) -> None:
        """It could not be made; unless somebody else has made it, and perhaps removed it."""
        networks, now = self._engine.networks, time.time_ns()
        with contextlib.suppress(NotFound):
            if (await networks.fetch(record.id)).record.progress is Progress.CREATING:
                await self._unclaim(record.id)
                await networks.change(record.id, lambda r: network_states.refused(r, now))

    # --- remove ---

    async def remove(self, request: NetworkRequest) -> Done:
        """Remove a network; Forbidden for a predefined one, and while containers are on it."""
        engine = self._engine
        row = await self.resolve(request.network, request.request_id)
        record = row.record
        if record.name in PREDEFINED:
            raise Forbidden(f"{record.name} is a pre-defined network and cannot be removed")
        with engine.holding(row.key):
            claim = engine.claim(request.request_id)
            if record.progress is Progress.ACTIVE:
                self._check_unused(record)
            row = await engine.networks.change(row.key, lambda r: network_states.removing(r, claim))
            faults.point("lifecycle.network.removing")
            row = await self.finish_remove(row)
        return Done(revision=row.revision)

    async def finish_remove(self, row: Row[NetworkRecord]) -> Row[NetworkRecord]:
        """Have the host take it away. A start that was faster keeps it."""
        engine, record = self._engine, row.record
        if record.progress is not Progress.REMOVING:
            return row
        try:
            # Again, now that no start finds it any more: one may have begun meanwhile.
            self._check_unused(record)
            await engine.hosts.remove_network(record.node, record)
        except Unavailable:
            raise
        except EngineError:
            await engine.networks.change(row.key, network_states.kept)
            raise
        faults.point("lifecycle.network.unmade")
        await self._unclaim(record.id)
        now = time.time_ns()
        return await engine.networks.change(row.key, lambda r: network_states.removed(r, now))

    async def prune(self, request: PruneNetworks) -> NetworksPruned:
        """Remove what no container uses."""
        deleted, revision = [], 0
        for record in self._engine.networks.records():
            if record.name in PREDEFINED or record.progress is not Progress.ACTIVE:
                continue
            if not _passes(record, request) or self._users(record):
                continue
            command = f"{request.request_id}.{record.id}"
            try:
                done = await self.remove(NetworkRequest(request_id=command, network=record.id))
            except (Forbidden, Conflict, NotFound):
                continue
            deleted.append(record.name)
            revision = max(revision, done.revision)
        now = time.time_ns()
        event = Event(
            id=f"prune.network.{request.request_id}",
            type="network",
            action="prune",
            attributes={"reclaimed": "0"},
            time_ns=now,
        )
        await self._engine.events.publish("prune", event)
        return NetworksPruned(deleted=deleted, revision=revision)

    def _check_unused(self, record: NetworkRecord) -> None:
        if users := self._users(record):
            raise network_states.in_use(record, users)

    def _users(self, record: NetworkRecord) -> list[ContainerRecord]:
        records = self._engine.containers.records()
        return [each for each in records if network_states.uses(each, record.name)]

    # --- finding ---

    async def resolve(self, text: str, command: str = "") -> Row[NetworkRecord]:
        """A network by name, id or unique prefix; NotFound, InvalidParameter if it is several."""
        networks = self._engine.networks
        if command:
            for row in networks.rows():
                if row.record.command_id == command:
                    return row
        rows = [row for row in networks.rows() if _is_shown(row.record)]
        for row in rows:
            if row.key == text or row.record.name == text:
                return row
        matching = [row for row in rows if text and row.key.startswith(text)]
        if len(matching) > 1:
            raise InvalidParameter(
                f"network {text} is ambiguous ({len(matching)} matches found on ID)"
            )
        if not matching:
            # Another replica may have created it a moment ago.
            claims, _ = await self._claims()
            for key, claim in claims.claims.items():
                if text in (key, claim.name):
                    row = await networks.fetch(key)
                    if _is_shown(row.record):
                        return row
            raise NotFound(f"network {text} not found")
        return matching[0]

    # --- what always exists ---

    async def predefined(self) -> None:
        """See that they have their records; a host tells later what its bridge is like."""
        for name in PREDEFINED:
            await self._put_predefined(name, {})

    async def bridge_ready(self, fact: BridgeReady) -> None:
        """A host says what its default bridge is."""
        options = {
            "com.docker.network.bridge.default_bridge": "true",
            "com.docker.network.bridge.enable_icc": "true",
            "com.docker.network.bridge.enable_ip_masquerade": "true",
            "com.docker.network.bridge.host_binding_ipv4": "0.0.0.0",
            "com.docker.network.bridge.name": fact.interface,
            "com.docker.network.driver.mtu": str(fact.mtu),
        }
        pool = IpamPool(subnet=fact.subnet, gateway=fact.gateway)
        changes: dict[str, object] = {
            "node": fact.node,
            "ipam": [pool],
            "options": options,
            "interface": fact.interface,
        }
        await self._put_predefined("bridge", changes)

    async def _put_predefined(self, name: str, changes: dict[str, object]) -> None:
        networks, key = self._engine.networks, predefined_id(name)
        row = networks.get(key)
        if row is None:
            record = NetworkRecord(
                id=key, name=name, driver=_DRIVERS[name], created_ns=time.time_ns()
            )
            try:
                await networks.create(key, record.model_copy(update=changes))
                return
            except Conflict:
                row = await networks.fetch(key)
        changed = row.record.model_copy(update=changes)
        if changed != row.record:
            await networks.change(key, lambda r: r.model_copy(update=changes))

    # --- claims ---

    async def _claims(self) -> tuple[NetworkClaims, int]:
        try:
            row = await self._engine.network_claims.fetch(CLAIMS)
        except NotFound:
            return NetworkClaims(), 0
        return row.record, row.revision

    async def _change_claims(
        self, decide: Callable[[dict[str, Claimed]], dict[str, Claimed]]
    ) -> None:
        table = self._engine.network_claims
        try:
            await table.create(CLAIMS, NetworkClaims())
        except Conflict:
            pass
        await table.change(CLAIMS, lambda r: NetworkClaims(claims=decide(dict(r.claims))))

    async def _claim(self, record: NetworkRecord, used: Iterable[str]) -> NetworkRecord:
        """Everything that a network has for itself, or nothing."""
        chosen = record

        def decide(claims: dict[str, Claimed]) -> dict[str, Claimed]:
            nonlocal chosen
            if (mine := claims.get(record.id)) is not None:
                # Claimed by this very request before its replica died.
                pools = [IpamPool(subnet=text) for text in mine.subnets]
                keep = record.ipam or pools
                chosen = network_rules.complete(
                    record.model_copy(update={"ipam": keep}), used, [], self._pools
                )
                return claims
            self._check_name(record, claims)
            self._check_interface(record, claims)
            taken = [text for claim in claims.values() for text in claim.subnets]
            taken += self._bridge_subnets()
            chosen = network_rules.complete(record, used, taken, self._pools)
            claims[record.id] = Claimed(
                name=record.name,
                subnets=[pool.subnet for pool in chosen.ipam],
                interface=record.interface,
                owner=self._engine.owner,
                claimed_ns=time.time_ns(),
            )
            return claims

        await self._change_claims(decide)
        return chosen

    async def _claim_in_turn(self, record: NetworkRecord) -> NetworkRecord:
        """Claim what a network needs once it is certain whether its name is taken. Conflict."""
        while True:
            await self._name_settled(record)
            self._check_name(record, (await self._claims())[0].claims)
            hosts = self._engine.hosts
            used = await hosts.subnets(record.node) if _wants_subnet(record) else []
            # Another create that waited may be faster: whether it succeeds is waited for as well.
            with contextlib.suppress(Conflict):
                return await self._claim(record, used)

    async def _name_settled(self, record: NetworkRecord) -> None:
        """Wait for the end of the making or removal of another network of this name: meanwhile
        nobody finds it by its name, and that the name were taken would be no answer."""
        deadline = time.monotonic() + SETTLED_SECONDS
        while (key := await self._unsettled(record)) and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await self._engine.networks.until(key, _is_made, min(left, _LOOK_SECONDS))

    async def _unsettled(self, record: NetworkRecord) -> str:
        """The id of another network of this name that is being made or removed; empty for none."""
        networks = self._engine.networks
        claims, _ = await self._claims()
        if key := _holder(record, claims.claims):
            row = networks.get(key)
            return "" if _is_made(row.record if row else None) else key
        # A removal gives the name back before it is told.
        named = (row for row in networks.rows() if row.record.name == record.name)
        return next((row.key for row in named if not _is_settled(row.record)), "")

    def _check_name(self, record: NetworkRecord, claims: dict[str, Claimed]) -> None:
        if _holder(record, claims):
            raise Conflict(f"network with name {record.name} already exists")

    def _check_interface(self, record: NetworkRecord, claims: dict[str, Claimed]) -> None:
        for key, claim in claims.items():
            if claim.interface != record.interface:
                continue
            if record.driver == "bridge":
                raise Forbidden(
                    f"bridge name {record.interface} is already in use by network {claim.name}"
                )
            raise Forbidden(
                f"network dm-{key[:12]} is already using parent interface {record.interface}"
            )
        default = self._engine.networks.get(predefined_id("bridge"))
        if default is not None and default.record.interface == record.interface:
            raise Forbidden(f"bridge name {record.interface} is already in use by network bridge")

    def _bridge_subnets(self) -> list[str]:
        default = self._engine.networks.get(predefined_id("bridge"))
        return [pool.subnet for pool in default.record.ipam] if default is not None else []

    async def _unclaim(self, network_id: str) -> None:
        def decide(claims: dict[str, Claimed]) -> dict[str, Claimed]:
            claims.pop(network_id, None)
            return claims

        await self._change_claims(decide)

    # --- what was left undone ---

    async def look(self, now: int) -> None:
        """Finish what nobody carries out any more; forget tombstones and claims that served."""
        engine = self._engine
        for row in engine.networks.rows():
            record = row.record
            match record.progress:
                case Progress.CREATING | Progress.REMOVING:
                    if not engine.is_held(row.key) and await self._abandoned(record, now):
                        engine.tasks.spawn(self._finish(row), f"finish network {row.key[:12]}")
                case Progress.REMOVED:
                    await self._forget(row, now)
        for key, claim in list(self._known_claims().items()):
            if engine.networks.get(key) is None and not engine.is_held(key):
                old = now - claim.claimed_ns > _CLAIM_LIMIT
                if old or await engine.abandoned(claim.owner, key):
                    await self._unclaim(key)

    def _known_claims(self) -> dict[str, Claimed]:
        row = self._engine.network_claims.get(CLAIMS)
        return row.record.claims if row is not None else {}

    async def _abandoned(self, record: NetworkRecord, now: int) -> bool:
        overdue = 0 < record.deadline_ns < now
        return overdue or await self._engine.abandoned(record.owner, record.id)

    async def _finish(self, row: Row[NetworkRecord]) -> None:
        with self._engine.holding(row.key):
            logger.info("network %s was left %s, finishing", row.key[:12], row.record.progress)
            if row.record.progress is Progress.CREATING:
                await self.finish_create(row)
            else:
                await self.finish_remove(row)

    async def _forget(self, row: Row[NetworkRecord], now: int) -> None:
        engine, record = self._engine, row.record
        if record.deadline_ns < now and all(map(engine.events.is_stored, record.outbox)):
            try:
                await engine.networks.delete(row.key, row.revision)
            except StaleRevision:
                return
            engine.events.forget(row.key)


def _holder(record: NetworkRecord, claims: dict[str, Claimed]) -> str:
    """Who else has claimed this network's name; empty for nobody."""
    named = (key for key, claim in claims.items() if claim.name == record.name)
    return next((key for key in named if key != record.id), "")


def _is_settled(record: NetworkRecord) -> bool:
    return record.progress not in (Progress.CREATING, Progress.REMOVING)


def _is_made(record: NetworkRecord | None) -> bool:
    """Whether what is claimed is there: a claim comes before its record."""
    return record is not None and _is_settled(record)


def _is_shown(record: NetworkRecord) -> bool:
    return record.progress is Progress.ACTIVE


def _wants_subnet(record: NetworkRecord) -> bool:
    families = {":" in pool.subnet for pool in record.ipam}
    return (record.enable_ipv4 and False not in families) or (
        record.enable_ipv6 and True not in families
    )


def _passes(record: NetworkRecord, request: PruneNetworks) -> bool:
    if request.until_ns is not None and record.created_ns >= request.until_ns:
        return False
    return all(_has(record.labels, text) for text in request.labels) and not any(
        _has(record.labels, text) for text in request.labels_not
    )


def _has(labels: dict[str, str], text: str) -> bool:
    key, equals, value = text.partition("=")
    return key in labels and (not equals or labels[key] == value)

"""Connecting containers to networks and disconnecting them.

A container that does not run only notes what it asks for. For one that runs the change is written
into its record first (rewiring), then made on the host, then recorded: whoever finds it in between
carries it out again.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from mooring.kit import endpoints, faults
from mooring.kit.errors import (
    Conflict,
    EngineError,
    Forbidden,
    InvalidParameter,
    NotFound,
    Unavailable,
)
from mooring.kit.models.base import Done
from mooring.kit.models.container import ContainerRecord, State
from mooring.kit.models.network import (
    ConnectNetwork,
    DisconnectNetwork,
    EndpointSettings,
    HostConnect,
    HostDisconnect,
    HostRename,
    NetworkRecord,
    Rewiring,
)

from . import network_states, states
from .engine import Engine
from .networks import NetworkHandlers
from .resolve import resolve
from .running import RunningHandlers
from .table import Row

logger = logging.getLogger(__name__)

_HOST = "container cannot be disconnected from host network or connected to host network"
_NONE = (
    "container cannot be connected to multiple networks with one of the networks in private "
    "(none) mode"
)
_SHARED = (
    "container sharing network namespace with another container or host cannot be connected to "
    "any other network"
)


_SETTLED_SECONDS = 20.0
"""How long a change of a network waits for the one before it, of another command."""


class WiringHandlers:
    """connect, disconnect."""

    def __init__(self, engine: Engine, networks: NetworkHandlers, running: RunningHandlers) -> None:
        self._engine = engine
        self._networks = networks
        self._running = running

    async def connect(self, request: ConnectNetwork) -> Done:
        """Connect a container to a network."""
        if not request.container:
            raise InvalidParameter('invalid name or ID supplied: ""')
        row = await resolve(self._engine, request.container, request.request_id)
        if (done := await self._again(row, request.request_id)) is not None:
            return done
        network = (await self._networks.resolve(request.network)).record
        wanted = Rewiring(
            settings=request.settings, network_id=network.id, command=request.request_id
        )
        return await self._in_turn(
            row, network.name, wanted, lambda r: check_connect(r, network, request.settings)
        )

    async def disconnect(self, request: DisconnectNetwork) -> Done:
        """Disconnect a container from a network."""
        name, missing = request.network, None
        try:
            name = (await self._networks.resolve(request.network)).record.name
        except NotFound as exc:
            missing = exc
        try:
            row = await resolve(self._engine, request.container, request.request_id)
        except NotFound:
            if request.force:
                raise NotFound(f"endpoint {request.container} not found") from None
            raise
        wanted = Rewiring(command=request.request_id, force=request.force)
        if missing is not None and row.record.pid and name not in row.record.networking:
            # As Docker: only of one that does not run it is the connection that is missing.
            raise missing
        return await self._in_turn(row, name, wanted, lambda r: check_disconnect(r, name))

    async def _in_turn(
        self,
        row: Row[ContainerRecord],
        name: str,
        wanted: Rewiring,
        check: Callable[[ContainerRecord], None],
    ) -> Done:
        """Make a change as soon as none of another command is under way: what is refused depends
        on how that ends. Not held while it waits: `look` finishes what a killed replica began."""
        engine, settled = self._engine, True
        while True:
            if (done := await self._again(row, wanted.command)) is not None:
                return done
            if name in row.record.rewiring:
                try:
                    await engine.containers.until(
                        row.key, lambda r: r is None or name not in r.rewiring, _SETTLED_SECONDS
                    )
                except TimeoutError:
                    settled = False
                row = engine.containers.get(row.key) or row
                if settled:
                    continue
            check(row.record)
            try:
                return await self._change(row, name, wanted)
            except network_states.UnderWay:
                if not settled:
                    raise
                row = await engine.containers.fetch(row.key)

    async def _again(self, row: Row[ContainerRecord], command: str) -> Done | None:
        """What to answer to a command that was carried out, or begun, before."""
        if row.record.command_id == command:
            return Done(revision=row.revision)
        for name, wanted in row.record.rewiring.items():
            if wanted.command == command:
                with self._engine.holding(row.key):
                    return Done(revision=(await self.finish(row, name)).revision)
        return None

    async def _change(self, row: Row[ContainerRecord], name: str, wanted: Rewiring) -> Done:
        engine = self._engine
        with engine.holding(row.key):
            if row.record.state is State.STARTING:
                with contextlib.suppress(EngineError):
                    await self._running.finish_start(row)
            wanted.owner = engine.owner
            row = await engine.containers.change(row.key, lambda r: _begin(r, name, wanted))
            faults.point("lifecycle.rewire.claimed")
            if name in row.record.rewiring:
                row = await self.finish(row, name)
        return Done(revision=row.revision)

    async def finish(self, row: Row[ContainerRecord], name: str) -> Row[ContainerRecord]:
        """Carry out a change that is noted; a refusal is recorded, an uncertain end is not."""
        engine, record = self._engine, row.record
        wanted, run = record.rewiring[name], record.run
        now = engine.claim("").now
        if not record.pid:
            return await engine.containers.change(
                row.key, lambda r: network_states.rewired(r, name, run, None, now)
            )
        try:
            if wanted.settings is not None:
                host = await engine.hosts.connect(
                    record.node,
                    HostConnect(
                        id=record.id,
                        run=run,
                        network=name,
                        command=wanted.command,
                        name=record.name,
                        hostname=record.config.hostname,
                        settings=wanted.settings,
                    ),
                )
            else:
                request = HostDisconnect(
                    id=record.id, run=run, network=name, command=wanted.command
                )
                host = await engine.hosts.disconnect(record.node, request)
        except Unavailable:
            raise
        except EngineError:
            await engine.containers.change(
                row.key, lambda r: network_states.drop_rewiring(r, name, wanted.command)
            )
            raise
        faults.point("lifecycle.rewire.hosted")
        row = await engine.containers.change(
            row.key, lambda r: network_states.rewired(r, name, run, host, now)
        )
        faults.point("lifecycle.rewire.recorded")
        return row

    async def tell_name(self, row: Row[ContainerRecord]) -> None:
        """Have a container that was renamed found by its name, and note that it is."""
        engine, record = self._engine, row.record
        if not network_states.is_misnamed(record):
            return
        request = HostRename(id=record.id, run=record.run, name=record.name)
        try:
            await engine.hosts.rename(record.node, request)
        except EngineError as exc:
            # It has its new name; `look` tells its networks as long as it runs.
            logger.warning("the networks of %s do not know its name: %s", record.name, exc)
            return
        await engine.containers.change(
            row.key, lambda r: network_states.named(r, request.run, request.name)
        )

    async def look(self) -> None:
        """Finish the changes that nobody carries out any more."""
        engine = self._engine
        for row in engine.containers.rows():
            if network_states.is_misnamed(row.record) and not engine.is_held(row.key):
                engine.tasks.spawn(self._tell_name_held(row), f"name {row.key[:12]}")
            for name, wanted in row.record.rewiring.items():
                if engine.is_held(row.key):
                    break
                if await engine.abandoned(wanted.owner, row.key):
                    engine.tasks.spawn(self._finish_held(row, name), f"rewire {row.key[:12]}")

    async def _tell_name_held(self, row: Row[ContainerRecord]) -> None:
        with self._engine.holding(row.key):
            await self.tell_name(self._engine.containers.get(row.key) or row)

    async def _finish_held(self, row: Row[ContainerRecord], name: str) -> None:
        with self._engine.holding(row.key):
            current = self._engine.containers.get(row.key)
            if current is not None and name in current.record.rewiring:
                await self.finish(current, name)


def check_connect(
    record: ContainerRecord, network: NetworkRecord, settings: EndpointSettings
) -> None:
    """Docker's refusals; InvalidParameter, Forbidden, Conflict."""
    mode = record.host_config.network_mode
    if network.name == "host" or mode == "host":
        raise InvalidParameter(_HOST)
    if network.name == "none" or mode == "none":
        raise InvalidParameter(_NONE)
    if mode.startswith("container:"):
        raise InvalidParameter(_SHARED)
    _check_state(record)
    endpoints.check_settings(settings)
    if network.name == "bridge":
        endpoints.check_predefined(settings)
    else:
        endpoints.check_on(settings, network)
    if network.name in record.network.endpoints or network.name in record.networking:
        raise Forbidden(
            f"endpoint with name {record.name} already exists in network {network.name}"
        )


def check_disconnect(record: ContainerRecord, name: str) -> None:
    """Docker's refusals; InvalidParameter, Conflict."""
    if name == "host":
        raise InvalidParameter(_HOST)
    _check_state(record)
    if name not in record.network.endpoints and name not in record.networking:
        raise EngineError(f"container {record.id} is not connected to the network {name}")


def _check_state(record: ContainerRecord) -> None:
    match record.state:
        case State.REMOVING | State.DEAD | State.REMOVED:
            raise Conflict(f"container {record.id} is marked for removal and cannot be connected "
                           "or disconnected to the network")  # fmt: skip
        case State.RESTARTING:
            raise Conflict(
                f"Container {record.id} is restarting, wait until the container is running"
            )


def _begin(record: ContainerRecord, name: str, wanted: Rewiring) -> ContainerRecord:
    if record.state in states.LIVE and record.pid:
        return network_states.claim_rewiring(record, name, wanted)
    return network_states.with_network(record, name, wanted.settings, wanted.command)

"""The network of a run: which namespace it is put into, and what is set up there."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mooring.kit import ports as port_options
from mooring.kit.endpoints import predefined_id
from mooring.kit.errors import EngineError, NotFound
from mooring.kit.models.container import ContainerRecord
from mooring.kit.models.network import (
    Endpoint,
    EndpointSettings,
    HostConnect,
    HostDisconnect,
    NetworkRecord,
    NetworkState,
)

from .host_files import NameFiles
from .network import links, plan
from .network.bridge import Bridge
from .network.client import FactoryClient
from .network.dns.joining import Joining, servers_of
from .network.plug import Member, Plugs
from .network.ports.publisher import Publisher
from .network.user import UserNetworks
from .runs import Run
from .spec import OWN

logger = logging.getLogger(__name__)

FINISH = 3.0
"""Seconds that the end of the worker waits for a bridge that is being set up."""


@dataclass(slots=True)
class Sandbox:
    """A run's network. namespace: OWN for an empty one, None for the host's, else its path."""

    namespace: str | None
    state: NetworkState
    addresses: tuple[str, ...] = ()
    """All that the container is reached at."""
    gateway: str = ""
    host_files: bool = False
    """It sees the host's network, so it reads the host's names."""
    descriptor: int = -1
    """What keeps a namespace alive until the container is in it."""

    def close(self) -> None:
        """The container is in the namespace, or never will be."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Networks(Protocol):
    """Sandboxes of one host. A holder is `<container id>.<run>`."""

    async def attach(self, holder: str, record: ContainerRecord, joined: Run | None) -> Sandbox:
        """The sandbox of a run that is about to start; joined is whose network it shares."""

    async def connect(
        self, request: HostConnect, state: NetworkState, namespace: str
    ) -> NetworkState:
        """One more network for a run; `namespace` is the path of its own."""

    async def disconnect(
        self, request: HostDisconnect, state: NetworkState, namespace: str
    ) -> NetworkState:
        """One network less."""

    def intact(self, state: NetworkState) -> bool:
        """Whether what a sandbox is wired with is still there; somebody may have deleted it."""

    def detach(self, holder: str) -> None:
        """The run is over: free its addresses. It may have none."""

    def refill(self) -> None:
        """Prepare sandboxes in the background."""

    def sweep(self, live: set[str]) -> None:
        """Free what belongs to none of these holders."""


def kind(record: ContainerRecord) -> str:
    """`none`, `host`, `container`, `bridge`, or the name of another network."""
    mode = record.host_config.network_mode
    if record.config.network_disabled:
        return "none"
    if mode in ("", "default", "bridge"):
        return "bridge"
    return "container" if mode.startswith("container:") else mode


def _of_every_host(name: str, driver: str) -> NetworkState:
    """What inspect shows of a container on a network that needs no set-up."""
    point = Endpoint(
        network_id=predefined_id(name), endpoint_id=secrets.token_hex(32), driver=driver
    )
    return NetworkState(sandbox_id=secrets.token_hex(32), endpoints={name: point})


class HostNetworks:
    """All networks of a host: none, host, another container's, the default bridge, the users'."""

    def __init__(
        self,
        bridge: Bridge,
        user: UserNetworks,
        factory: Callable[[], Awaitable[socket.socket]],
        pool: int,
        ports: Publisher,
        names: Joining,
    ) -> None:
        self._ports = ports
        self._names = names
        self._host_names = NameFiles()
        ports.repair = self._repair_table
        self._live: set[str] = set()
        self._bridge = bridge
        self._user = user
        self._factory = factory
        self._plugs = Plugs(self._client, pool)
        self._setting_up = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._on_bridge: Callable[[NetworkRecord, int], Awaitable[None]] | None = None

    async def attach(self, holder: str, record: ContainerRecord, joined: Run | None) -> Sandbox:
        """See Networks."""
        if joined is not None:
            return Sandbox(f"/proc/{joined.init_pid}/ns/net", NetworkState())
        match kind(record):
            case "none":
                return Sandbox(OWN, _of_every_host("none", "null"))
            case "host":
                return Sandbox(None, _of_every_host("host", "host"), host_files=True)
        wanted = plan.wishes(record)
        if not wanted:
            return Sandbox(OWN, NetworkState(sandbox_id=secrets.token_hex(32)))
        if plan.is_plain(wanted):
            sandbox = await self._attach_bridge(holder)
        else:
            sandbox = await self._attach_all(holder, record)
        try:
            await self._publish(holder, record, sandbox.state)
            if sandbox.state.dns and sandbox.namespace:
                text = self._host_names.resolv(shared=True)
                servers = servers_of(text, list(record.host_config.dns or ()))
                await self._names.join(holder, sandbox.state, servers, sandbox.namespace)
        except BaseException:
            sandbox.close()
            raise
        return sandbox

    async def _publish(self, holder: str, record: ContainerRecord, state: NetworkState) -> None:
        wanted = port_options.wanted(record.config, record.host_config)
        if not wanted:
            return
        point, address, address6, link = _published_at(state)
        if not address and not address6:
            return  # as Docker: no way leads in, there is nothing to be published
        host_ip = self._host_binding(state)
        state.ports = await self._ports.publish(
            holder,
            [item.at(host_ip) for item in wanted],
            address=address,
            address6=address6,
            link=link,
            endpoint=f"{record.name} ({point.endpoint_id})",
        )

    def _host_binding(self, state: NetworkState) -> str:
        """Where the network that ports are published on has those that name no address."""
        name = state.gateway4
        if not name or name == "bridge":
            return ""
        return self._user.find(name).record.options.get(plan.HOST_BINDING, "")

    async def _attach_bridge(self, holder: str) -> Sandbox:
        await self._ready()
        prepared, state = await self._bridge.attach(holder)
        return Sandbox(
            f"/proc/{os.getpid()}/fd/{prepared.namespace}",
            state,
            addresses=(str(prepared.address),),
            gateway=self._bridge.gateway,
            descriptor=prepared.namespace,
        )

    async def _attach_all(self, holder: str, record: ContainerRecord) -> Sandbox:
        await self._ready()
        members = []
        for name, settings in plan.wishes(record).items():
            names = plan.dns_names(record.name, record.id, record.config.hostname, settings)
            members.append(await self._member(name, holder, settings, names))
        namespace, state = await self._plugs.start(members)
        gateway = state.endpoints[state.gateway4].gateway if state.gateway4 else ""
        return Sandbox(
            f"/proc/{os.getpid()}/fd/{namespace}",
            state,
            addresses=plan.addresses(state),
            gateway=gateway,
            descriptor=namespace,
        )

    async def connect(
        self, request: HostConnect, state: NetworkState, namespace: str
    ) -> NetworkState:
        """See Networks."""
        await self._ready()
        holder = f"{request.id}.{request.run}"
        settings = request.settings
        names = plan.dns_names(request.name, request.id, request.hostname, settings)
        member = await self._member(request.network, holder, settings, names)
        try:
            changed = await self._plugs.add(member, state, namespace)
        except BaseException:
            member.lan.release(holder)
            raise
        await self._move(holder, changed)
        await self._names.change(holder, changed, namespace)
        return changed

    async def disconnect(
        self, request: HostDisconnect, state: NetworkState, namespace: str
    ) -> NetworkState:
        """See Networks."""
        await self._ready()
        changed = await self._plugs.take(request.network, state, namespace)
        holder = f"{request.id}.{request.run}"
        await self._move(holder, changed)
        await self._names.change(holder, changed, namespace)
        return changed

    async def _move(self, holder: str, state: NetworkState) -> None:
        """Ports are published on the network that gives the default route."""
        _, address, address6, link = _published_at(state)
        await self._ports.move(holder, address, address6, link)

    def disconnected(self, holder: str, network: str) -> None:
        """A disconnect is recorded: the addresses may go to others."""
        try:
            lan = self._bridge.lan if network == "bridge" else self._user.find(network)
        except NotFound:
            return
        lan.release(holder)

    async def renamed(self, holder: str, state: NetworkState) -> None:
        """A container is found by other names from now on."""
        await self._names.change(holder, state)

    async def _member(
        self, name: str, holder: str, settings: EndpointSettings, names: list[str]
    ) -> Member:
        """A place on a network: its addresses are claimed."""
        if name == "bridge":
            index = links.index_of(self._bridge.record.interface)
            return Member.claim(name, self._bridge.lan, holder, settings, [], index,
                                self._bridge.mtu)  # fmt: skip
        lan = self._user.find(name)
        index = await self._user.ready(lan)
        mtu = links.mtu_of(lan.record, self._bridge.mtu)
        return Member.claim(name, lan, holder, settings, names, index, mtu)

    def intact(self, state: NetworkState) -> bool:
        """See Networks."""
        wired = [point for point in state.endpoints.values() if point.link]
        if not wired:
            return True
        here = self._bridge.ready and self._bridge.present()
        return here and all(links.index_of(point.link) for point in wired)

    def detach(self, holder: str) -> None:
        """See Networks."""
        self._ports.release(holder)
        self._names.leave(holder)
        self._bridge.detach(holder)
        for lan in self._user:
            lan.release(holder)

    def refill(self) -> None:
        """See Networks."""
        if self._bridge.ready:
            self._bridge.refill()
            self._plugs.refill()

    def sweep(self, live: set[str]) -> None:
        """See Networks."""
        self._live = set(live)
        self._names.sweep(live)
        self._bridge.sweep(live)
        for lan in self._user:
            for holder in lan.leases.holders() - live:
                logger.info("lease of %s had no owner any more", holder)
                lan.release(holder)

    async def ensure(self, record: NetworkRecord) -> None:
        """Make a network of the user's."""
        await self._ready()
        await self._user.ensure(record)

    async def remove(self, record: NetworkRecord) -> None:
        """Take a network of the user's away; Conflict while it is in use."""
        await self._ready()
        await self._user.remove(record)

    async def tell(self, callback: Callable[[NetworkRecord, int], Awaitable[None]]) -> None:
        """Have `callback` told of the default bridge and its MTU, now if it is ready."""
        self._on_bridge = callback
        if self._bridge.ready:
            await callback(self._bridge.record, self._bridge.mtu)

    def prepare(self) -> None:
        """Set the bridge up in the background, so that the first start finds it."""
        self._task = asyncio.create_task(self._prepare(), name="bridge")

    async def close(self, *, remove: bool) -> None:
        """Give back what is prepared; remove: nothing uses the bridge any more, take it away."""
        if self._task is not None:
            # Not cancelled half-way: what it has made by then would be nobody's.
            await asyncio.wait({self._task}, timeout=FINISH)
        ready = self._bridge.ready
        await self._names.close()
        await self._ports.close()
        await self._plugs.close()
        await self._bridge.close()
        if remove and ready:
            await self._user.withdraw()
            await self._bridge.remove()

    async def _prepare(self) -> None:
        try:
            await self._ready()
            await self._user.recover()
            await self._names.recover()
        except Exception as exc:
            # A host without the means for a bridge still runs containers without one.
            logger.warning("the default bridge is not available: %s", exc)

    async def _repair_table(self) -> None:
        """Make the nftables table again, with what every network has in it."""
        await self._bridge.ensure()
        self._user.announce()

    def _client(self) -> FactoryClient:
        client = self._bridge.client
        if client is None:
            raise EngineError("the bridge network is not set up")
        return client

    async def _ready(self) -> None:
        if self._bridge.ready and self._bridge.present():
            return
        async with self._setting_up:
            if not self._bridge.ready:
                await self._bridge.start(await self._factory())
            elif not self._bridge.present():
                await self._bridge.repair()
            else:
                return
            self._user.announce()
            await self._ports.recover(self._live)
            if self._on_bridge is not None:
                await self._on_bridge(self._bridge.record, self._bridge.mtu)


def _published_at(state: NetworkState) -> tuple[Endpoint, str, str, str]:
    """Where ports are published: the endpoint, its IPv4, the IPv6 address, the veth's end."""
    none = Endpoint()
    point = state.endpoints.get(state.gateway4, none)
    point6 = state.endpoints.get(state.gateway6, none)
    first = point if point.ip_address else point6
    # Docker publishes on bridges: from other links a container is reached as it is.
    if first.driver not in ("", "bridge"):
        return none, "", "", ""
    return first, point.ip_address, point6.global_ipv6_address, first.link


def open_networks(
    bridge: Bridge,
    directory: Path,
    instance: str,
    publisher: Publisher,
    names: Joining,
    factory: Callable[[], Awaitable[socket.socket]],
    states: Callable[[], list[NetworkState]],
    pool: int,
) -> HostNetworks:
    """The networks of this host; states: those of every run that is going on."""

    def ports(network_id: str) -> list[str]:
        return plan.ports_of(states(), network_id)

    user = UserNetworks(directory, instance, ports)
    user.load()
    bridge.ports = ports
    return HostNetworks(bridge, user, factory, pool, publisher, names)

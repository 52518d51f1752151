"""The default bridge: a pool of sandboxes made ahead, and leases for those in use."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import ParamSpec, TypeVar

from mooring.kit.endpoints import predefined_id
from mooring.kit.errors import EngineError
from mooring.kit.models.network import Endpoint, IpamPool, NetworkRecord, NetworkState

from . import setup
from .addresses import next_address, ranges
from .client import FactoryClient, FactoryError
from .lan import Lan
from .leases import Address, Leases
from .links import adopt, index_of
from .tablewatch import TableWatch

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class Prepared:
    """A sandbox that nobody has yet; it is gone when its descriptor is closed."""

    address: IPv4Address
    mac: str
    namespace: int
    link: str
    """The host's end of its veth."""


@dataclass(frozen=True, slots=True)
class BridgeSettings:
    """What the bridge of one engine is called and made of."""

    bridge: str
    table: str
    subnet: str
    """Empty: choose one."""
    directory: Path
    """Leases and the chosen subnet."""
    pool: int


class Bridge:
    """Attach and detach containers; `factory` is a connected socket to network/factory.py."""

    def __init__(self, settings: BridgeSettings) -> None:
        self._settings = settings
        self._leases = Leases(settings.directory / "leases")
        self._watch = TableWatch(settings.table)
        self._pool: deque[Prepared] = deque()
        self.ports: Callable[[str], list[str]] = lambda network_id: []
        """The host's ends of the veths that are on a network now."""
        self.client: FactoryClient | None = None
        """The factory, for other networks as well."""
        self.record = NetworkRecord(
            id=predefined_id("bridge"), name="bridge", interface=settings.bridge
        )
        self._making = asyncio.Lock()
        self._filling: asyncio.Task[None] | None = None
        self._subnet = IPv4Network("0.0.0.0/0")
        self._gateway = ""
        self._mtu = 0
        self._last = IPv4Address(0)
        self._pending: set[Address] = set()
        """Addresses of sandboxes in the pool or being made: not leases, as they die with us."""
        self.lan = Lan(self.record, self._leases, [], pending=self._pending)
        """The same network for a sandbox that is on several, or is asked to be special."""

    @property
    def ready(self) -> bool:
        """Whether the bridge is set up and its factory answers."""
        return self.client is not None and self.client.alive

    @property
    def subnet(self) -> str:
        return str(self._subnet)

    @property
    def gateway(self) -> str:
        return self._gateway

    async def start(self, factory: socket.socket) -> None:
        """Set the bridge up if it is not, and use this factory from now on."""
        await self.ensure()
        self.client = FactoryClient(factory)
        self.refill()

    async def ensure(self) -> None:
        """Make what is missing of the bridge and of the table; what is there stays untouched."""
        chosen = self._settings.directory / "subnet"
        kept = chosen.read_text() if chosen.exists() else ""
        wanted = self._settings
        made = await _set_up(setup.ensure, wanted.bridge, wanted.table, wanted.subnet, kept)
        chosen.write_text(str(made.subnet))
        self._subnet, self._gateway, self._mtu = made.subnet, made.gateway, made.mtu
        pool = IpamPool(subnet=str(made.subnet), gateway=made.gateway)
        self.record = self.record.model_copy(update={"ipam": [pool]})
        self.lan.record, self.lan.ranges = self.record, ranges([pool])

    def present(self) -> bool:
        """Whether bridge and rules are there; somebody may have deleted them."""
        return index_of(self._settings.bridge) > 0 and self._watch.is_whole(self._settings.bridge)

    async def repair(self) -> None:
        """Make the bridge or the table again that was taken away, the bridge with its ports."""
        gone = not index_of(self._settings.bridge)
        if gone:
            logger.warning("the bridge %s was gone: it is made again", self._settings.bridge)
        else:
            logger.warning("the nftables table %s was changed by somebody: it is made again",
                           self._settings.table)  # fmt: skip
        client, self.client = self.client, None
        if self._filling:
            # Not cancelled: that would break off what the factory is being asked.
            await asyncio.gather(self._filling, return_exceptions=True)
        while self._pool:
            prepared = self._pool.popleft()
            os.close(prepared.namespace)
            self._pending.discard(prepared.address)
        await self.ensure()
        await asyncio.to_thread(adopt, self._settings.bridge, self.ports(self.record.id))
        self.client = client

    async def close(self) -> None:
        """Give back what is in the pool; containers keep theirs."""
        if self._filling:
            self._filling.cancel()
            await asyncio.gather(self._filling, return_exceptions=True)
        while self._pool:
            os.close(self._pool.popleft().namespace)
        self._watch.close()
        if self.client is not None:
            self.client.close()
            self.client = None

    async def remove(self) -> None:
        """Take the bridge and the rules out of the kernel (nothing runs any more)."""
        await _set_up(setup.remove, self._settings.bridge, self._settings.table)

    async def attach(self, holder: str) -> tuple[Prepared, NetworkState]:
        """A sandbox for `holder`; the caller closes its namespace once the container has it."""
        prepared = self._take() or await self._make()
        self._leases.claim(prepared.address, holder)
        self._pending.discard(prepared.address)
        return prepared, self._state(prepared)

    @property
    def mtu(self) -> int:
        """Of the links of containers."""
        return self._mtu

    def _take(self) -> Prepared | None:
        """A prepared sandbox whose veth is still there: somebody may have deleted it."""
        while self._pool:
            prepared = self._pool.popleft()
            if index_of(prepared.link):
                return prepared
            logger.warning("the link %s of a prepared sandbox was gone", prepared.link)
            os.close(prepared.namespace)
            self._pending.discard(prepared.address)
        return None

    def detach(self, holder: str) -> None:
        """The run is over: its address is free again. Kernel objects went with the namespace."""
        self.lan.release(holder)

    def sweep(self, live: set[str]) -> None:
        """Free the leases of everyone who is not in `live`."""
        for holder in self._leases.holders() - live:
            logger.info("lease of %s had no owner any more", holder)
            self.detach(holder)

    def refill(self) -> None:
        """Fill the pool in the background."""
        if self._filling is None or self._filling.done():
            self._filling = asyncio.create_task(self._fill(), name="sandbox-pool")

    async def _fill(self) -> None:
        try:
            while self.ready and len(self._pool) < self._settings.pool:
                self._pool.append(await self._make())
        except (EngineError, OSError) as exc:
            logger.warning("cannot prepare sandboxes: %s", exc)

    async def _make(self) -> Prepared:
        async with self._making:
            if not self.ready:
                raise EngineError("the bridge network is not set up")
            taken = self._leases.taken() | self._pending
            while True:
                address = next_address(self._subnet, taken, self._last)
                self._last = address
                self._pending.add(address)
                try:
                    return await self._ask(address)
                except BaseException as exc:
                    self._pending.discard(address)
                    if not isinstance(exc, FactoryError):
                        raise
                    if exc.errno != errno.EEXIST:
                        raise EngineError(f"cannot make a sandbox: {exc}") from exc
                # A link of that name is there: of the pool of a worker that was killed, whose
                # namespaces the kernel deletes in the background. Until then it has the address.
                taken.add(address)

    async def _ask(self, address: IPv4Address) -> Prepared:
        assert self.client is not None
        request = {
            "bridge": self._settings.bridge,
            "address": str(address),
            "prefix": self._subnet.prefixlen,
            "gateway": self._gateway,
            "mtu": self._mtu,
        }
        answer, descriptors = await self.client.ask(request)
        return Prepared(address, answer["mac"], descriptors[0], answer["link"])

    def _state(self, prepared: Prepared) -> NetworkState:
        endpoint = Endpoint(
            network_id=self.record.id,
            endpoint_id=secrets.token_hex(32),
            driver="bridge",
            interface="eth0",
            link=prepared.link,
            gateway=self._gateway,
            ip_address=str(prepared.address),
            ip_prefix_len=self._subnet.prefixlen,
            mac_address=prepared.mac,
        )
        return NetworkState(
            sandbox_id=secrets.token_hex(32), endpoints={"bridge": endpoint}, gateway4="bridge"
        )


async def _set_up(step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """A step of setup.py in a thread; EngineError with its words if it fails."""
    try:
        return await asyncio.to_thread(step, *args, **kwargs)
    except (OSError, ValueError) as exc:
        raise EngineError(f"cannot set up the bridge network: {exc}") from exc

"""The default bridge: a pool of sandboxes made ahead, and leases for those in use."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
import sys
from collections import deque
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from mooring.kit.errors import EngineError
from mooring.kit.models.container import Endpoint, NetworkState

from .addresses import next_address
from .leases import Leases

logger = logging.getLogger(__name__)

FACTORY_TIMEOUT = 10.0
"""Seconds; a sandbox takes 2 ms."""


@dataclass(slots=True)
class Prepared:
    """A sandbox that nobody has yet; it is gone when its descriptor is closed."""

    address: IPv4Address
    mac: str
    namespace: int


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


async def setup(request: dict[str, Any]) -> dict[str, Any]:
    """Run network/setup.py in a child process; EngineError with its words if it fails."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "mooring.runtime.network.setup",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await child.communicate(json.dumps(request).encode())
    answer: dict[str, Any] = json.loads(out or b'{"error": "network set-up died"}')
    if error := answer.get("error"):
        raise EngineError(f"cannot set up the bridge network: {error}")
    return answer


class Bridge:
    """Attach and detach containers; `factory` is a connected socket to network/factory.py."""

    def __init__(self, settings: BridgeSettings) -> None:
        self._settings = settings
        self._leases = Leases(settings.directory / "leases")
        self._pool: deque[Prepared] = deque()
        self._factory: socket.socket | None = None
        self._making = asyncio.Lock()
        self._filling: asyncio.Task[None] | None = None
        self._subnet = IPv4Network("0.0.0.0/0")
        self._gateway = ""
        self._mtu = 0
        self._last = IPv4Address(0)
        self._pending: set[IPv4Address] = set()
        """Addresses of sandboxes in the pool or being made: not leases, as they die with us."""

    @property
    def ready(self) -> bool:
        """Whether the bridge is set up and its factory answers."""
        return self._factory is not None

    @property
    def subnet(self) -> str:
        return str(self._subnet)

    @property
    def gateway(self) -> str:
        return self._gateway

    async def start(self, factory: socket.socket) -> None:
        """Set the bridge up if it is not, and use this factory from now on."""
        chosen = self._settings.directory / "subnet"
        request = {
            "action": "ensure",
            "bridge": self._settings.bridge,
            "table": self._settings.table,
            "subnet": self._settings.subnet,
            "kept": chosen.read_text() if chosen.exists() else "",
        }
        answer = await setup(request)
        chosen.write_text(answer["subnet"])
        self._subnet, self._gateway = IPv4Network(answer["subnet"]), answer["gateway"]
        self._mtu = answer["mtu"]
        factory.setblocking(False)
        self._factory = factory
        self.refill()

    async def close(self) -> None:
        """Give back what is in the pool; containers keep theirs."""
        if self._filling:
            self._filling.cancel()
            await asyncio.gather(self._filling, return_exceptions=True)
        while self._pool:
            os.close(self._pool.popleft().namespace)
        if self._factory:
            self._factory.close()
            self._factory = None

    async def remove(self) -> None:
        """Take the bridge and the rules out of the kernel (nothing runs any more)."""
        request = {"action": "remove", "bridge": self._settings.bridge}
        await setup({**request, "table": self._settings.table})

    async def attach(self, holder: str) -> tuple[Prepared, NetworkState]:
        """A sandbox for `holder`; the caller closes its namespace once the container has it."""
        prepared = self._pool.popleft() if self._pool else await self._make()
        self._leases.claim(prepared.address, holder)
        self._pending.discard(prepared.address)
        return prepared, self._state(prepared)

    def detach(self, holder: str) -> None:
        """The run is over: its address is free again. Kernel objects went with the namespace."""
        for address in self._leases.of(holder):
            self._leases.release(address)

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
            while self._factory is not None and len(self._pool) < self._settings.pool:
                self._pool.append(await self._make())
        except (EngineError, OSError) as exc:
            logger.warning("cannot prepare sandboxes: %s", exc)

    async def _make(self) -> Prepared:
        async with self._making:
            if self._factory is None:
                raise EngineError("the bridge network is not set up")
            taken = self._leases.taken() | self._pending
            address = next_address(self._subnet, taken, self._last)
            self._last = address
            self._pending.add(address)
            try:
                return await self._ask(self._factory, address)
            except BaseException:
                self._pending.discard(address)
                raise

    async def _ask(self, factory: socket.socket, address: IPv4Address) -> Prepared:
        request = {
            "bridge": self._settings.bridge,
            "address": str(address),
            "prefix": self._subnet.prefixlen,
            "gateway": self._gateway,
            "mtu": self._mtu,
        }
        try:
            async with asyncio.timeout(FACTORY_TIMEOUT):
                await asyncio.get_running_loop().sock_sendall(factory, json.dumps(request).encode())
                packet, descriptors = await _receive(factory)
        except (TimeoutError, OSError) as exc:
            # An answer that comes late would be taken for the next one's.
            await self.close()
            raise EngineError(f"the sandbox factory does not answer: {exc}") from exc
        answer = json.loads(packet or b'{"error": "the sandbox factory died"}')
        if error := answer.get("error"):
            raise EngineError(f"cannot make a sandbox: {error}")
        return Prepared(address, answer["mac"], descriptors[0])

    def _state(self, prepared: Prepared) -> NetworkState:
        endpoint = Endpoint(
            endpoint_id=secrets.token_hex(32),
            gateway=self._gateway,
            ip_address=str(prepared.address),
            ip_prefix_len=self._subnet.prefixlen,
            mac_address=prepared.mac,
        )
        return NetworkState(sandbox_id=secrets.token_hex(32), endpoints={"bridge": endpoint})


async def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One packet with its descriptors; sock is non-blocking."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock.fileno())
    data, descriptors, _, _ = socket.recv_fds(sock, 65536, 4)
    return data, list(descriptors)

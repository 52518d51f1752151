"""Publishing ports: host sockets, then elements of the maps; and taking all of it back.

A claim, one file to a run in memory, is written before anything else and deleted after
everything else. By the claims a worker finds what another one was at, and by the maps what is
there and should not be, or the other way round.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from mooring.kit import faults
from mooring.kit.errors import EngineError
from mooring.kit.models.port import PublishedPort
from mooring.kit.ports import Wanted
from mooring.runtime.network import conntrack, firewall, nft
from mooring.runtime.network.attendant import Attendant
from mooring.runtime.network.strays import Strays

from .binding import Bound, PortInUse, bind, ephemeral, overlap

logger = logging.getLogger(__name__)

MAPS = ("ports4", "ports4_at", "ports6", "ports6_at")
_RETRY, _RETRIES = 0.002, 1.0
"""Seconds: a socket that was just released has duplicates that close a moment later."""
_BRIDGE_FILTER = "/proc/sys/net/bridge/bridge-nf-call-iptables"


@dataclass(slots=True)
class Claim:
    """The published ports of one run, on the endpoint that has its default route."""

    holder: str
    address: str
    """IPv4, empty for none."""
    address6: str
    link: str
    ports: list[Bound] = field(default_factory=list)

    def elements(self) -> list[nft.Element]:
        """What the maps hold of it."""
        return list(itertools.chain.from_iterable(map(self._elements, self.ports)))

    def _elements(self, port: Bound) -> Iterable[nft.Element]:
        key = nft.protocol_port(port.protocol, port.port)
        for version, target in ((4, self.address), (6, self.address6)):
            host = port.host_ip
            if not target or (host and (":" in host) != (version == 6)):
                continue
            data = nft.address_port(target, port.target)
            if host in ("", "0.0.0.0", "::"):
                yield nft.Element(f"ports{version}", key, data)
            else:
                packed = socket.inet_pton(socket.AF_INET6 if version == 6 else socket.AF_INET, host)
                yield nft.Element(f"ports{version}_at", packed + key, data)

    def target(self, port: Bound) -> tuple[str, int]:
        """Where the host's socket relays to."""
        return self.address or self.address6, port.target

    def dumps(self) -> bytes:
        ports = [(port.protocol, port.host_ip, port.port, port.target) for port in self.ports]
        return json.dumps([self.address, self.address6, self.link, ports]).encode()

    @classmethod
    def loads(cls, holder: str, data: bytes) -> Claim:
        """ValueError for a file that a killed worker did not finish."""
        address, address6, link, ports = json.loads(data)
        return cls(holder, address, address6, link, [Bound(*port) for port in ports])


class Publisher:
    """Published ports of one host. over: whether the run of a holder has ended."""

    def __init__(
        self,
        table: str,
        directory: str,
        attendant: Attendant,
        over: Callable[[str], bool],
    ) -> None:
        self._directory = directory
        self._attendant = attendant
        self._over = over
        self.repair: Callable[[], Awaitable[None]] = _nothing
        """Makes the table again, with everything but the ports."""
        self._nft = nft.Nft(table)
        self._claims: dict[str, Claim] = {}
        self._taken: dict[tuple[str, int], list[tuple[Claim, str]]] = {}
        """Who has a protocol's port, and at which address of the host."""
        self._releasing: dict[str, asyncio.Task[None]] = {}
        self._released: dict[tuple[str, int], float] = {}
        self._recovered = False
        self._gone: set[str] = set()
        """Holders that were released before their claims were read."""
        self._strays = Strays(attendant, "ports", self._let_strays_go)
        self._binding = asyncio.Lock()
        self._last = 0

    async def publish(
        self,
        holder: str,
        wanted: list[Wanted],
        *,
        address: str,
        address6: str = "",
        link: str = "",
        endpoint: str = "",
    ) -> dict[str, list[PublishedPort]]:
        """Publish the ports of a run; EngineError, with nothing changed, if one is taken.

        endpoint: what the error calls it, `web (<endpoint id>)`.
        """
        if not wanted:
            return {}
        claim = Claim(holder, address, address6, link)
        while (releasing := self._releasing.get(holder)) is not None:
            # A start that was undone, and is made again: what is let go has the same name.
            await asyncio.wait({releasing})
        # Before anything waits: from now on nothing of this holder counts as left behind.
        self._claims.setdefault(holder, claim)
        try:
            await self._bind(claim, wanted)
            faults.point("runtime.publish.bound")
            self._write(claim)
            await self._hold(claim)
            faults.point("runtime.publish.held")
            await self._apply(claim)
            faults.point("runtime.publish.applied")
        except BaseException as exc:
            for port in claim.ports:
                port.close()
            self._claims.setdefault(holder, claim)
            self.release(holder)
            if not isinstance(exc, EngineError | OSError):
                raise
            said = exc.message if isinstance(exc, EngineError) else str(exc)
            raise EngineError(
                f"driver failed programming external connectivity on endpoint {endpoint}: {said}"
            ) from exc
        return shown(claim)

    async def move(self, holder: str, address: str, address6: str, link: str) -> None:
        """The run is reached at another address now, or (both empty) at none."""
        claim = self._claims.get(holder)
        if claim is None or (claim.address, claim.address6) == (address, address6):
            return
        before = claim.elements()
        self._forget_flows(claim)
        claim.address, claim.address6, claim.link = address, address6, link
        self._write(claim)
        self._delete(before)
        if address or address6:
            await self._attendant.move(holder, address or address6)
            await self._apply(claim)

    def release(self, holder: str) -> None:
        """The run is over, or never began: its ports are free. It may have none."""
        claim = self._claims.pop(holder, None)
        if claim is None:
            if not self._recovered:
                self._gone.add(holder)
            return
        for port in claim.ports:
            key = port.protocol, port.port
            with contextlib.suppress(KeyError, ValueError):
                self._taken[key].remove((claim, port.host_ip))
                if not self._taken[key]:
                    del self._taken[key]
            self._released[key] = time.monotonic()
        self._delete(claim.elements())
        faults.point("runtime.unpublish.applied")
        self._forget_flows(claim)
        self._let_go(holder)

    def known(self, holder: str) -> dict[str, list[PublishedPort]]:
        """What a run has published."""
        claim = self._claims.get(holder)
        return {} if claim is None else shown(claim)

    async def recover(self, live: set[str]) -> None:
        """With the table in place, at start-up: claims of `live` runs hold, all else goes.

        Later: the table has been made again, and gets what it held.
        """
        if self._recovered:
            self.restore()
            return
        self._recovered = True
        for holder in os.listdir(self._directory):
            if holder.endswith(".new"):
                os.unlink(f"{self._directory}/{holder}")
                continue
            try:
                with open(f"{self._directory}/{holder}", "rb") as file:
                    claim = Claim.loads(holder, file.read())
            except ValueError:
                self._let_go(holder)
                continue
            if holder not in live or holder in self._gone:
                logger.info("ports of %s had no owner any more", holder)
                self._let_go(holder)
                continue
            self._claims[holder] = claim
            for port in claim.ports:
                taken = self._taken.setdefault((port.protocol, port.port), [])
                taken.append((claim, port.host_ip))
        self.restore()
        await self._rehold()
        if self._attendant.used():
            self._strays.look()

    def restore(self) -> None:
        """Make the maps hold exactly what the claims say; the table is there."""
        wanted = {
            (item.set, item.key): item
            for claim in self._claims.values()
            for item in claim.elements()
        }
        found = {
            (name, key): data for name in MAPS for key, data in self._nft.elements(name).items()
        }
        same = {at for at, item in wanted.items() if found.get(at) == item.data}
        extra = [nft.Element(name, key) for name, key in found if (name, key) not in same]
        missing = [item for at, item in wanted.items() if at not in same]
        if extra or missing:
            logger.info("published ports: %d put back, %d taken out", len(missing), len(extra))
            self._nft.change(add=missing, delete=extra)

    async def close(self) -> None:
        """Wait for what is being released; nothing else changes."""
        if self._releasing:
            await asyncio.wait(self._releasing.values(), timeout=1.0)
        self._strays.close()
        self._attendant.close()
        self._nft.close()

    # --- sockets ---

    async def _bind(self, claim: Claim, wanted: list[Wanted]) -> None:
        """Take every port that is wanted."""
        going_on = {claim.holder}
        async with self._binding:
            for item in wanted:
                await self._bind_one(claim, item, going_on)

    async def _bind_one(self, claim: Claim, item: Wanted, going_on: set[str]) -> None:
        """going_on: holders whose runs are known not to be over; it grows."""
        refusal: EngineError | None = None
        taken = 0
        for number in self._candidates(item):
            if self._is_taken(item.protocol, item.host_ip, number, going_on):
                taken, refusal = number, None
                continue
            try:
                only = item.first == item.last == number
                made = await self._try(item.protocol, item.host_ip, number, patient=only)
            except PortInUse as exc:
                refusal = exc
                continue
            claim.ports.append(Bound(item.protocol, item.host_ip, number, item.port, made))
            self._taken.setdefault((item.protocol, number), []).append((claim, item.host_ip))
            # From now on it is released if anything fails.
            self._claims[claim.holder] = claim
            return
        if not item.first:
            raise EngineError("all ports are allocated")
        shown_ip = f"[{item.host_ip}]" if ":" in item.host_ip else item.host_ip or "0.0.0.0"
        raise refusal or PortInUse(f"Bind for {shown_ip}:{taken} failed: port is already allocated")

    def _candidates(self, item: Wanted) -> Iterable[int]:
        if item.first:
            return range(item.first, item.last + 1)
        first, last = ephemeral()
        start = self._last + 1 if first <= self._last < last else first
        return itertools.chain(range(start, last + 1), range(first, start))

    def _is_taken(self, protocol: str, host_ip: str, number: int, going_on: set[str]) -> bool:
        """Whether a run of ours has the port."""
        for claim, other in list(self._taken.get((protocol, number), ())):
            if overlap(other, host_ip):
                # Its exit may be known, and the news not have come round to us yet.
                if claim.holder in going_on or not self._over(claim.holder):
                    going_on.add(claim.holder)
                    return True
                self.release(claim.holder)
        return False

    async def _try(
        self, protocol: str, host_ip: str, number: int, *, patient: bool
    ) -> socket.socket | None:
        """A socket that has the port; PortInUse if another program has it.

        patient: what is being released may be this port, no other one will do.
        """
        released = self._released.pop((protocol, number), None)
        deadline = (released or 0.0) + _RETRIES
        while True:
            try:
                made = bind(protocol, host_ip, number)
            except PortInUse:
                if time.monotonic() >= deadline:
                    if not patient or not await self._settled():
                        raise
                    patient = False
                    deadline = time.monotonic() + _RETRIES
                await asyncio.sleep(_RETRY)
            else:
                self._last = number
                return made

    async def _settled(self) -> bool:
        """Wait until all that is over has been let go; False if nothing was.

        While mooring-network is being started again that takes its time, and so would a hold.
        """
        waited = await self._strays.settled()
        if self._releasing:
            await asyncio.wait(self._releasing.values())
            waited = True
        return waited

    async def _hold(self, claim: Claim) -> None:
        ports = [port for port in claim.ports if port.socket is not None]
        sockets = [port.socket for port in ports if port.socket is not None]
        if sockets:
            targets = [claim.target(port) for port in ports]
            await self._attendant.hold(claim.holder, targets, sockets)
        for port in ports:
            port.close()

    async def _rehold(self) -> None:
        """Bind again what nobody holds: the supervisor was away, and its store with it."""
        for claim in list(self._claims.values()):
            for port in claim.ports:
                try:
                    port.socket = bind(port.protocol, port.host_ip, port.port)
                except PortInUse:
                    pass  # by mooring-network, as it should be
                except (EngineError, OSError) as exc:
                    logger.warning("a published port cannot be held: %s", exc)
            try:
                await self._hold(claim)
            except EngineError as exc:
                logger.warning("published ports cannot be held: %s", exc)

    def _let_strays_go(self, held: set[str]) -> None:
        """Of `held` and of the claims, what no run has that we know."""
        if not self._recovered:
            return
        written = {name for name in os.listdir(self._directory) if not name.endswith(".new")}
        for holder in (held | written) - self._claims.keys() - self._releasing.keys():
            logger.info("ports of %s had been left behind", holder)
            self._have_closed(holder)

    def _let_go(self, holder: str) -> None:
        """Have the sockets of a holder closed, and forget its claim then; it may have none."""
        if os.path.exists(f"{self._directory}/{holder}"):
            self._have_closed(holder)

    def _have_closed(self, holder: str) -> None:
        path = f"{self._directory}/{holder}"

        async def let_go() -> None:
            try:
                await self._attendant.release(holder)
            except EngineError as exc:
                logger.warning("the ports of %s are not released: %s", holder, exc)
                self._strays.later()
                return
            finally:
                del self._releasing[holder]
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

        self._releasing[holder] = asyncio.create_task(let_go(), name=f"release {holder[:12]}")

    def _write(self, claim: Claim) -> None:
        path = f"{self._directory}/{claim.holder}"
        with open(f"{path}.new", "wb") as file:
            file.write(claim.dumps())
        os.rename(f"{path}.new", path)

    # --- the kernel's tables ---

    async def _apply(self, claim: Claim) -> None:
        elements = claim.elements()
        # Somebody may have flushed the table, or the rules alone: then all of it is made anew.
        if self._nft.rules() != firewall.RULES:
            logger.warning("the nftables table was changed behind our back: repairing it")
            await self.repair()
            self.restore()
        try:
            self._nft.change(add=elements)
        except FileExistsError:
            self.restore()
        for port in claim.ports:
            if port.protocol == "udp":
                conntrack.forget_flows_to(port.port)
                conntrack.forget_flows_to(port.port, ipv6=True)
        if claim.link:
            _let_back(claim.link)

    def _delete(self, elements: list[nft.Element]) -> None:
        try:
            self._nft.change(delete=elements)
        except FileNotFoundError:
            # Not all of them are there: one by one, so that the others go.
            for element in elements:
                with contextlib.suppress(FileNotFoundError):
                    self._nft.change(delete=[element])

    def _forget_flows(self, claim: Claim) -> None:
        for port in claim.ports:
            if port.protocol == "udp":
                for address in filter(None, (claim.address, claim.address6)):
                    conntrack.forget_flows_of(address, port.target)


async def _nothing() -> None:
    """Nobody has said how."""


def shown(claim: Claim) -> dict[str, list[PublishedPort]]:
    """By `80/tcp`, in the order in which inspect shows them."""
    found: dict[str, list[PublishedPort]] = {}
    for port in claim.ports:
        mine = found.setdefault(f"{port.target}/{port.protocol}", [])
        for address in port.addresses():
            mine.append(PublishedPort(host_ip=address, host_port=port.port))
    return found


def _let_back(link: str) -> None:
    """Let the bridge send a packet back through the port it came from (hairpin).

    Only where bridges hand packets to iptables: there a container that calls its own published
    port is translated inside the bridge; else its packet is routed, and comes from the host.
    """
    try:
        with open(_BRIDGE_FILTER, "rb", 0) as file:
            if file.read(1) != b"1":
                return
        with open(f"/sys/class/net/{link}/brport/hairpin_mode", "wb", 0) as file:
            file.write(b"1")
    except FileNotFoundError:
        pass
    except OSError as exc:
        logger.warning("cannot set %s to hairpin mode: %s", link, exc)

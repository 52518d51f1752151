"""Which subnet, which address: pure decisions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from itertools import chain
from typing import TypeVar

from mooring.kit.errors import EngineError
from mooring.kit.models.network import IpamPool

from .leases import Address

# Private space that neither Docker's default pools (172.17-31/16, 192.168/16) nor Podman's
# (10.88/16, 10.89/16) begin with, so that either may run on the same host.
CANDIDATES = (
    *(ip_network(f"10.{n}.0.0/16") for n in (209, 211, 213, 217, 219, 223, 227, 229)),
    *ip_network("10.240.0.0/13").subnets(new_prefix=20),
)


def free_subnet(taken: Iterable[IPv4Network], kept: str = "") -> IPv4Network:
    """The first candidate, or `kept` before all, that overlaps none of the host's own networks."""
    used = list(taken)
    for candidate in (*([ip_network(kept)] if kept else []), *CANDIDATES):
        assert isinstance(candidate, IPv4Network)
        if not any(candidate.overlaps(other) for other in used):
            return candidate
    raise EngineError("could not find an available, non-overlapping IPv4 address pool")


def next_address(
    subnet: IPv4Network, taken: Collection[Address], after: IPv4Address
) -> IPv4Address:
    """The next free host address after `after`, round the subnet; the first one is the gateway's.

    Going round keeps an address unused as long as possible: neighbours remember its last owner.
    """
    first, last = int(subnet.network_address) + 2, int(subnet.broadcast_address) - 1
    found = next_free(first, last, taken, int(after), IPv4Address)
    if found is None:
        raise EngineError(f"no available IPv4 addresses on this network's address pool: {subnet}")
    return found


A = TypeVar("A", IPv4Address, IPv6Address)


def next_free(
    first: int, last: int, taken: Collection[Address], after: int, kind: type[A]
) -> A | None:
    """The next free address after `after`, round the range; None if there is none."""
    start = after + 1 if first <= after < last else first
    for number in chain(range(start, last + 1), range(first, start)):
        if (address := kind(number)) not in taken:
            return address
    return None


@dataclass(frozen=True, slots=True)
class Range:
    """Where the addresses of one family of a network come from."""

    subnet: IPv4Network | IPv6Network
    chosen: IPv4Network | IPv6Network
    """From where they are given out: the subnet, or the ip-range."""
    gateway: Address | None
    reserved: frozenset[Address]
    """Never given out: the gateway's and the auxiliary addresses."""

    def first_and_last(self) -> tuple[int, int]:
        """The numbers of the first and the last address that may be given out."""
        first, last = int(self.chosen.network_address), int(self.chosen.broadcast_address)
        if self.chosen.num_addresses > 2:
            if first == int(self.subnet.network_address):
                first += 1
            if self.subnet.version == 4 and last == int(self.subnet.broadcast_address):
                last -= 1
        return first, last

    def next(self, taken: Collection[Address], after: int) -> Address | None:
        """A free address."""
        first, last = self.first_and_last()
        if self.subnet.version == 4:
            return next_free(first, last, _Either(taken, self.reserved), after, IPv4Address)
        return next_free(first, last, _Either(taken, self.reserved), after, IPv6Address)


class _Either(Collection[Address]):
    """Two collections as one, without a copy of a large one."""

    def __init__(self, one: Collection[Address], other: Collection[Address]) -> None:
        self._one, self._other = one, other

    def __contains__(self, item: object) -> bool:
        return item in self._one or item in self._other

    def __iter__(self) -> Iterator[Address]:
        return chain(self._one, self._other)

    def __len__(self) -> int:
        return len(self._one) + len(self._other)


def ranges(pools: Iterable[IpamPool]) -> list[Range]:
    """What the pools of a record say; its subnets are chosen."""
    found = []
    for pool in pools:
        subnet = ip_network(pool.subnet, strict=False)
        gateway = ip_address(pool.gateway) if pool.gateway else None
        reserved = {ip_address(text) for text in (pool.aux_addresses or {}).values()}
        if gateway is not None:
            reserved.add(gateway)
        chosen = ip_network(pool.ip_range, strict=False) if pool.ip_range else subnet
        found.append(Range(subnet, chosen, gateway, frozenset(reserved)))
    return found

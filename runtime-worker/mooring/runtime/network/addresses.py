"""Which subnet, which address: pure decisions."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import IPv4Address, IPv4Network, ip_network
from itertools import chain

from mooring.kit.errors import EngineError

# Private space that neither Docker's default pools (172.17-31/16, 192.168/16) nor Podman's
# (10.88/16, 10.89/16) begin with, so that either may run on the same host.
CANDIDATES = tuple(ip_network(f"10.{n}.0.0/16") for n in (209, 211, 213, 217, 219, 223, 227, 229))


def free_subnet(taken: Iterable[IPv4Network], kept: str = "") -> IPv4Network:
    """The first candidate, or `kept` before all, that overlaps none of the host's own networks."""
    used = list(taken)
    for candidate in (*([ip_network(kept)] if kept else []), *CANDIDATES):
        assert isinstance(candidate, IPv4Network)
        if not any(candidate.overlaps(other) for other in used):
            return candidate
    raise EngineError("could not find an available, non-overlapping IPv4 address pool")


def next_address(
    subnet: IPv4Network, taken: Collection[IPv4Address], after: IPv4Address
) -> IPv4Address:
    """The next free host address after `after`, round the subnet; the first one is the gateway's.

    Going round keeps an address unused as long as possible: neighbours remember its last owner.
    """
    first, last = int(subnet.network_address) + 2, int(subnet.broadcast_address) - 1
    start = int(after) + 1 if first <= int(after) < last else first
    for number in chain(range(start, last + 1), range(first, start)):
        if (address := IPv4Address(number)) not in taken:
            return address
    raise EngineError(f"no available IPv4 addresses on this network's address pool: {subnet}")

"""What a host needs once for its default bridge: the link, its address, the NAT rule.

Every function blocks for as long as the kernel and nft(8) take, some ten milliseconds.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

from . import firewall, links, netlink, nft
from .addresses import free_subnet
from .netlink import IFF_UP, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, RTM_NEWLINK

_ANY_ROUTE = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Made:
    """The bridge as it is; `mtu`: of the link of the default route, larger packets are lost."""

    subnet: IPv4Network
    gateway: str
    mtu: int


def ensure(bridge: str, table: str, wanted: str, kept: str = "") -> Made:
    """Make what is missing; what is there stays untouched. OSError, EngineError.

    wanted: a subnet that the user has set, or empty to choose. kept: the one chosen last time,
    taken again unless somebody else has it by now.
    """
    with contextlib.closing(netlink.Route()) as route:
        index = links.index_of(bridge)
        there = _addresses(route, index) if index else []
        own = there[0] if there else None
        mtu = _mtu(route)
        if own is None or (wanted and own.network != IPv4Network(wanted)):
            subnet = IPv4Network(wanted) if wanted else free_subnet(_used(route, index), kept)
            own = IPv4Interface(f"{subnet.network_address + 1}/{subnet.prefixlen}")
            if not index:
                # A fixed MAC: else it is the lowest of its ports', and neighbours lose it.
                body = netlink.bridge(bridge, b"\x02\x42" + own.ip.packed, mtu)
                route.ask((RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body))
                index = route.index(bridge)
            for other in there:
                body = netlink.address(index, other.ip.packed, other.network.prefixlen)
                route.ask((netlink.RTM_DELADDR, 0, body))
            body = netlink.address(index, own.ip.packed, own.network.prefixlen)
            route.ask((netlink.RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body))
        route.ask((RTM_NEWLINK, 0, netlink.link(index, IFF_UP, IFF_UP)))
    links.forward()
    ensure_table(table)
    elements = firewall.network_elements(bridge, [own.network])
    with contextlib.closing(nft.Nft(table)) as open_table:
        open_table.change(add=elements)
    _let_loopback_out(bridge)
    return Made(own.network, str(own.ip), mtu)


def ensure_table(table: str) -> bool:
    """See that the table is there with all its rules; True if it had to be made, empty."""
    with contextlib.closing(nft.Nft(table)) as found:
        if found.rules() == firewall.RULES:
            return False
    # Until 2026-11-24 it was a table of family ip.
    _nft(f"add table ip {table}\ndelete table ip {table}\n" + firewall.text(table))
    return True


def remove(bridge: str, table: str) -> None:
    """Take link and table away again; not being there is fine. OSError."""
    links.delete(bridge)
    # `destroy` is newer than nft 1.0.6: declare it first, so that there is something to delete.
    _nft(f"add table inet {table}\ndelete table inet {table}\n")


def _routes(route: netlink.Route) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Prefix length and attributes of every IPv4 route of the host, in whatever table."""
    for body in route.dump(netlink.RTM_GETROUTE, _ANY_ROUTE):
        yield body[1], netlink.attributes(body[12:])


def _used(route: netlink.Route, bridge: int) -> list[IPv4Network]:
    """The networks that the host has routes to, the default route and our bridge left out."""
    return [
        IPv4Network((parts[netlink.RTA_DST], length), strict=False)
        for length, parts in _routes(route)
        if netlink.RTA_DST in parts and _out(parts) != bridge
    ]


def _mtu(route: netlink.Route) -> int:
    defaults = (_out(parts) for length, parts in _routes(route) if not length)
    out = next((index for index in defaults if index), 0)
    for body in route.dump(netlink.RTM_GETLINK, netlink.link(0, 0, 0)):
        if out and struct.unpack_from("=i", body, 4)[0] == out:
            mtu = netlink.attributes(body[16:])[netlink.IFLA_MTU]
            return int(struct.unpack("=I", mtu)[0])
    return links.DEFAULT_MTU


def _out(parts: dict[int, bytes]) -> int:
    """The index of the link that a route leads out of, 0 if it names none, or several."""
    found = parts.get(netlink.RTA_OIF)
    return int(struct.unpack("=I", found)[0]) if found else 0


def _addresses(route: netlink.Route, index: int) -> list[IPv4Interface]:
    """The IPv4 addresses of a link."""
    found = []
    head = struct.pack("=BBBBI", socket.AF_INET, 0, 0, 0, 0)
    for body in route.dump(netlink.RTM_GETADDR, head):
        prefix, owner = body[1], struct.unpack_from("=I", body, 4)[0]
        if owner == index:
            address = netlink.attributes(body[8:])[netlink.IFA_LOCAL]
            found.append(IPv4Interface((address, prefix)))
    return found


def _nft(text: str) -> None:
    done = subprocess.run(["nft", "-f", "-"], input=text, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"nft: {done.stderr.strip()}")


def _let_loopback_out(bridge: str) -> None:
    """Have packets from 127.0.0.1 routed to the bridge, for ports published on the loopback.

    It would let containers reach the host's loopback as well: the chain `raw` prevents that.
    """
    Path(f"/proc/sys/net/ipv4/conf/{bridge}/route_localnet").write_text("1")

"""The links of networks on the host: bridges, and the parents of macvlan and ipvlan.

What we make bears a mark (IFLA_IFALIAS) with the engine's name and the network's id, so that we
take away our own and nobody else's. Every function blocks for as long as the kernel takes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterable
from ipaddress import ip_interface, ip_network

from mooring.kit.errors import EngineError, InvalidParameter
from mooring.kit.models.network import NetworkRecord

from . import netlink, plan
from .netlink import IFF_UP, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, RTM_NEWLINK

DEFAULT_MTU = 1500
_MADE = NLM_F_CREATE | NLM_F_EXCL


def mark(instance: str, network_id: str) -> str:
    """What a link of a network of ours is marked with."""
    return f"mooring:{instance}:{network_id}"


def index_of(name: str) -> int:
    """The index of a link of the host, 0 if there is none."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def ensure(record: NetworkRecord, instance: str) -> bool:
    """Make a network's link if it is not there; whether it was missing. EngineError."""
    route = netlink.Route()
    try:
        if record.driver == "bridge":
            return _ensure_bridge(route, record, instance)
        return _ensure_parent(route, record, instance)
    except OSError as exc:
        raise EngineError(
            f"cannot make the link {record.interface} of network {record.name}: {exc}"
        ) from exc
    finally:
        route.close()


def remove(record: NetworkRecord, instance: str) -> None:
    """Take a network's link away if it is of our making; it may be gone."""
    remove_marked(instance, {record.id})


def remove_marked(instance: str, network_ids: Iterable[str] | None = None) -> None:
    """Take away the links of these networks, or (None) all that bear the engine's mark."""
    wanted = None if network_ids is None else {mark(instance, id_) for id_ in network_ids}
    route = netlink.Route()
    try:
        for index, _, alias in _links(route):
            ours = alias.startswith(mark(instance, "")) if wanted is None else alias in wanted
            if ours:
                _delete(route, index)
    finally:
        route.close()


def delete(name: str) -> None:
    """Take a link away by its name; it may be gone. OSError."""
    if index := index_of(name):
        with contextlib.closing(netlink.Route()) as route:
            _delete(route, index)


def marked(instance: str) -> set[str]:
    """The ids of the networks that have a link of our making."""
    route = netlink.Route()
    try:
        start = mark(instance, "")
        return {a.removeprefix(start) for _, _, a in _links(route) if a.startswith(start)}
    finally:
        route.close()


def adopt(bridge: str, ports: Iterable[str]) -> int:
    """Connect the host's ends of veths to a bridge that was made anew; how many there were."""
    route = netlink.Route()
    count = 0
    try:
        master = netlink.attribute(netlink.IFLA_MASTER, struct.pack("=I", index_of(bridge)))
        for name in ports:
            if index := index_of(name):
                route.ask((RTM_NEWLINK, 0, netlink.link(index, IFF_UP, IFF_UP, master)))
                count += 1
    finally:
        route.close()
    return count


def routes() -> list[str]:
    """Every subnet that the host has a route to, the default routes left out."""
    route = netlink.Route()
    found = []
    try:
        for family in (socket.AF_INET, socket.AF_INET6):
            head = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, 0, 0)
            for body in route.dump(netlink.RTM_GETROUTE, head):
                length, table, kind = body[1], body[4], body[7]
                target = netlink.attributes(body[12:]).get(netlink.RTA_DST)
                if target is None or table != netlink.RT_TABLE_MAIN or kind != netlink.RTN_UNICAST:
                    continue
                text = socket.inet_ntop(family, target)
                if not text.startswith("fe80:"):
                    found.append(str(ip_network(f"{text}/{length}", strict=False)))
    finally:
        route.close()
    return found


def mtu_of(record: NetworkRecord, default: int) -> int:
    """The MTU of a network's interfaces; 0 leaves it to the parent link."""
    text = record.options.get(plan.MTU, "")
    if text and int(text):
        return int(text)
    return default if record.driver == "bridge" else 0


def _ensure_bridge(route: netlink.Route, record: NetworkRecord, instance: str) -> bool:
    name = record.interface
    index = index_of(name)
    missing = not index
    mtu = mtu_of(record, DEFAULT_MTU)
    gateways = [
        (pool.gateway, ip_network(pool.subnet, strict=False).prefixlen)
        for pool in record.ipam
        if pool.gateway
    ]
    if missing:
        # A fixed MAC: else it is the lowest of its ports', and neighbours lose it.
        first = next((ip for ip, _ in gateways if ":" not in ip), "")
        mac = plan.mac_for(first) if first else f"02:42:{os.urandom(4).hex(':')}"
        body = netlink.bridge(name, bytes.fromhex(mac.replace(":", "")), mtu)
        _make(route, name, body, mark(instance, record.id))
        index = index_of(name)
        # Nobody needs the link-local address that a bridge without IPv6 would have.
        _set(f"net/ipv6/conf/{name}/accept_ra", "0")
        _set(f"net/ipv6/conf/{name}/disable_ipv6", "0" if record.enable_ipv6 else "1")
        # For ports published on the loopback; the chain `raw` keeps containers from using it.
        _set(f"net/ipv4/conf/{name}/route_localnet", "1")
    elif not os.path.isdir(f"/sys/class/net/{name}/bridge"):
        raise InvalidParameter(f"interface {name} exists already and is no bridge")
    for gateway, prefix in gateways:
        if isolated_gateway(record, gateway):
            continue
        body = netlink.address(index, ip_interface(gateway).packed, prefix)
        route.ask((netlink.RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body))
    route.ask((RTM_NEWLINK, 0, netlink.link(index, IFF_UP, IFF_UP)))
    forward(six=record.enable_ipv6)
    return missing


def isolated_gateway(record: NetworkRecord, gateway: str) -> bool:
    """Whether the host is to have no address on this network (gateway mode `isolated`)."""
    family = 6 if ":" in gateway else 4
    if family == 4 and plan.truth(record.options, plan.INHIBIT, False):
        return True
    return record.options.get(f"com.docker.network.bridge.gateway_mode_ipv{family}") == "isolated"


def _ensure_parent(route: netlink.Route, record: NetworkRecord, instance: str) -> bool:
    """The parent of macvlan or ipvlan: there, or a VLAN of one that is, or one of our own."""
    name = record.interface
    if index := index_of(name):
        route.ask((RTM_NEWLINK, 0, netlink.link(index, IFF_UP, IFF_UP)))
        return False
    base, dot, vlan = name.rpartition(".")
    try:
        if dot:
            if not (parent := index_of(base)):
                raise InvalidParameter(f"the parent interface {base} was not found on the host")
            data = netlink.attribute(netlink.IFLA_VLAN_ID, struct.pack("=H", int(vlan)))
            body = netlink.sublink("vlan", name, parent, data)
        elif name == own_parent(record.id):
            info = netlink.attribute(netlink.IFLA_INFO_KIND, b"dummy")
            own = netlink.attribute(netlink.IFLA_IFNAME, name.encode() + b"\0")
            body = netlink.link(0, 0, 0, own + netlink.attribute(netlink.IFLA_LINKINFO, info))
        else:
            raise InvalidParameter(f"the parent interface {name} was not found on the host")
        _make(route, name, body, mark(instance, record.id))
    except OSError as exc:
        if exc.errno == errno.EOPNOTSUPP:
            kind = "VLAN (8021q)" if dot else "dummy interfaces"
            raise InvalidParameter(f"the kernel of this host has no {kind}") from exc
        raise
    route.ask((RTM_NEWLINK, 0, netlink.link(index_of(name), IFF_UP, IFF_UP)))
    return True


def _make(route: netlink.Route, name: str, body: bytes, text: str) -> None:
    """A link with its mark, in one system call: nobody can be killed between the two."""
    route.ask((RTM_NEWLINK, _MADE, body), (RTM_NEWLINK, 0, netlink.marked(name, text)))


def own_parent(network_id: str) -> str:
    """The parent of a macvlan or ipvlan network that was given none, as Docker calls it."""
    return f"dm-{network_id[:12]}"


def forward(*, six: bool = False) -> None:
    """Have the host forward packets, as every container engine does; off is never set."""
    if _get("net/ipv4/ip_forward") == "0":
        _set("net/ipv4/ip_forward", "1")
    if six and _get("net/ipv6/conf/all/forwarding") == "0":
        for name in os.listdir("/proc/sys/net/ipv6/conf"):
            # A router ignores router advertisements: the host would lose its own way out.
            if name not in ("all", "default") and _get(f"net/ipv6/conf/{name}/accept_ra") == "1":
                _set(f"net/ipv6/conf/{name}/accept_ra", "2")
        _set("net/ipv6/conf/all/forwarding", "1")


def _links(route: netlink.Route) -> list[tuple[int, str, str]]:
    """Index, name and mark of every link of the host."""
    found = []
    for body in route.dump(netlink.RTM_GETLINK, netlink.link(0, 0, 0)):
        index = struct.unpack_from("=i", body, 4)[0]
        parts = netlink.attributes(body[16:])
        name = parts.get(netlink.IFLA_IFNAME, b"").rstrip(b"\0").decode()
        alias = parts.get(netlink.IFLA_IFALIAS, b"").rstrip(b"\0").decode(errors="replace")
        found.append((index, name, alias))
    return found


def _delete(route: netlink.Route, index: int) -> None:
    try:
        route.ask((netlink.RTM_DELLINK, 0, netlink.link(index, 0, 0)))
    except OSError as exc:
        if exc.errno != errno.ENODEV:
            raise


def _get(key: str) -> str:
    try:
        with open(f"/proc/sys/{key}") as file:
            return file.read().strip()
    except OSError:
        return ""


def _set(key: str, value: str) -> None:
    try:
        with open(f"/proc/sys/{key}", "w") as file:
            file.write(value)
    except OSError:
        pass  # a kernel without IPv6

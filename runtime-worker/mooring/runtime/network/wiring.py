"""Interfaces of a sandbox: made, given their addresses and routes, taken away again.

Runs in the factory, in the sandbox's namespace; `host` is a netlink socket of the host's. An
interface is asked for as
  {"kind": "bridge"|"macvlan"|"ipvlan", "name": "eth0", "addresses": [["10.1.0.2", 16], ...],
   "mac": "02:...", "mtu": 1500, "sysctls": {"net/ipv4/conf/IFNAME/x": "1"}, "link": LINK,
   "master": BRIDGE, "isolated": bool, "parent": LINK, "mode": N, "flags": N}
and the default routes as {"4": [gateway, interface], "6": [...]}: an empty gateway is a route
straight out of the interface, a missing family has none.
"""

from __future__ import annotations

import _socket as socket
import errno
import fcntl
import os
import struct

from . import netlink
from .namespace import new_namespace
from .netlink import IFF_UP, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, RTM_DELLINK, RTM_NEWLINK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SIOCGIFHWADDR = 0x8927
_MADE = NLM_F_CREATE | NLM_F_EXCL


def new_link_name() -> str:
    """A name for the host's end of a veth that nobody else will have."""
    return f"mrv{os.urandom(5).hex()}"


def blank(home: int, host: netlink.Route) -> tuple[int, str]:
    """A namespace with lo up and the peer of a veth in it that is a port of nothing yet."""
    namespace, inside = new_namespace(home)
    name = new_link_name()
    try:
        body = netlink.veth(name, 0, 0, "eth0", b"", namespace)
        host.ask((RTM_NEWLINK, _MADE, body))
        inside.ask((RTM_NEWLINK, 0, netlink.link(1, IFF_UP, IFF_UP)))
    except BaseException:
        os.close(namespace)
        raise
    finally:
        inside.close()
    return namespace, name


def plug(
    host: netlink.Route, inside: netlink.Route, namespace: int, request: dict[str, Any]
) -> list[str]:
    """Give the sandbox that we are in these interfaces; their MAC addresses, in order.

    All or nothing: what was made is taken back if one of them fails.
    """
    inside.ask((RTM_NEWLINK, 0, netlink.link(1, IFF_UP, IFF_UP)))
    prepared = request.get("blank")
    made: list[str] = []
    macs = []
    try:
        for wanted in request["interfaces"]:
            name = str(wanted["name"])
            if prepared and name == "eth0" and wanted["kind"] == "bridge":
                _connect(host, str(prepared), wanted)
                prepared = None
            else:
                _delete(inside, name)
                _create(host, namespace, wanted)
            made.append(name)
            macs.append(_configure(inside, wanted))
        _route(inside, request["gateways"], fresh=bool(request.get("fresh")))
    except BaseException:
        for name in made:
            _delete(inside, name)
        raise
    return macs


def unplug(inside: netlink.Route, request: dict[str, Any]) -> None:
    """Take an interface away, which may be gone already, and set the default routes anew."""
    _delete(inside, str(request["interface"]))
    _route(inside, request["gateways"])


def _delete(inside: netlink.Route, name: str) -> None:
    """What a connect that was broken off has left, or what is disconnected."""
    try:
        inside.ask((RTM_DELLINK, 0, netlink.link(inside.index(name), 0, 0)))
    except OSError as exc:
        if exc.errno not in (errno.ENODEV, errno.ENXIO):
            raise


def _connect(host: netlink.Route, link: str, wanted: dict[str, Any]) -> None:
    own = netlink.attribute(netlink.IFLA_MASTER, struct.pack("=I", int(wanted["master"])))
    own += netlink.attribute(netlink.IFLA_IFNAME, link.encode() + b"\0")
    if wanted["mtu"]:
        own += netlink.attribute(netlink.IFLA_MTU, struct.pack("=I", int(wanted["mtu"])))
    host.ask((RTM_NEWLINK, 0, netlink.link(0, IFF_UP, IFF_UP, own)))
    _isolate(host, link, wanted)


def _isolate(host: netlink.Route, link: str, wanted: dict[str, Any]) -> None:
    if wanted.get("isolated"):
        index = host.index(link)
        host.ask((netlink.RTM_SETLINK, 0, netlink.isolated(index)))


def _create(host: netlink.Route, namespace: int, wanted: dict[str, Any]) -> None:
    kind, name = str(wanted["kind"]), str(wanted["name"])
    mac = bytes.fromhex(str(wanted["mac"]).replace(":", ""))
    match kind:
        case "bridge":
            link = str(wanted["link"])
            body = netlink.veth(
                link, int(wanted["master"]), int(wanted["mtu"]), name, mac, namespace, index=0
            )
            host.ask((RTM_NEWLINK, _MADE, body))
            _isolate(host, link, wanted)
            return
        case "macvlan":
            data = netlink.attribute(
                netlink.IFLA_MACVLAN_MODE, struct.pack("=I", int(wanted["mode"]))
            )
        case "ipvlan":
            data = netlink.attribute(
                netlink.IFLA_IPVLAN_MODE, struct.pack("=H", int(wanted["mode"]))
            ) + netlink.attribute(
                netlink.IFLA_IPVLAN_FLAGS, struct.pack("=H", int(wanted["flags"]))
            )
            mac = b""
        case _:
            raise ValueError(f"no interface of the kind {kind} can be made")
    body = netlink.sublink(kind, name, int(wanted["parent"]), data, netns=namespace, mac=mac)
    host.ask((RTM_NEWLINK, _MADE, body))


def _configure(inside: netlink.Route, wanted: dict[str, Any]) -> str:
    """Addresses and settings; the interface is up after it. Its MAC address."""
    name = str(wanted["name"])
    index = inside.index(name)
    addresses = [(socket.inet_pton(_family(ip), ip), prefix) for ip, prefix in wanted["addresses"]]
    if any(len(ip) == 16 for ip, _ in addresses):
        # Off by default in our sandboxes.
        _write(f"net/ipv6/conf/{name}/disable_ipv6", "0")
    for key, value in wanted.get("sysctls", {}).items():
        _write(key.replace("IFNAME", name), value)
    own = b""
    if wanted["mac"] and wanted["kind"] != "ipvlan":
        mac = bytes.fromhex(str(wanted["mac"]).replace(":", ""))
        own += netlink.attribute(netlink.IFLA_ADDRESS, mac)
    if wanted["mtu"]:
        own += netlink.attribute(netlink.IFLA_MTU, struct.pack("=I", int(wanted["mtu"])))
    requests: list[tuple[int, int, bytes]] = []
    if own:
        requests.append((RTM_NEWLINK, 0, netlink.link(index, 0, 0, own)))
    for ip, prefix in addresses:
        requests.append((netlink.RTM_NEWADDR, _MADE, netlink.address(index, ip, prefix)))
    requests.append((RTM_NEWLINK, 0, netlink.link(index, IFF_UP, IFF_UP)))
    inside.ask(*requests)
    return str(wanted["mac"]) or _mac(name)


def _mac(name: str) -> str:
    """The MAC address that an interface has (an ipvlan's is its parent's)."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        answer = fcntl.ioctl(sock.fileno(), _SIOCGIFHWADDR, struct.pack("16s24x", name.encode()))
    finally:
        sock.close()
    return ":".join(f"{byte:02x}" for byte in answer[18:24])


def _family(ip: str) -> int:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def _route(inside: netlink.Route, gateways: dict[str, Any], *, fresh: bool = False) -> None:
    """The default routes: these and no others. fresh: there are none yet."""
    for key, family in (("4", socket.AF_INET), ("6", socket.AF_INET6)):
        wanted = gateways.get(key)
        if not fresh and (not wanted or family == socket.AF_INET6):
            # An IPv6 default route is not replaced by one through another interface.
            _forget_routes(inside, family)
        if not wanted:
            continue
        gateway, name = wanted
        index = inside.index(name)
        body = (
            netlink.default_route(socket.inet_pton(family, gateway), index)
            if gateway
            else netlink.link_route(family, index)
        )
        inside.ask((netlink.RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body))


def _forget_routes(inside: netlink.Route, family: int) -> None:
    while True:
        try:
            inside.ask((netlink.RTM_DELROUTE, 0, netlink.no_route(family)))
        except OSError as exc:
            if exc.errno in (errno.ESRCH, errno.ENOENT, errno.EAFNOSUPPORT):
                return
            raise


def _write(key: str, value: str) -> None:
    try:
        with open(f"/proc/sys/{key}", "wb", 0) as file:
            file.write(value.encode())
    except OSError as exc:
        what = f"cannot set {key.replace('/', '.')}={value}: {exc.strerror}"
        raise OSError(exc.errno, what) from None

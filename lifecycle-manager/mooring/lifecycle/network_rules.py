"""Pure: what networks may be, in Docker's words, and which subnets they get."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence

from mooring.kit.endpoints import PREDEFINED
from mooring.kit.errors import (
    Forbidden,
    InvalidParameter,
    NotFound,
    NotSupported,
    Unavailable,
)
from mooring.kit.models.network import CreateNetwork, IpamPool, NetworkRecord

Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network

_PREFIX = "com.docker.network."
_BOOLEANS = frozenset(
    {"bridge.enable_icc", "bridge.enable_ip_masquerade", "bridge.inhibit_ipv4",
     "bridge.default_bridge", "enable_ipv4", "enable_ipv6"}
)  # fmt: skip
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_LINK_NAME = re.compile(r"[^\s/:]{1,15}\Z")
_MACVLAN_MODES = ("private", "vepa", "bridge", "passthru")
_IPVLAN_MODES = ("l2", "l3", "l3s")
_IPVLAN_FLAGS = ("bridge", "private", "vepa")


def draft(request: CreateNetwork, network_id: str) -> NetworkRecord:
    """The record that a request asks for; its subnets may still have to be chosen."""
    _check_name(request)
    driver = request.driver or "bridge"
    _check_driver(driver, request)
    if request.ipam_driver not in ("", "default"):
        raise NotFound(f'plugin "{request.ipam_driver}" not found')
    for option in request.ipam_options:
        raise NotSupported(f"IPAM option {option} is not supported")
    six = _family(request, 6, request.enable_ipv6, default=False)
    four = _family(request, 4, request.enable_ipv4, default=True)
    if not four and not six:
        raise InvalidParameter("IPv4 or IPv6 must be enabled")
    _check_options(driver, request.options, internal=request.internal)
    pools = check_pools(request.ipam, four=four, six=six)
    return NetworkRecord(
        id=network_id,
        name=request.name,
        driver=driver,
        enable_ipv4=four,
        enable_ipv6=six,
        internal=request.internal,
        attachable=request.attachable,
        ipam=pools,
        configured=bool(pools),
        options=request.options,
        labels=request.labels,
        interface=_interface(driver, request.options, network_id),
    )


def check_pools(pools: Sequence[IpamPool], *, four: bool, six: bool) -> list[IpamPool]:
    """The pools with their subnets as networks; InvalidParameter with all that is wrong."""
    wrong: list[str] = []
    found = []
    for pool in pools:
        try:
            subnet = ipaddress.ip_network(pool.subnet, strict=False)
        except ValueError:
            wrong.append(f"invalid subnet {pool.subnet}: invalid CIDR block notation")
            continue
        if "/" not in pool.subnet:
            wrong.append(f"invalid subnet {pool.subnet}: invalid CIDR block notation")
            continue
        if str(ipaddress.ip_interface(pool.subnet).ip) != str(subnet.network_address):
            wrong.append(f"invalid subnet {pool.subnet}: it should be {subnet}")
        if not (four if subnet.version == 4 else six):
            wrong.append(
                f"invalid subnet {subnet}: IPv{subnet.version} has not been enabled for "
                "this network"
            )
        if subnet.num_addresses < 4:
            wrong.append(f"invalid subnet {subnet}: it has no room for containers")
        wrong += _check_inside(pool, subnet)
        found.append(pool.model_copy(update={"subnet": str(subnet)}))
    nets = [ipaddress.ip_network(pool.subnet) for pool in found]
    for index, net in enumerate(nets):
        if any(_overlap(net, other) for other in nets[:index]):
            raise Forbidden(
                "invalid pool request: Pool overlaps with other one on this address space"
            )
    if wrong:
        raise InvalidParameter("invalid network config:\n" + "\n".join(wrong))
    return found


def _check_inside(pool: IpamPool, subnet: Subnet) -> Iterator[str]:
    if pool.ip_range:
        try:
            part = ipaddress.ip_network(pool.ip_range)
        except ValueError:
            yield f"invalid ip-range {pool.ip_range}: invalid CIDR block notation"
        else:
            if part.version != subnet.version or int(part.broadcast_address) not in range(
                int(subnet.network_address), int(subnet.broadcast_address) + 1
            ):
                yield f"invalid ip-range {part}: parent subnet {subnet} doesn't contain ip-range"
            elif part.prefixlen < subnet.prefixlen:
                yield f"invalid ip-range {part}: it is bigger than its parent subnet {subnet}"
    named = [("gateway", pool.gateway)] if pool.gateway else []
    named += [("auxiliary address", text) for text in (pool.aux_addresses or {}).values()]
    for what, text in named:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            yield f"invalid {what} {text}: invalid address"
        else:
            if address not in subnet:
                yield f"invalid {what} {text}: parent subnet {subnet} doesn't contain this address"


def complete(
    record: NetworkRecord, used: Iterable[str], taken: Iterable[str], pools: str
) -> NetworkRecord:
    """The record with every subnet and gateway chosen.

    used: subnets that the host has routes to, avoided but not forbidden. taken: those of other
    networks; Forbidden for what overlaps one of them.
    """
    others = [ipaddress.ip_network(text) for text in taken]
    chosen = list(record.ipam)
    for pool in chosen:
        if any(_overlap(ipaddress.ip_network(pool.subnet), other) for other in others):
            raise Forbidden(
                "invalid pool request: Pool overlaps with other one on this address space"
            )
    have = {ipaddress.ip_network(pool.subnet).version for pool in chosen}
    avoided = others + [ipaddress.ip_network(text, strict=False) for text in used]
    avoided += [ipaddress.ip_network(pool.subnet) for pool in chosen]
    if record.enable_ipv4 and 4 not in have:
        chosen.append(IpamPool(subnet=str(free_subnet(avoided, pools, 4, record.node))))
    if record.enable_ipv6 and 6 not in have:
        chosen.append(IpamPool(subnet=str(free_subnet(avoided, pools, 6, record.node))))
    chosen.sort(key=lambda pool: ipaddress.ip_network(pool.subnet).version)
    return record.model_copy(update={"ipam": [_with_gateway(pool) for pool in chosen]})


def free_subnet(avoided: Iterable[Subnet], pools: str, family: int, node: str) -> Subnet:
    """The first subnet of the pools that overlaps nothing; InvalidParameter if all are taken."""
    busy = sorted(
        (int(net.network_address), int(net.broadcast_address))
        for net in avoided
        if net.version == family
    )
    for base, size in _pools(pools, family, node):
        step = 1 << (base.max_prefixlen - size)
        number, last = int(base.network_address), int(base.broadcast_address)
        while number + step - 1 <= last:
            clash = next(
                (end for first, end in busy if first < number + step and number <= end), None
            )
            if clash is None:
                # Back to a network by its numbers: an int alone would be read as IPv4.
                first = base.network_address + (number - int(base.network_address))
                return ipaddress.ip_network(f"{first}/{size}")
            # On to the first subnet behind what is in the way.
            number = max(number, clash + 1 + (-(clash + 1)) % step)
    raise InvalidParameter("all predefined address pools have been fully subnetted")


def _pools(text: str, family: int, node: str) -> Iterator[tuple[Subnet, int]]:
    found = False
    for part in filter(None, text.split(",")):
        base, _, size = part.strip().rpartition(":")
        network = ipaddress.ip_network(base)
        if network.version == family:
            found = True
            yield network, int(size)
    if family == 6 and not found:
        # A unique local prefix (RFC 4193) of this host's own.
        prefix = b"\xfd" + hashlib.sha256(f"mooring {node}".encode()).digest()[:5]
        address = ipaddress.IPv6Address(prefix + bytes(10))
        yield ipaddress.IPv6Network(f"{address}/48"), 64


def _with_gateway(pool: IpamPool) -> IpamPool:
    if pool.gateway:
        return pool
    subnet = ipaddress.ip_network(pool.subnet)
    aux = {ipaddress.ip_address(text) for text in (pool.aux_addresses or {}).values()}
    first = int(subnet.network_address) + 1
    while (address := subnet.network_address + (first - int(subnet.network_address))) in aux:
        first += 1
    return pool.model_copy(update={"gateway": str(address)})


def _check_name(request: CreateNetwork) -> None:
    if not request.name.strip():
        raise InvalidParameter("invalid network name: name is empty")
    if len(request.name) > 255 or "\0" in request.name:
        raise InvalidParameter("invalid network name: it is too long or has a NUL byte")
    if request.name in (*PREDEFINED, "default"):
        raise Forbidden(f"operation is not permitted on predefined {request.name} network ")


def _check_driver(driver: str, request: CreateNetwork) -> None:
    if request.scope not in ("", "local"):
        raise Forbidden(f"cannot create a {request.scope} scoped network when swarm is not active")
    match driver:
        case "bridge" | "macvlan" | "ipvlan":
            return
        case "host" | "null":
            raise Forbidden(f'only one instance of "{driver}" network is allowed')
        case "overlay":
            raise Unavailable(
                'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" '
                "to connect this node to swarm and try again."
            )
    raise NotFound(
        f'could not find plugin {driver} in v1 plugin registry: plugin "{driver}" not found'
    )


def _family(request: CreateNetwork, family: int, asked: bool | None, *, default: bool) -> bool:
    if asked is not None:
        return asked
    text = request.options.get(f"{_PREFIX}enable_ipv{family}", "")
    return text in _TRUE if text else default


def _check_options(driver: str, options: dict[str, str], *, internal: bool) -> None:
    for name, value in options.items():
        if name == f"{_PREFIX}driver.mtu":
            _check_mtu(name, value)
        elif name.removeprefix(_PREFIX) in ("enable_ipv4", "enable_ipv6"):
            _check_boolean(name, value)
        elif driver == "bridge":
            _check_bridge_option(name, value)
        else:
            _check_vlan_option(driver, name, value)
    for family in (4, 6):
        name = f"{_PREFIX}bridge.gateway_mode_ipv{family}"
        if options.get(name) == "isolated" and not internal:
            raise InvalidParameter(
                "gateway mode 'isolated' can only be used for an internal network"
            )
    if options.get(f"{_PREFIX}bridge.default_bridge", "") in _TRUE:
        raise Forbidden("only one default bridge network is allowed")


def _check_bridge_option(name: str, value: str) -> None:
    short = name.removeprefix(_PREFIX)
    if short in _BOOLEANS:
        _check_boolean(name, value)
    elif short == "bridge.name":
        if not _LINK_NAME.match(value) or value in (".", "..", "lo"):
            raise InvalidParameter(f"invalid interface name: {value!r}")
    elif short == "bridge.host_binding_ipv4":
        try:
            ipaddress.IPv4Address(value)
        except ValueError:
            raise InvalidParameter(f"failed to parse {name} value: {value} (nil ip)") from None
    elif short == "container_iface_prefix":
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,11}", value):
            raise InvalidParameter(f"invalid interface prefix: {value!r}")
    elif short in ("bridge.gateway_mode_ipv4", "bridge.gateway_mode_ipv6"):
        if value in ("routed", "nat-unprotected"):
            raise NotSupported(f"network option {name}={value} is not supported yet")
        if value not in ("", "nat", "isolated"):
            raise InvalidParameter(f"unknown gateway mode {value}")
    else:
        raise NotSupported(f"network option {name} is not supported")


def _check_vlan_option(driver: str, name: str, value: str) -> None:
    if name == "parent":
        base, dot, vlan = value.rpartition(".")
        if not _LINK_NAME.match(value):
            raise InvalidParameter(f"invalid parent interface name: {value!r}")
        if dot and base and vlan.isdecimal() and not 1 <= int(vlan) <= 4094:
            raise InvalidParameter(f"vlan id must be between 1-4094, received: {vlan}")
    elif name == f"{driver}_mode":
        modes = _MACVLAN_MODES if driver == "macvlan" else _IPVLAN_MODES
        if value not in ("", *modes):
            default = "bridge" if driver == "macvlan" else "l2"
            raise InvalidParameter(
                f"requested {driver} mode '{value}' is not valid, '{default}' mode is the "
                f"{driver} driver default"
            )
    elif name == "ipvlan_flag" and driver == "ipvlan":
        if value not in ("", *_IPVLAN_FLAGS):
            raise InvalidParameter(
                f"requested ipvlan flag '{value}' is not valid, 'bridge' flag is the ipvlan "
                "driver default"
            )
    else:
        raise NotSupported(f"network option {name} is not supported by the driver {driver}")


def _check_mtu(name: str, value: str) -> None:
    if not value.isascii() or not value.lstrip("-").isdecimal():
        raise InvalidParameter(
            f'failed to parse {name} value: {value} (strconv.Atoi: parsing "{value}": '
            "invalid syntax)"
        )
    if not 68 <= int(value) <= 65535 and int(value):
        raise InvalidParameter(f"invalid MTU number: {value}")


def _check_boolean(name: str, value: str) -> None:
    if value not in _TRUE | _FALSE:
        raise InvalidParameter(
            f'failed to parse {name} value: {value} (strconv.ParseBool: parsing "{value}": '
            "invalid syntax)"
        )


def _interface(driver: str, options: dict[str, str], network_id: str) -> str:
    if driver == "bridge":
        return options.get(f"{_PREFIX}bridge.name") or f"br-{network_id[:12]}"
    return options.get("parent") or f"dm-{network_id[:12]}"


def _overlap(one: Subnet, other: Subnet) -> bool:
    return (
        one.version == other.version
        and int(one.network_address) <= int(other.broadcast_address)
        and int(other.network_address) <= int(one.broadcast_address)
    )

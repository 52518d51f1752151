"""Pure: what an endpoint may ask for, by itself and on a network of a kind."""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import re
from collections.abc import Mapping

from .errors import InvalidParameter, NotSupported
from .models.container import ContainerConfig, HostConfig
from .models.network import EndpointSettings, NetworkRecord, NetworkState

PREDEFINED = ("bridge", "host", "none")
_MAC = re.compile(r"(?:[0-9a-f]{2}[:-]){5}[0-9a-f]{2}\Z", re.IGNORECASE)
_SYSCTLS = "com.docker.network.endpoint.sysctls"
_INTERFACE = "com.docker.network.endpoint.ifname"
# The docker CLI writes options in small letters.
_SYSCTL = re.compile(r"net\.(ipv4|ipv6|mpls)\.(conf|neigh)\.(?:IFNAME|ifname)\.[a-z0-9_]+\Z")


@functools.cache
def predefined_id(name: str) -> str:
    """The id of a predefined network, the same on every host; empty for any other."""
    if name not in PREDEFINED:
        return ""
    return hashlib.sha256(f"mooring predefined network {name}".encode()).hexdigest()


def mode_network(mode: str) -> str:
    """The network that a NetworkMode names: empty for `container:…`, bridge for the default."""
    if mode in ("", "default"):
        return "bridge"
    return "" if mode.startswith("container:") else mode


def check(
    config: ContainerConfig, host: HostConfig, networking: Mapping[str, EndpointSettings]
) -> None:
    """InvalidParameter for endpoints that no network could give."""
    if config.mac_address:
        check_mac(config.mac_address)
    for link in host.links or []:
        parse_link(link)
    mode = host.network_mode
    for name, settings in networking.items():
        check_settings(settings)
        if name == "default":
            name = "bridge"
        if name in PREDEFINED:
            check_predefined(settings)
    if mode in ("host", "none") or mode.startswith("container:"):
        others = [name for name in networking if name not in (mode, "default")]
        if mode == "host" and others:
            raise InvalidParameter(
                "conflicting options: cannot attach both user-defined and non-user-defined "
                "network-modes"
            )
        if mode.startswith("container:") and others:
            raise InvalidParameter(
                "container sharing network namespace with another container or host cannot be "
                "connected to any other network"
            )
        if mode == "none" and others:
            raise InvalidParameter(
                "container cannot be connected to multiple networks with one of the networks in "
                "private (none) mode"
            )


def check_settings(settings: EndpointSettings) -> None:
    """What is wrong whatever the network is; InvalidParameter, NotSupported."""
    wanted = settings.ipam_config
    if wanted is not None:
        for family, text in ((4, wanted.ipv4_address), (6, wanted.ipv6_address)):
            if text and not _is_address(text, family):
                raise InvalidParameter(f"invalid IPv{family} address: {text}")
        if wanted.link_local_ips:
            raise NotSupported("endpoint option LinkLocalIPs is not supported yet")
    if settings.mac_address:
        check_mac(settings.mac_address)
    for link in settings.links or []:
        parse_link(link)
    for name, value in (settings.driver_opts or {}).items():
        if name == _SYSCTLS:
            sysctls(value)
        elif name == _INTERFACE:
            if not re.fullmatch(r"[^\s/:]{1,15}", value) or value in (".", "..", "lo"):
                raise InvalidParameter(f"invalid interface name: {value!r}")
        else:
            raise NotSupported(f"endpoint option {name} is not supported")


def check_predefined(settings: EndpointSettings) -> None:
    """What the networks that always exist do not give."""
    wanted = settings.ipam_config
    if wanted is not None and (wanted.ipv4_address or wanted.ipv6_address):
        raise InvalidParameter(
            "invalid endpoint settings: user specified IP address is supported on user defined"
            " networks only"
        )
    if settings.links:
        raise InvalidParameter(
            "invalid endpoint settings: links of an endpoint are only supported for user-defined"
            " networks"
        )
    if settings.aliases:
        raise InvalidParameter(
            "invalid endpoint settings: network-scoped aliases are only supported for user-defined"
            " networks"
        )


def check_on(settings: EndpointSettings, network: NetworkRecord) -> None:
    """What a network of the user does not give; InvalidParameter."""
    wanted = settings.ipam_config
    if wanted is None:
        return
    for text, enabled in (
        (wanted.ipv4_address, network.enable_ipv4),
        (wanted.ipv6_address, network.enable_ipv6),
    ):
        if not text:
            continue
        address = ipaddress.ip_address(text)
        if not network.configured:
            raise InvalidParameter(
                "invalid endpoint settings: user specified IP address is supported only when "
                "connecting to networks with user configured subnets"
            )
        if not enabled:
            raise InvalidParameter(
                f"invalid endpoint settings: IPv{address.version} is not enabled for network "
                f"{network.name}"
            )
        subnets = [ipaddress.ip_network(pool.subnet) for pool in network.ipam if pool.subnet]
        if not any(address in subnet for subnet in subnets):
            raise InvalidParameter(
                f"invalid endpoint settings: no configured subnet or ip-range contain the IP "
                f"address {text}"
            )


def check_mac(text: str) -> None:
    """InvalidParameter for what is no unicast MAC address."""
    if not _MAC.match(text):
        raise InvalidParameter(f"invalid MAC address: {text}")
    if int(text[:2], 16) & 1:
        raise InvalidParameter(f"invalid MAC address: {text} is a multicast address")


def parse_link(text: str) -> tuple[str, str]:
    """(container, alias) of `container` or `container:alias`."""
    name, _, alias = text.removeprefix("/").partition(":")
    # Inspect shows them as /target:/me/alias, and clients send back what they read.
    alias = alias.rpartition("/")[2] or name
    if not name or ":" in alias:
        raise InvalidParameter(f"bad format for links: {text}")
    return name, alias


def sysctls(text: str) -> dict[str, str]:
    """`net.ipv4.conf.IFNAME.x=1,…` of an endpoint, by key."""
    found: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not _SYSCTL.match(key) or "/" in key or "\n" in value:
            raise InvalidParameter(f"invalid sysctl of an endpoint: {part!r}")
        found[key.replace(".ifname.", ".IFNAME.")] = value
    return found


def endpoint_sysctls(settings: EndpointSettings) -> dict[str, str]:
    """The sysctls asked for with DriverOpts."""
    return sysctls((settings.driver_opts or {}).get(_SYSCTLS, ""))


def interface_name(settings: EndpointSettings) -> str:
    """The name asked for with DriverOpts; empty for the next ethN."""
    return (settings.driver_opts or {}).get(_INTERFACE, "")


def known_as(state: NetworkState, name: str) -> NetworkState:
    """The state of a container that is found by this name, which comes first among its names."""
    points = {}
    for network, point in state.endpoints.items():
        names = [name, *point.dns_names[1:]] if point.dns_names else []
        points[network] = point.model_copy(update={"dns_names": list(dict.fromkeys(names))})
    return state.model_copy(update={"endpoints": points})


def _is_address(text: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(text).version == version
    except ValueError:
        return False

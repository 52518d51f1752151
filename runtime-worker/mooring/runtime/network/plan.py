"""Pure: what a run's endpoints are made of, which way its default routes go, how it is called."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from mooring.kit import endpoints
from mooring.kit.errors import EngineError
from mooring.kit.models.container import ContainerRecord
from mooring.kit.models.network import Endpoint, EndpointSettings, NetworkRecord, NetworkState

ICC = "com.docker.network.bridge.enable_icc"
MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
HOST_BINDING = "com.docker.network.bridge.host_binding_ipv4"
INHIBIT = "com.docker.network.bridge.inhibit_ipv4"
MTU = "com.docker.network.driver.mtu"
PREFIX = "com.docker.network.container_iface_prefix"
MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}
IPVLAN_FLAGS = {"bridge": 0, "private": 1, "vepa": 2}


def wishes(record: ContainerRecord) -> dict[str, EndpointSettings]:
    """The networks that a container is to be on, in the order of its interfaces.

    The one that its mode names is among them until it is disconnected from that.
    """
    first = endpoints.mode_network(record.host_config.network_mode)
    found = dict(record.networking)
    if not found and not record.disconnected:
        found[first] = EndpointSettings()
    if record.config.mac_address and first in found and not found[first].mac_address:
        found[first] = found[first].model_copy(update={"mac_address": record.config.mac_address})
    return found


def is_plain(wanted: Mapping[str, EndpointSettings]) -> bool:
    """Whether a sandbox of the default bridge's pool is all that is asked for."""
    return list(wanted) == ["bridge"] and not (
        wanted["bridge"].mac_address or wanted["bridge"].driver_opts
    )


def truth(options: Mapping[str, str], name: str, default: bool) -> bool:
    """A boolean option, which was checked when the network was created."""
    text = options.get(name, "")
    return text in ("1", "t", "T", "TRUE", "true", "True") if text else default


def mac_for(address: str) -> str:
    """The MAC address that goes with an IPv4 address: neighbours need not learn another one."""
    return "02:42:" + ":".join(f"{byte:02x}" for byte in ipaddress.IPv4Address(address).packed)


def dns_names(name: str, id_: str, hostname: str, settings: EndpointSettings) -> list[str]:
    """By which names a container is found on a network of the user's."""
    names = [name, *(settings.aliases or ()), id_[:12]]
    if hostname:
        names.append(hostname)
    return list(dict.fromkeys(names))


def interface_name(
    network: NetworkRecord, settings: EndpointSettings, used: Collection[str]
) -> str:
    """The name asked for, or the next free one: eth0, eth1…"""
    if chosen := endpoints.interface_name(settings):
        if chosen in used:
            raise EngineError(f"interface name {chosen} is already in use in this container")
        return chosen
    prefix = network.options.get(PREFIX) or "eth"
    return next(name for n in range(len(used) + 1) if (name := f"{prefix}{n}") not in used)


def routed(state: NetworkState) -> NetworkState:
    """The state with the networks chosen that the default routes lead through.

    The one with the highest priority, and of several the first by name, as in Docker.
    """
    four = [name for name, point in state.endpoints.items() if point.gateway]
    six = [name for name, point in state.endpoints.items() if point.ipv6_gateway]

    def rank(name: str) -> tuple[int, str]:
        return -state.endpoints[name].gw_priority, name

    return state.model_copy(
        update={
            "gateway4": min(four, key=rank, default=""),
            "gateway6": min(six, key=rank, default=""),
        }
    )


def gateways(state: NetworkState) -> dict[str, list[str]]:
    """The default routes of a state that `routed` has decided, as wiring.py takes them."""
    found: dict[str, list[str]] = {}
    if state.gateway4:
        point = state.endpoints[state.gateway4]
        found["4"] = [_hop(point.gateway), point.interface]
    if state.gateway6:
        point = state.endpoints[state.gateway6]
        found["6"] = [_hop(point.ipv6_gateway), point.interface]
    return found


def _hop(gateway: str) -> str:
    """Of an interface without neighbours (ipvlan L3) the gateway is the interface itself."""
    return "" if ipaddress.ip_address(gateway).is_unspecified else gateway


def interface(
    network: NetworkRecord, settings: EndpointSettings, endpoint: Endpoint, parent: int, mtu: int
) -> dict[str, Any]:
    """What wiring.py is asked for; parent is the index of the bridge or of the parent link."""
    addresses = []
    if endpoint.ip_address:
        addresses.append([endpoint.ip_address, endpoint.ip_prefix_len])
    if endpoint.global_ipv6_address:
        addresses.append([endpoint.global_ipv6_address, endpoint.global_ipv6_prefix_len])
    sysctls = endpoints.endpoint_sysctls(settings)
    wanted: dict[str, Any] = {
        "kind": network.driver,
        "name": endpoint.interface,
        "addresses": addresses,
        "mac": endpoint.mac_address,
        "mtu": mtu,
        "sysctls": {key.replace(".", "/"): value for key, value in sysctls.items()},
    }
    match network.driver:
        case "bridge":
            wanted |= {"link": endpoint.link, "master": parent}
            wanted["isolated"] = not truth(network.options, ICC, True)
        case "macvlan":
            mode = network.options.get("macvlan_mode") or "bridge"
            wanted |= {"parent": parent, "mode": MACVLAN_MODES[mode]}
        case "ipvlan":
            wanted |= {
                "parent": parent,
                "mode": IPVLAN_MODES[network.options.get("ipvlan_mode") or "l2"],
                "flags": IPVLAN_FLAGS[network.options.get("ipvlan_flag") or "bridge"],
            }
    return wanted


def addresses(state: NetworkState) -> tuple[str, ...]:
    """Every address of a container, in the order of its interfaces."""
    found = []
    for point in state.endpoints.values():
        found += [text for text in (point.ip_address, point.global_ipv6_address) if text]
    return tuple(found)


def ports_of(states: Iterable[NetworkState], network_id: str) -> list[str]:
    """The host's ends of the veths that are on a network."""
    return [
        point.link
        for state in states
        for point in state.endpoints.values()
        if point.network_id == network_id and point.link
    ]

"""The three networks that always exist, as Docker describes them."""

from __future__ import annotations

import hashlib
import ipaddress
from typing import Any

from mooring.kit.models.container import ContainerRecord

from .texts import ZERO_TIME

DRIVERS = {"bridge": "bridge", "host": "host", "none": "null"}
"""Of the predefined networks, by name."""


def network_id(name: str) -> str:
    """The id of a predefined network, the same on every host; empty for any other."""
    if name not in DRIVERS:
        return ""
    return hashlib.sha256(f"mooring predefined network {name}".encode()).hexdigest()


def network(name: str, containers: list[ContainerRecord], subnet: str) -> dict[str, Any]:
    """A predefined network with the containers that are on it now."""
    connected: dict[str, Any] = {}
    gateway = ""
    for record in containers:
        endpoint = record.network.endpoints.get(name)
        if endpoint is None:
            continue
        address = f"{endpoint.ip_address}/{endpoint.ip_prefix_len}" if endpoint.ip_address else ""
        connected[record.id] = {
            "Name": record.name,
            "EndpointID": endpoint.endpoint_id,
            "MacAddress": endpoint.mac_address,
            "IPv4Address": address,
            "IPv6Address": "",
        }
        if address and endpoint.gateway:
            gateway = endpoint.gateway
            subnet = str(ipaddress.ip_interface(address).network)
    return {
        "Name": name,
        "Id": network_id(name),
        "Created": ZERO_TIME,
        "Scope": "local",
        "Driver": DRIVERS[name],
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {
            "Driver": "default",
            "Options": None,
            "Config": _ipam(name, subnet, gateway),
        },
        "Internal": False,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": connected,
        "Options": {"com.docker.network.bridge.default_bridge": "true"} if name == "bridge" else {},
        "Labels": {},
    }


def _ipam(name: str, subnet: str, gateway: str) -> list[dict[str, str]]:
    if name != "bridge" or not subnet:
        return []
    config = {"Subnet": subnet}
    if gateway:
        config["Gateway"] = gateway
    return [config]

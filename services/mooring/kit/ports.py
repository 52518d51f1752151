"""Pure: which ports of a container are to be reachable on its host, as the user said it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace

from .errors import InvalidParameter
from .models.container import ContainerConfig, HostConfig

PROTOCOLS = ("tcp", "udp", "sctp")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One port to publish. first..last: the host ports to choose from, 0 for any free one."""

    protocol: str
    port: int
    host_ip: str = ""
    """Empty: every address of the host, of both families."""
    first: int = 0
    last: int = 0

    @property
    def name(self) -> str:
        """`80/tcp`."""
        return f"{self.port}/{self.protocol}"

    def at(self, default: str) -> Wanted:
        """With a network's own address (`host_binding_ipv4`) where the user named none.

        0.0.0.0 is every address of both families, as it is where a network says nothing.
        """
        if self.host_ip or default in ("", "0.0.0.0"):
            return self
        return replace(self, host_ip=default)


def wanted(config: ContainerConfig, host: HostConfig) -> list[Wanted]:
    """What PortBindings and PublishAllPorts ask for; InvalidParameter in Docker's words."""
    found: list[Wanted] = []
    for text, bindings in (host.port_bindings or {}).items():
        port, protocol = container_port(text)
        # An empty list is what clients send for "any port of the host".
        for binding in bindings or []:
            first, last = host_ports(binding.host_port)
            found.append(Wanted(protocol, port, host_address(binding.host_ip), first, last))
        if not bindings:
            found.append(Wanted(protocol, port))
    if host.publish_all_ports:
        bound = {item.name for item in found}
        for port, protocol in exposed(config):
            if f"{port}/{protocol}" not in bound:
                found.append(Wanted(protocol, port))
    return sorted(found, key=lambda item: (item.protocol, item.port, item.first))


def exposed(config: ContainerConfig) -> list[tuple[int, str]]:
    """(port, protocol) of everything in ExposedPorts, ranges written out."""
    found = []
    for text in config.exposed_ports or {}:
        ports, protocol = _protocol(text)
        first, last = _range(ports, text)
        found += [(port, protocol) for port in range(first, last + 1)]
    return sorted(found)


def container_port(text: str) -> tuple[int, str]:
    """(port, protocol) of `80`, `80/tcp`."""
    ports, protocol = _protocol(text)
    return _port(ports, text), protocol


def host_ports(text: str) -> tuple[int, int]:
    """First and last of `8080`, `8000-8010`; (0, 0) for any."""
    if text in ("", "0"):
        return 0, 0
    return _range(text, text)


def host_address(text: str) -> str:
    """The address as the kernel writes it; empty for every address of both families."""
    if not text:
        return ""
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        raise InvalidParameter(f"invalid IP address: {text}") from None


def _protocol(text: str) -> tuple[str, str]:
    ports, _, protocol = text.partition("/")
    protocol = (protocol or "tcp").lower()
    if protocol not in PROTOCOLS:
        raise InvalidParameter(f'invalid port specification: "{text}"')
    return ports, protocol


def _range(text: str, whole: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    first = _port(low, whole)
    last = _port(high, whole) if dash else first
    if last < first:
        raise InvalidParameter(f'invalid port specification: "{whole}"')
    return first, last


def _port(text: str, whole: str) -> int:
    if text.isascii() and text.isdecimal() and 0 < int(text) <= 65535:
        return int(text)
    raise InvalidParameter(f'invalid port specification: "{whole}"')

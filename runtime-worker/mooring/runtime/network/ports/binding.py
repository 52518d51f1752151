"""The host's sockets of published ports: made here, so that a port is taken before it is used."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass

from mooring.kit.errors import EngineError

BACKLOG = 4096


class PortInUse(EngineError):
    """Somebody has this port; the next one of a range may be free."""


@dataclass(slots=True)
class Bound:
    """One published port. socket: None for SCTP on a kernel without it, and when handed over."""

    protocol: str
    host_ip: str
    """Empty: every address of both families."""
    port: int
    target: int
    """The container's port."""
    socket: socket.socket | None = None

    def addresses(self) -> list[str]:
        """What inspect shows."""
        if self.host_ip:
            return [self.host_ip]
        return ["0.0.0.0", "::"] if has_ipv6() else ["0.0.0.0"]

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


def has_ipv6() -> bool:
    """Whether this host has IPv6 at all."""
    try:
        with open("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "rb", 0) as file:
            return file.read(1) == b"0"
    except OSError:
        return False


def bind(protocol: str, host_ip: str, port: int) -> socket.socket | None:
    """A listening (or UDP) socket that has the port; PortInUse, EngineError in Docker's words.

    One socket takes a port of every address, of both families. None: the kernel has no SCTP
    sockets, and so nobody else has one either.
    """
    both = not host_ip and has_ipv6()
    address = host_ip or ("::" if both else "0.0.0.0")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kinds = {
        "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
        "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
        "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
    }
    try:
        made = socket.socket(family, *kinds[protocol])
    except OSError as exc:
        if protocol == "sctp" and exc.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
            return None
        raise
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)
        if protocol != "udp":
            # Connections of an earlier holder that are in TIME_WAIT are in nobody's way.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        if protocol != "udp":
            made.listen(BACKLOG)
    except OSError as exc:
        made.close()
        kind = PortInUse if exc.errno == errno.EADDRINUSE else EngineError
        raise kind(_refusal(protocol, host_ip, port, exc.errno or 0)) from exc
    made.setblocking(False)
    return made


def _refusal(protocol: str, host_ip: str, port: int, number: int) -> str:
    version = 6 if ":" in host_ip else 4
    shown = f"[{host_ip}]" if version == 6 else host_ip or "0.0.0.0"
    return f"listen {protocol}{version} {shown}:{port}: bind: {os.strerror(number).lower()}"


def overlap(one: str, other: str) -> bool:
    """Whether two host addresses stand for a common one."""
    if one == other or not one or not other:
        return True
    if (":" in one) != (":" in other):
        return False
    return any(address in ("0.0.0.0", "::") for address in (one, other))


def ephemeral() -> tuple[int, int]:
    """The host's ports for nobody in particular."""
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
            first, last = file.read().split()
        return int(first), int(last)
    except (OSError, ValueError):
        return 32768, 60999

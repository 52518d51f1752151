"""Connections that the kernel remembers: those of UDP go on to where they once led, for ever.

Standard library only. Numbers are from linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from ipaddress import ip_address

from .nft import NETLINK_NETFILTER, PROTOCOLS, attribute

logger = logging.getLogger(__name__)

_DELETE = 1 << 8 | 2
_REQUEST_ACK = 0x1 | 0x4
_NESTED = 0x8000
_TUPLE_ORIG, _TUPLE_REPLY, _FILTER = 1, 2, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_PROTO_NUM, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 2, 3
_FILTER_ORIG, _FILTER_REPLY = 1, 2
_F_IP_SRC, _F_PROTO_NUM, _F_SRC_PORT, _F_DST_PORT = 1 << 0, 1 << 3, 1 << 4, 1 << 5


def forget_flows_to(port: int, *, ipv6: bool = False, protocol: str = "udp") -> None:
    """Whatever was sent to this port of the host: once it is published it leads elsewhere."""
    proto = _proto(protocol, attribute(_PROTO_DST_PORT, struct.pack(">H", port)))
    _flush(_TUPLE_ORIG, proto, _F_PROTO_NUM | _F_DST_PORT, ipv6=ipv6)


def forget_flows_of(address: str, port: int, protocol: str = "udp") -> None:
    """Whatever is answered from this port of a container that is going."""
    packed = ip_address(address).packed
    ipv6 = len(packed) == 16
    source = attribute(3 if ipv6 else 1, packed)
    body = attribute(_TUPLE_IP | _NESTED, source)
    body += _proto(protocol, attribute(_PROTO_SRC_PORT, struct.pack(">H", port)))
    _flush(_TUPLE_REPLY, body, _F_IP_SRC | _F_PROTO_NUM | _F_SRC_PORT, ipv6=ipv6)


def _proto(protocol: str, port: bytes) -> bytes:
    number = attribute(_PROTO_NUM, bytes([PROTOCOLS[protocol]]))
    return attribute(_TUPLE_PROTO | _NESTED, number + port)


def _flush(side: int, tuple_: bytes, flags: int, *, ipv6: bool) -> None:
    kind = _FILTER_ORIG if side == _TUPLE_ORIG else _FILTER_REPLY
    body = attribute(side | _NESTED, tuple_)
    body += attribute(_FILTER | _NESTED, attribute(kind, struct.pack("=I", flags)))
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    # Version 1: else the family is not looked at.
    head = struct.pack(">BBH", family, 1, 0)
    packet = struct.pack("=IHHII", 16 + len(head) + len(body), _DELETE, _REQUEST_ACK, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.send(packet + head + body)
        error = -struct.unpack_from("=i", sock.recv(65536), 16)[0]
    if error and error != 2:
        # Kernels before 5.8 cannot choose; the flows end by their time-out there.
        logger.warning("cannot delete old connections: %s", os.strerror(error))

"""In a container's namespace: the server's sockets, and the rule that leads port 53 to them.

The sockets are not at port 53 itself: a container may be a name server that binds 0.0.0.0:53.
Numbers are from linux/netfilter/nf_tables.h. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterable

from mooring.runtime.network.nft import NETLINK_NETFILTER, attribute

ADDRESS = "127.0.0.11"
TABLE = b"mooring-dns"
CLONE_NEWNET = 0x40000000
SIOCGSKNS = 0x894C
"""ioctl: the network namespace of a socket, as a descriptor."""
_NESTED = 0x8000
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = 0, 2, 3, 6
_OUTPUT, _PRIORITY = 3, -100
_libc = ctypes.CDLL(None, use_errno=True)


def enter(namespace: int) -> None:
    """setns(2): this process has one thread, and goes home after every visit."""
    if _libc.setns(namespace, CLONE_NEWNET) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def open_here() -> list[socket.socket]:
    """A UDP and a listening TCP socket in this namespace, with port 53 of ADDRESS led to them."""
    made: list[socket.socket] = []
    try:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            sock = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
            made.append(sock)
            sock.bind((ADDRESS, 0))
            if kind == socket.SOCK_STREAM:
                sock.listen(128)
        _lead([(sock.getsockname()[1], sock.type) for sock in made])
    except BaseException:
        for sock in made:
            sock.close()
        raise
    return made


def _lead(ports: Iterable[tuple[int, int]]) -> None:
    name = attribute(1, TABLE + b"\0")
    hook = attribute(1, _u32(_OUTPUT)) + attribute(2, struct.pack(">i", _PRIORITY))
    chain = name + attribute(3, b"output\0") + attribute(4 | _NESTED, hook)
    chain += attribute(7, b"nat\0")
    # Made anew: an attempt before this one may have been broken off.
    messages = [(_NEWTABLE, name), (_DELTABLE, name), (_NEWTABLE, name), (_NEWCHAIN, chain)]
    for port, kind in ports:
        protocol = 17 if kind == socket.SOCK_DGRAM else 6
        body = name + attribute(2, b"output\0") + attribute(4 | _NESTED, _rule(protocol, port))
        messages.append((_NEWRULE, body))
    packet = _message(16, 0, b"", 1, head=struct.pack(">BBH", 0, 0, 10))
    for sequence, (kind, body) in enumerate(messages, 2):
        flags = 0x400 | (0x800 if kind == _NEWRULE else 0)
        flags |= 0x4 if sequence == len(messages) + 1 else 0
        packet += _message(10 << 8 | kind, flags, body, sequence)
    last = len(messages) + 2
    packet += _message(17, 0, b"", last, head=struct.pack(">BBH", 0, 0, 10))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.bind((0, 0))
        sock.send(packet)
        data = sock.recv(1 << 16)
    error = -struct.unpack_from("=i", data, 16)[0]
    if error:
        raise OSError(error, f"cannot lead port 53 to the name server: {os.strerror(error)}")


def _message(kind: int, flags: int, body: bytes, sequence: int, head: bytes = b"") -> bytes:
    head = head or struct.pack(">BBH", socket.AF_INET, 0, 0)
    return struct.pack("=IHHII", 20 + len(body), kind, flags | 1, sequence, 0) + head + body


def _rule(protocol: int, port: int) -> bytes:
    """ip daddr ADDRESS, this protocol, dport 53: dnat to ADDRESS and our port."""
    address = socket.inet_aton(ADDRESS)
    return b"".join(
        (
            _expression(b"meta", (1, _u32(1)), (2, _u32(16))),
            _equals(bytes([protocol])),
            _expression(b"payload", (1, _u32(1)), (2, _u32(1)), (3, _u32(16)), (4, _u32(4))),
            _equals(address),
            _expression(b"payload", (1, _u32(1)), (2, _u32(2)), (3, _u32(2)), (4, _u32(2))),
            _equals(struct.pack(">H", 53)),
            _expression(b"immediate", (1, _u32(1)), (2 | _NESTED, attribute(1, address))),
            _expression(
                b"immediate", (1, _u32(2)), (2 | _NESTED, attribute(1, struct.pack(">H", port)))
            ),
            _expression(
                b"nat",
                (1, _u32(1)),
                (2, _u32(socket.AF_INET)),
                (3, _u32(1)),
                (5, _u32(2)),
            ),
        )
    )


def _equals(value: bytes) -> bytes:
    data = attribute(1, value)
    return _expression(b"cmp", (1, _u32(1)), (2, _u32(0)), (3 | _NESTED, data))


def _expression(name: bytes, *fields: tuple[int, bytes]) -> bytes:
    data = b"".join(attribute(kind, value) for kind, value in fields)
    body = attribute(1, name + b"\0") + attribute(2 | _NESTED, data)
    return attribute(1 | _NESTED, body)


def _u32(value: int) -> bytes:
    return struct.pack(">I", value)

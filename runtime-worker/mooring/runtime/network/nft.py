"""A few nf_tables messages: elements of sets and maps, changed in one atomic batch.

The rules themselves are one text for nft(8), written once (firewall.py); what changes with every
container is an element, and an element costs 0.05 ms here instead of a process. Standard library
only. Numbers are from linux/netfilter/nfnetlink.h and linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

NETLINK_NETFILTER = 12
NFPROTO_INET = 1
_SUBSYSTEM = 10
_BATCH_BEGIN, _BATCH_END = 16, 17
_GETRULE, _NEWSETELEM, _GETSETELEM, _DELSETELEM = 7, 12, 13, 14
_GETGEN, _GEN_ID = 16, 1
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ELEM = 1, 2, 3, 1
_ELEM_KEY, _ELEM_DATA, _ELEM_FLAGS, _ELEM_KEY_END, _DATA_VALUE = 1, 2, 3, 10, 1
_INTERVAL_END = 1
_REQUEST, _ACK, _CREATE, _DUMP = 0x1, 0x4, 0x400, 0x300
_ERROR, _DONE = 2, 3
_NESTED = 0x8000
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_AT_ONCE = 500
"""Elements to a message: an attribute holds 64 KiB."""
_BUFFER = 4 << 20
_READINGS = 100
"""Of one set, at most: a rehash takes milliseconds, as long as a reading or two."""

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a set, or (data) of a map; end: the last key of a range, of two fields on."""

    set: str
    key: bytes
    data: bytes = b""
    end: bytes = b""
    flags: int = 0


def interface(name: str) -> bytes:
    """A field of type ifname."""
    return name.encode().ljust(16, b"\0")


def protocol_port(protocol: str, port: int) -> bytes:
    """Two fields: inet_proto . inet_service. Each takes a multiple of four bytes."""
    return struct.pack("=B3x", PROTOCOLS[protocol]) + struct.pack(">H2x", port)


def address_port(address: str, port: int) -> bytes:
    """Two fields: an address . inet_service."""
    return ip_address(address).packed + struct.pack(">H2x", port)


def link_subnet(name: str, link: str, network: IPv4Network | IPv6Network) -> Element:
    """An element of a set of type ifname . address with ranges."""
    first, last = network.network_address.packed, network.broadcast_address.packed
    return Element(name, interface(link) + first, end=interface(link) + last)


def subnet(name: str, network: IPv4Network | IPv6Network) -> list[Element]:
    """The two elements that a range is in a set of addresses."""
    elements = [Element(name, network.network_address.packed)]
    after = int(network.broadcast_address) + 1
    if after < 1 << network.max_prefixlen:
        key = after.to_bytes(network.max_prefixlen // 8, "big")
        elements.append(Element(name, key, flags=_INTERVAL_END))
    return elements


def attribute(kind: int, data: bytes) -> bytes:
    """One nlattr, padded to four bytes."""
    return _ATTRIBUTE.pack(4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _element(item: Element, *, full: bool) -> bytes:
    body = attribute(_ELEM_KEY | _NESTED, attribute(_DATA_VALUE, item.key))
    if item.end:
        body += attribute(_ELEM_KEY_END | _NESTED, attribute(_DATA_VALUE, item.end))
    if item.data and full:
        body += attribute(_ELEM_DATA | _NESTED, attribute(_DATA_VALUE, item.data))
    if item.flags:
        body += attribute(_ELEM_FLAGS, struct.pack(">I", item.flags))
    return attribute(_LIST_ELEM | _NESTED, body)


def _key_and_data(item: bytes) -> tuple[bytes, bytes]:
    parts = _attributes(item)
    data = _attributes(parts.get(_ELEM_DATA, b""))
    return _attributes(parts[_ELEM_KEY])[_DATA_VALUE], data.get(_DATA_VALUE, b"")


class Nft:
    """One table of family inet, over a socket of the namespace it was made in.

    Every method blocks for the time the kernel takes, tens of microseconds.
    """

    def __init__(self, table: str) -> None:
        self._table = table
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self._socket.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def change(self, add: Sequence[Element] = (), delete: Sequence[Element] = ()) -> None:
        """All of it or nothing, deletions first.

        OSError: ENOENT for a table, set or (delete) element that is not there, EEXIST for a key
        that has other data.
        """
        messages = [*self._lists(_DELSETELEM, 0, delete), *self._lists(_NEWSETELEM, _CREATE, add)]
        if not messages:
            return
        batch = self._message(_BATCH_BEGIN, 0, b"", subsystem=_SUBSYSTEM)
        for index, (kind, flags, body) in enumerate(messages):
            # All answers come after the commit: the last one's tells of all.
            flags |= _ACK if index == len(messages) - 1 else 0
            batch += self._message(_SUBSYSTEM << 8 | kind, flags, body)
        batch += self._message(_BATCH_END, 0, b"", subsystem=_SUBSYSTEM)
        self._socket.send(batch)
        self._answers(self._sequence - 1)

    def elements(self, name: str) -> dict[bytes, bytes]:
        """Key and data of every element of a set or map.

        OSError: ENOENT for a set that is not there, EAGAIN for one that is never at rest.
        """
        body = _text(_LIST_TABLE, self._table) + _text(_LIST_SET, name)
        for _ in range(_READINGS):
            items = [
                item
                for answer in self._dump(_GETSETELEM, body)
                for _, item in _nested(_attributes(answer).get(_LIST_ELEMENTS, b""))
            ]
            # A message of the answer begins at the number of elements that came before it. When
            # the kernel rehashes the set in between, some come twice, and as many not at all.
            if len(set(items)) == len(items):
                return dict(map(_key_and_data, items))
        raise BlockingIOError(errno.EAGAIN, f"nftables set {name} of {self._table} is not at rest")

    def rules(self) -> int:
        """How many rules the table has; 0 too if it is not there."""
        try:
            return sum(1 for _ in self._dump(_GETRULE, _text(1, self._table)))
        except FileNotFoundError:
            return 0

    def generation(self) -> int:
        """A number that every change of any table of this namespace makes another one."""
        sequence = self._sequence + 1
        self._socket.send(self._message(_SUBSYSTEM << 8 | _GETGEN, 0, b""))
        while True:
            for _, answered, body in _messages(self._socket.recv(_BUFFER)):
                if answered == sequence:
                    return int(struct.unpack(">I", _attributes(body[4:])[_GEN_ID])[0])

    def _lists(
        self, kind: int, flags: int, items: Sequence[Element]
    ) -> Iterator[tuple[int, int, bytes]]:
        by_set: dict[str, list[Element]] = {}
        for item in items:
            by_set.setdefault(item.set, []).append(item)
        for name, mine in by_set.items():
            for start in range(0, len(mine), _AT_ONCE):
                chosen = mine[start : start + _AT_ONCE]
                full = kind == _NEWSETELEM
                listed = b"".join(_element(item, full=full) for item in chosen)
                body = _text(_LIST_TABLE, self._table) + _text(_LIST_SET, name)
                yield kind, flags, body + attribute(_LIST_ELEMENTS | _NESTED, listed)

    def _message(self, kind: int, flags: int, body: bytes, subsystem: int = 0) -> bytes:
        self._sequence += 1
        family = 0 if subsystem else NFPROTO_INET
        head = struct.pack(">BBH", family, 0, subsystem)
        length = _HEADER.size + len(head) + len(body)
        return _HEADER.pack(length, kind, flags | _REQUEST, self._sequence, 0) + head + body

    def _answers(self, last: int) -> None:
        """Read until the acknowledgement of message `last`; raise what was refused first."""
        while True:
            for kind, sequence, body in _messages(self._socket.recv(_BUFFER)):
                if kind != _ERROR:
                    continue
                code = -struct.unpack_from("=i", body)[0]
                if code:
                    # What else there is to say of this batch is in the queue already.
                    self._drain()
                    raise OSError(code, f"nftables table {self._table}: {os.strerror(code)}")
                if sequence >= last:
                    return

    def _drain(self) -> None:
        while True:
            try:
                self._socket.recv(_BUFFER, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return

    def _dump(self, kind: int, body: bytes) -> Iterator[bytes]:
        self._socket.send(self._message(_SUBSYSTEM << 8 | kind, _DUMP, body))
        while True:
            for answer, _, data in _messages(self._socket.recv(_BUFFER)):
                if answer == _DONE:
                    return
                if answer == _ERROR:
                    code = -struct.unpack_from("=i", data)[0]
                    raise OSError(code, f"nftables table {self._table}: {os.strerror(code)}")
                yield data[4:]


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    while len(data) >= _HEADER.size:
        length, kind, _, sequence, _ = _HEADER.unpack_from(data)
        yield kind, sequence, data[_HEADER.size : length]
        data = data[(length + 3) & ~3 :]


def _nested(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind & ~_NESTED, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> dict[int, bytes]:
    return dict(_nested(data))

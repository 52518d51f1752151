"""Pure: the few parts of DNS messages that we read and write ourselves (RFC 1035)."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from dataclasses import dataclass

A, PTR, AAAA, OPT, ANY = 1, 12, 28, 41, 255
IN = 1
NOERROR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 2, 3, 4, 5
RESPONSE, TRUNCATED, WANTED, AVAILABLE = 0x8000, 0x0200, 0x0100, 0x0080
TTL = 600
"""Seconds, Docker's."""
PLAIN_LIMIT = 512
_HEADER = struct.Struct(">6H")
_RECORD = struct.Struct(">HHIH")


class NotAQuery(ValueError):
    """Not one question that we can read."""


@dataclass(frozen=True, slots=True)
class Query:
    """One question."""

    id: int
    flags: int
    name: str
    """Lower case, no dot at the end."""
    kind: int
    question: bytes
    """As it came: answers repeat it, letter for letter."""
    limit: int = PLAIN_LIMIT
    """Bytes that the asker takes over UDP."""


def parse(packet: bytes) -> Query:
    """NotAQuery for a response, another operation, or anything but one question of class IN."""
    try:
        id_, flags, questions, _, _, additional = _HEADER.unpack_from(packet)
        if flags & (RESPONSE | 0x7800) or questions != 1:
            raise NotAQuery
        at, labels = _HEADER.size, []
        while length := packet[at]:
            if length > 63 or at + 1 + length >= len(packet):
                raise NotAQuery
            labels.append(packet[at + 1 : at + 1 + length])
            at += 1 + length
        kind, class_ = struct.unpack_from(">HH", packet, at + 1)
    except (IndexError, struct.error):
        raise NotAQuery from None
    end = at + 5
    if class_ != IN or end - _HEADER.size > 259:
        raise NotAQuery
    name = b".".join(labels).decode("latin-1").lower()
    limit = PLAIN_LIMIT
    # EDNS: the root's name, type OPT, and where a class would be how much is taken.
    if additional and packet[end : end + 3] == b"\0\0\x29" and len(packet) >= end + 5:
        limit = max(limit, int.from_bytes(packet[end + 3 : end + 5], "big"))
    return Query(id_, flags, name, kind, packet[_HEADER.size : end], limit)


def same_question(query: Query, id_: int, packet: bytes) -> bool:
    """Whether a packet answers exactly this: anything else is somebody's lie."""
    if len(packet) < _HEADER.size:
        return False
    found, flags, questions = struct.unpack_from(">3H", packet)
    asked = packet[_HEADER.size : _HEADER.size + len(query.question)]
    return (
        found == id_
        and bool(flags & RESPONSE)
        and questions == 1
        and asked.lower() == query.question.lower()
    )


def code(packet: bytes) -> int:
    """The result of a response."""
    return packet[3] & 15


def with_id(packet: bytes, id_: int) -> bytes:
    return struct.pack(">H", id_) + packet[2:]


def answer(query: Query, records: Sequence[bytes], kind: int, limit: int = 65535) -> bytes:
    """Our own answer; an empty one says that the name exists, but nothing of this type."""
    flags = RESPONSE | AVAILABLE | (query.flags & WANTED)
    body = b"".join(b"\xc0\x0c" + _RECORD.pack(kind, IN, TTL, len(data)) + data for data in records)
    if _HEADER.size + len(query.question) + len(body) > limit:
        return _head(query, flags | TRUNCATED, 0) + query.question
    return _head(query, flags, len(records)) + query.question + body


def refusal(query: Query, result: int) -> bytes:
    """No answer, and why."""
    flags = RESPONSE | AVAILABLE | (query.flags & WANTED) | result
    return _head(query, flags, 0) + query.question


def _head(query: Query, flags: int, answers: int) -> bytes:
    return _HEADER.pack(query.id, flags, 1, answers, 0, 0)


def encode_name(name: str) -> bytes:
    """A name as labels."""
    labels = [label.encode("latin-1", "replace")[:63] for label in name.split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def address_of(name: str) -> str:
    """The address that a reverse name (`…in-addr.arpa`, `…ip6.arpa`) asks for; empty for none."""
    if name.endswith(".in-addr.arpa"):
        text = ".".join(reversed(name.removesuffix(".in-addr.arpa").split(".")))
    elif name.endswith(".ip6.arpa"):
        digits = "".join(reversed(name.removesuffix(".ip6.arpa").split(".")))
        if len(digits) != 32:
            return ""
        text = ":".join(digits[at : at + 4] for at in range(0, 32, 4))
    else:
        return ""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""

"""The head of an HTTP/1.1 request: parsed strictly, because what is guessed can be smuggled."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_HEAD = 64 * 1024
"""Bytes of request line and headers together."""

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*\Z")
_TARGET = re.compile(r"[\x21-\x7e\x80-\xff]+\Z")


class BadHead(Exception):
    """The bytes are no request that this server takes; status is what it answers."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


@dataclass(slots=True)
class Head:
    """A request before its body. Header names are lower case."""

    method: str
    target: str
    headers: dict[str, str]
    keep_alive: bool
    length: int
    """Bytes of the body; 0 if there is none or it is chunked."""
    chunked: bool
    is_old: bool
    """HTTP/1.0: its answers cannot be chunked."""

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for `100 Continue` before it sends the body."""
        return self.headers.get("expect", "").lower() == "100-continue"

    @property
    def has_body(self) -> bool:
        """Whether anything follows the head."""
        return self.chunked or self.length > 0


def parse(raw: bytes) -> Head:
    """The head in raw, which ends before its blank line; BadHead if it is malformed."""
    lines = raw.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3:
        raise BadHead("malformed request line")
    method, target, protocol = parts
    if not _NAME.match(method) or not _TARGET.match(target):
        raise BadHead("malformed request line")
    if protocol not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadHead(f"unsupported protocol {protocol[:20]!r}", 505)
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        # A space before the colon or a folded line would be read differently by a proxy.
        if not colon or not _NAME.match(name) or not _VALUE.match(value):
            raise BadHead("malformed header")
        name, value = name.lower(), value.strip(" \t")
        if name in headers:
            if name in ("content-length", "transfer-encoding", "host"):
                raise BadHead(f"more than one {name} header")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    length, chunked = _framing(headers)
    if protocol == "HTTP/1.1" and "host" not in headers:
        raise BadHead("missing required Host header")
    tokens = {token.strip() for token in headers.get("connection", "").lower().split(",")}
    keep = "keep-alive" in tokens if protocol == "HTTP/1.0" else "close" not in tokens
    if chunked and protocol == "HTTP/1.0":
        raise BadHead("transfer-encoding needs HTTP/1.1")
    old = protocol == "HTTP/1.0"
    return Head(method, _origin_form(target), headers, keep, length, chunked, old)


def _framing(headers: dict[str, str]) -> tuple[int, bool]:
    coding = headers.get("transfer-encoding")
    size = headers.get("content-length")
    if coding is not None:
        if size is not None:
            raise BadHead("both content-length and transfer-encoding")
        if coding.lower() != "chunked":
            raise BadHead(f"unsupported transfer encoding {coding[:40]!r}", 501)
        return 0, True
    if size is None:
        return 0, False
    if not size.isascii() or not size.isdigit() or len(size) > 18:
        raise BadHead("malformed content-length")
    return int(size), False


def _origin_form(target: str) -> str:
    """The path and query, also of a target in absolute form (`http://host/path`)."""
    for scheme in ("http://", "https://"):
        if target.lower().startswith(scheme):
            _, slash, rest = target[len(scheme) :].partition("/")
            return slash + rest if slash else "/"
    return target

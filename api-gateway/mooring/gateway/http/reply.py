"""Replies, and the bytes that go before every one of them."""

from __future__ import annotations

import json
import time
from http import HTTPStatus
from typing import Any

from mooring.gateway.versions import ENGINE_VERSION, NEWEST, text

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"

_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_ALWAYS = (
    f"Api-Version: {text(NEWEST)}\r\n"
    "Docker-Experimental: false\r\n"
    "Ostype: linux\r\n"
    f"Server: Docker/{ENGINE_VERSION} (linux)\r\n"
)
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_second = -1
_common = b""


def _date(now: int) -> str:
    t = time.gmtime(now)
    clock = f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}"
    return f"{_DAYS[t.tm_wday]}, {t.tm_mday:02} {_MONTHS[t.tm_mon - 1]} {t.tm_year} {clock} GMT"


def preamble(status: int) -> bytes:
    """The status line and the headers that every reply has."""
    global _second, _common
    now = int(time.time())
    if now != _second:
        _second, _common = now, f"{_ALWAYS}Date: {_date(now)}\r\n".encode()
    return _LINES[status] + _common


class Reply:
    """A whole answer. Cached ones keep their bytes, so they must not be changed."""

    __slots__ = ("body", "content_type", "headers", "status", "wire")

    def __init__(
        self,
        status: int = 200,
        body: bytes = b"",
        content_type: str = "",
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers
        lines = [f"{name}: {value}\r\n" for name, value in headers]
        if content_type:
            lines.append(f"Content-Type: {content_type}\r\n")
        if status not in (204, 304):
            lines.append(f"Content-Length: {len(body)}\r\n")
        lines.append("\r\n")
        self.wire = "".join(lines).encode("latin-1") + body
        """Everything after the preamble."""


def dumps(value: Any) -> bytes:
    """value as compact JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "backslashreplace"
    )


def json_reply(value: Any, status: int = 200) -> Reply:
    """A JSON answer, with the newline that Docker ends it with."""
    return Reply(status, dumps(value) + b"\n", JSON)


def empty(status: int = 204) -> Reply:
    """An answer without a body."""
    return Reply(status)


def error_reply(status: int, message: str, *, plain: bool = False) -> Reply:
    """An error in Docker's form; plain for clients from before 1.24."""
    if status == 304:
        return Reply(304)
    if plain:
        return Reply(status, message.encode() + b"\n", TEXT)
    return json_reply({"message": message}, status)

"""A blocking HTTP/1.1 client over a unix socket: small, so that its own cost stays out of it."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any, BinaryIO

READ = 1 << 18


class Refused(Exception):
    """An answer of 400 or above."""


class Wire:
    """One connection, reopened when the engine closed it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.sock: socket.socket | None = None
        self.pending = b""

    def close(self) -> None:
        if self.sock:
            self.sock.close()
        self.sock, self.pending = None, b""

    def send(
        self, method: str, path: str, body: object = None, raw: bytes = b"", **head: str
    ) -> None:
        """Send a request; body becomes JSON."""
        if self.sock is None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(180)
            self.sock.connect(self.path)
        if body is not None:
            raw = json.dumps(body).encode()
            head["Content-Type"] = "application/json"
        lines = [f"{method} {path} HTTP/1.1", "Host: bench"]
        if "Content_Length" not in head:
            lines.append(f"Content-Length: {len(raw)}")
        lines += [f"{key.replace('_', '-')}: {value}" for key, value in head.items()]
        self.sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + raw)

    def send_file(self, method: str, path: str, file: BinaryIO) -> None:
        """Send a request whose body is a file."""
        size = os.fstat(file.fileno()).st_size
        self.send(method, path, Content_Length=str(size), Content_Type="application/x-tar")
        assert self.sock is not None
        self.sock.sendfile(file)

    def fill(self) -> bool:
        assert self.sock is not None
        data = self.sock.recv(READ)
        self.pending += data
        return bool(data)

    def line(self) -> bytes:
        while b"\r\n" not in self.pending:
            if not self.fill():
                raise ConnectionError("the engine closed the connection")
        found, self.pending = self.pending.split(b"\r\n", 1)
        return found

    def exactly(self, count: int) -> bytes:
        while len(self.pending) < count:
            if not self.fill():
                raise ConnectionError("the engine closed the connection")
        found, self.pending = self.pending[:count], self.pending[count:]
        return found

    def head(self) -> tuple[int, dict[bytes, bytes]]:
        """Status and headers (lower case) of the answer."""
        status = int(self.line().split(b" ", 2)[1])
        headers = {}
        while text := self.line():
            key, _, value = text.partition(b":")
            headers[key.lower()] = value.strip()
        return status, headers

    def body(self, status: int, headers: dict[bytes, bytes]) -> bytes:
        if status in (204, 304):
            return b""
        if headers.get(b"transfer-encoding") == b"chunked":
            parts = []
            while size := int(self.line(), 16):
                parts.append(self.exactly(size))
                self.line()
            self.line()
            return b"".join(parts)
        if b"content-length" in headers:
            return self.exactly(int(headers[b"content-length"]))
        while self.fill():
            pass
        found, self.pending = self.pending, b""
        self.close()
        return found

    def call(self, method: str, path: str, body: object = None, raw: bytes = b"") -> bytes:
        """One request and its whole answer; Refused for an error."""
        try:
            self.send(method, path, body, raw)
            status, headers = self.head()
            data = self.body(status, headers)
        except BaseException:
            self.close()
            raise
        if headers.get(b"connection", b"").lower() == b"close":
            self.close()
        if status >= 400:
            raise Refused(f"{method} {path}: {status} {data[:200]!r}")
        return data

    def json(self, method: str, path: str, body: object = None) -> Any:
        return json.loads(self.call(method, path, body) or b"null")

    def drain(self) -> tuple[int, float | None, float]:
        """Read until the engine closes: bytes, the time of the first one, the time of the end."""
        assert self.sock is not None
        count = len(self.pending)
        first = time.perf_counter() if count else None
        buffer = bytearray(READ)
        while got := self.sock.recv_into(buffer):
            first = first or time.perf_counter()
            count += got
        self.close()
        return count, first, time.perf_counter()

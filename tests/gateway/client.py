"""A small raw HTTP client, which sees every byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Answer:
    """A whole response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """The text of an error."""
        text: str = self.json["message"]
        return text


class Connection:
    """One connection, kept alive."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    def send(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        """A request."""
        lines = [f"{method} {path} HTTP/1.1", "Host: docker"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    async def head(self) -> Answer:
        """A response without its body."""
        raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode().split("\r\n")[:-2]
        pairs = (line.split(": ", 1) for line in lines)
        return Answer(int(first.split(" ")[1]), {k.lower(): v for k, v in pairs}, b"")

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body; empty at its end."""
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        data = await self.reader.readexactly(size)
        await self.reader.readexactly(2)
        return data

    async def answer(self, method: str = "GET") -> Answer:
        """A whole response."""
        found = await self.head()
        if method == "HEAD" or found.status in (101, 204, 304):
            return found
        if found.headers.get("transfer-encoding") == "chunked":
            while piece := await self.chunk():
                found.body += piece
        elif "content-length" in found.headers:
            found.body = await self.reader.readexactly(int(found.headers["content-length"]))
        else:
            found.body = await self.reader.read()
        return found

    async def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """A request and its response; a body that is not bytes is sent as JSON."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers = {"Content-Type": "application/json", **(headers or {})}
        self.send(method, path, body or b"", headers)
        return await self.answer(method)


class Client:
    """Opens connections to one gateway."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connections: list[Connection] = []

    async def connect(self) -> Connection:
        """A new connection, closed at the latest by `close`."""
        connection = Connection(*await asyncio.open_unix_connection(str(self.path)))
        self._connections.append(connection)
        return connection

    async def close(self) -> None:
        """Close all connections."""
        for connection in self._connections:
            connection.writer.close()
            with contextlib.suppress(ConnectionError):
                await connection.writer.wait_closed()

    async def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own."""
        async with await self.connect() as connection:
            return await connection.request(method, path, body, headers)

    async def get(self, path: str) -> Answer:
        """GET."""
        return await self.request("GET", path)

    async def post(self, path: str, body: Any = None) -> Answer:
        """POST."""
        return await self.request("POST", path, body)

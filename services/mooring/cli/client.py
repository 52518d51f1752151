"""The Docker Engine API as the CLI uses it: JSON calls, streams, and hijacked connections."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import aiohttp

API = "/v1.47"


class ApiError(Exception):
    """The engine refused; the text is its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def default_host() -> str:
    """MOORING_HOST, DOCKER_HOST or the default socket, in this order."""
    for name in ("MOORING_HOST", "DOCKER_HOST"):
        if value := os.environ.get(name):
            return value
    return "unix:///run/mooring/docker.sock"


class Client:
    """One engine. Hosts are `unix:///path` or `tcp://address:port`."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        if self.host.startswith("unix://"):
            path = self.host.removeprefix("unix://")
            connector: aiohttp.BaseConnector = aiohttp.UnixConnector(path)
        else:
            connector = aiohttp.TCPConnector()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session:
            await self._session.close()

    def _url(self, path: str) -> str:
        base = "http://mooring"
        if self.host.startswith("tcp://"):
            base = "http://" + self.host.removeprefix("tcp://")
        return base + API + path

    async def open(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, str] | None = None,
        body: object = None,
        data: object = None,
    ) -> aiohttp.ClientResponse:
        """A response whose body the caller reads; ApiError for a refusal."""
        assert self._session is not None
        try:
            response = await self._session.request(
                method, self._url(path), params=params, json=body, data=data
            )
        except aiohttp.ClientConnectionError as exc:
            raise ApiError(0, f"cannot reach the engine at {self.host}: {exc}") from exc
        if response.status >= 400:
            text = await response.text()
            raise ApiError(response.status, _message(text) or response.reason or "")
        return response

    async def call(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, str] | None = None,
        body: object = None,
    ) -> Any:
        """One call and its JSON answer (None without one)."""
        async with await self.open(method, path, params=params, body=body) as response:
            text = await response.text()
            return json.loads(text) if text else None

    async def hijack(
        self, path: str, body: object = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """POST with an upgrade to a raw stream, its head already read."""
        if self.host.startswith("unix://"):
            path_ = self.host.removeprefix("unix://")
            reader, writer = await asyncio.open_unix_connection(path_)
        else:
            name, _, port = self.host.removeprefix("tcp://").rpartition(":")
            reader, writer = await asyncio.open_connection(name, int(port))
        payload = b"" if body is None else json.dumps(body).encode()
        head = (
            f"POST {API}{path} HTTP/1.1\r\nHost: mooring\r\nConnection: Upgrade\r\n"
            "Upgrade: tcp\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\n\r\n"
        )
        writer.write(head.encode() + payload)
        status = int((await reader.readuntil(b"\r\n")).split(b" ", 2)[1])
        length = 0
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            name, _, value = line.decode().partition(":")
            if name.lower() == "content-length":
                length = int(value)
        if status >= 400:
            text = (await reader.readexactly(length) if length else await reader.read()).decode()
            writer.close()
            raise ApiError(status, _message(text) or f"HTTP {status}")
        return reader, writer


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip()


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[tuple[int, bytes]]:
    """The frames of a multiplexed stream: (1 stdout or 2 stderr, bytes), until its end."""
    while True:
        try:
            head = await reader.readexactly(8)
            yield head[0], await reader.readexactly(int.from_bytes(head[4:], "big"))
        except asyncio.IncompleteReadError:
            return


def segment(name: str) -> str:
    """A container's or an image's name as part of a path."""
    return quote(name, safe="/:@")

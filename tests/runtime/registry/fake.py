"""A small registry whose every answer a test can bend."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from mooring.runtime.images.registry import manifests
from tests.runtime.images.archives import Image, digest

Handler = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


@dataclass
class Registry:
    """Blobs and manifests of any repository, in memory."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    known: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    """By tag and by digest: bytes and content type."""
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Every request: method, path, headers."""
    before: list[Handler] = field(default_factory=list)
    """Asked first; what they answer is the answer."""
    address: str = ""

    def add(self, image: Image, tag: str = "1", media: str = manifests.DOCKER_MANIFEST) -> str:
        """Have an image, its layers compressed; the digest of its manifest."""
        layers = [gzip.compress(layer, 1, mtime=0) for layer in image.layers]
        oci = media == manifests.OCI_MANIFEST
        kind = manifests.layer_type("gzip", oci=oci)
        return self.add_raw(image.json, [(kind, data) for data in layers], tag, media)

    def add_raw(self, config: bytes, layers: list[tuple[str, bytes]], tag: str, media: str) -> str:
        """The same of layers as they are, with their media types."""
        for data in (config, *(data for _, data in layers)):
            self.blobs[digest(data)] = data
        config_type = (
            manifests.OCI_CONFIG if media == manifests.OCI_MANIFEST else manifests.DOCKER_CONFIG
        )
        raw = manifests.generate(
            manifests.Descriptor(config_type, digest(config), len(config)),
            [manifests.Descriptor(kind, digest(data), len(data)) for kind, data in layers],
            media,
        )
        return self.put(raw, media, tag)

    def add_index(self, entries: list[tuple[str, dict[str, str]]], tag: str) -> str:
        """An index of manifests (by digest) for platforms."""
        rows = [
            {
                "mediaType": self.known[name][1],
                "digest": name,
                "size": len(self.known[name][0]),
                "platform": platform,
            }
            for name, platform in entries
        ]
        value = {"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "manifests": rows}
        return self.put(json.dumps(value).encode(), manifests.OCI_INDEX, tag)

    def put(self, raw: bytes, media: str, tag: str) -> str:
        """A manifest under a tag and its digest."""
        self.known[tag] = self.known[digest(raw)] = raw, media
        return digest(raw)

    def fetched(self, name: str) -> int:
        """How often a blob was asked for."""
        return sum(method == "GET" and path.endswith(name) for method, path, _ in self.asked)

    def instead(self, pattern: str, handler: Handler) -> None:
        """Have requests for paths that match answered by a function; None: as usual."""

        async def filtered(request: web.Request) -> web.StreamResponse | None:
            return await handler(request) if re.search(pattern, request.path) else None

        self.before.append(filtered)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """What a registry answers."""
        self.asked.append((request.method, request.path, dict(request.headers)))
        for handler in self.before:
            if (response := await handler(request)) is not None:
                return response
        if request.path == "/v2/":
            return web.json_response({})
        if found := re.fullmatch(r"/v2/.+/manifests/([^/]+)", request.path):
            if found[1] not in self.known:
                return refusal(404, "MANIFEST_UNKNOWN", "manifest unknown")
            raw, media = self.known[found[1]]
            return web.Response(body=raw, headers={"Content-Type": media})
        if found := re.fullmatch(r"/v2/.+/blobs/([^/]+)", request.path):
            if found[1] not in self.blobs:
                return refusal(404, "BLOB_UNKNOWN", "blob unknown to registry")
            return part(request, self.blobs[found[1]])
        return refusal(404, "NAME_UNKNOWN", "repository name not known to registry")


def part(request: web.Request, data: bytes) -> web.Response:
    """A blob, or the range of it that is asked for."""
    if found := re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", "")):
        start = int(found[1])
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return web.Response(status=206, body=data[start:], headers=headers)
    return web.Response(body=data)


def refusal(status: int, code: str, message: str, **headers: str) -> web.Response:
    """An error in the form of the distribution specification."""
    body: dict[str, Any] = {"errors": [{"code": code, "message": message}]}
    return web.json_response(body, status=status, headers=headers)


async def cut(request: web.Request, data: bytes, sent: int, size: int) -> web.StreamResponse:
    """A blob of a stated size that breaks off after so many bytes."""
    response = web.StreamResponse(headers={"Content-Length": str(size)})
    await response.prepare(request)
    await response.write(data[:sent])
    assert request.transport is not None
    request.transport.abort()
    return response


@asynccontextmanager
async def serving(registry: Registry, ssl: Any = None) -> AsyncIterator[Registry]:
    """The registry on a free port of loopback."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", registry.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    registry.address = f"127.0.0.1:{port}"
    try:
        yield registry
    finally:
        await runner.cleanup()
        await asyncio.sleep(0)

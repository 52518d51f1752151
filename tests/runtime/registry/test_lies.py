"""Pulls from a registry that lies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest
from aiohttp import web

from mooring.kit.errors import EngineError
from mooring.runtime.images.registry import manifests
from tests.runtime.images.archives import Image, digest

from .conftest import BULKY, BULKY_BLOB, Host
from .fake import Registry, cut, refusal

pytestmark = pytest.mark.kernel


def _blob(change: Callable[[bytes], bytes]) -> Callable[[Registry], None]:
    """Every layer is sent changed."""

    def bend(registry: Registry) -> None:
        name = BULKY_BLOB
        data = registry.blobs[name]

        async def answer(request: web.Request) -> web.Response:
            return web.Response(body=change(data))

        registry.instead(f"/blobs/{name}$", answer)

    return bend


def _endless(registry: Registry) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)

    registry.instead(f"/blobs/{BULKY_BLOB}$", answer)


def _slow(registry: Registry) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    registry.instead(f"/blobs/{BULKY_BLOB}$", answer)


def _truncated(registry: Registry) -> None:
    data = registry.blobs[BULKY_BLOB]

    async def answer(request: web.Request) -> web.StreamResponse:
        return await cut(request, data, 1000, len(data))

    registry.instead(f"/blobs/{digest(data)}$", answer)


def _config(registry: Registry) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=Image([BULKY]).json + b" ")

    registry.instead(f"/blobs/{Image([BULKY]).id}$", answer)


def _manifest(raw: bytes, media: str = manifests.DOCKER_MANIFEST) -> Callable[[Registry], None]:
    def bend(registry: Registry) -> None:
        registry.put(raw, media, "1")

    return bend


def _with(**changes: object) -> bytes:
    """A manifest that is right but for some keys."""
    layer_ = {"mediaType": manifests.DOCKER_LAYER + ".gzip", "size": 5, "digest": digest(b"x")}
    value = {
        "schemaVersion": 2,
        "mediaType": manifests.DOCKER_MANIFEST,
        "config": {"mediaType": manifests.DOCKER_CONFIG, "size": 2, "digest": digest(b"{}")},
        "layers": [layer_],
    }
    return json.dumps({key: v for key, v in (value | changes).items() if v is not None}).encode()


def _cyclic(registry: Registry) -> None:
    async def answer(request: web.Request) -> web.Response:
        # By whatever name: a list that names one more.
        name = request.path.rpartition("/")[2]
        entry = {"mediaType": manifests.OCI_INDEX, "size": 1,
                 "platform": {"os": "linux", "architecture": "amd64"}}  # fmt: skip
        for number in range(9):
            raw = json.dumps(
                {"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "n": number,
                 "manifests": [{**entry, "digest": chain[number + 1]}]}
            ).encode()  # fmt: skip
            if name in (digest(raw), "1") and (name != "1" or number == 0):
                return web.Response(body=raw, headers={"Content-Type": manifests.OCI_INDEX})
        return refusal(404, "MANIFEST_UNKNOWN", "manifest unknown")

    chain = ["sha256:" + "0" * 64] * 10
    for number in reversed(range(9)):
        raw = json.dumps(
            {"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "n": number,
             "manifests": [{"mediaType": manifests.OCI_INDEX, "size": 1,
                            "platform": {"os": "linux", "architecture": "amd64"},
                            "digest": chain[number + 1]}]}
        ).encode()  # fmt: skip
        chain[number] = digest(raw)
    registry.instead("/manifests/", answer)


async def _loop(request: web.Request) -> web.Response:
    return web.Response(status=307, headers={"Location": str(request.url)})


def _redirecting(registry: Registry) -> None:
    registry.instead("/blobs/", _loop)


LIES: dict[str, tuple[Callable[[Registry], None], str]] = {
    "a wrong digest": (
        _blob(lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        "filesystem layer verification failed for digest sha256:|failed to register layer",
    ),
    "other bytes": (_blob(lambda data: b"\0" * len(data)), "verification failed|register layer"),
    "too many bytes": (_blob(lambda data: data + b"x"), "filesystem layer verification failed"),
    "too few bytes": (_blob(lambda data: data[:-1]), "unexpected EOF"),
    "a blob that breaks off": (_truncated, "Get .*: "),
    "an endless blob": (_endless, "filesystem layer verification failed"),
    "a blob that never comes": (_slow, "timeout"),
    "another config": (_config, "image config verification failed for digest"),
    "a manifest of 5 MiB": (_manifest(b" " * (5 << 20)), "manifest of .* is larger than 4 MiB"),
    "no JSON": (_manifest(b"<html>"), "invalid manifest for"),
    "no object": (_manifest(b"[]"), "it is no JSON object"),
    "a page": (
        _manifest(b"{}", "text/html"),
        "unsupported manifest media type and no default available: text/html",
    ),
    "another type inside": (
        _manifest(_with(mediaType=manifests.OCI_MANIFEST)),
        "mediaType in manifest should be '.*docker.*' not '.*oci.*'",
    ),
    "schema 1": (
        _manifest(_with(schemaVersion=1), "application/vnd.docker.distribution.manifest.v1+json"),
        "schema 1 support is disabled",
    ),
    "an unknown algorithm": (
        _manifest(_with(config={"size": 2, "digest": "sha512:" + "a" * 128})),
        "unsupported digest algorithm",
    ),
    "a digest that is a path": (
        _manifest(_with(config={"size": 2, "digest": "sha256:../../../etc/passwd"})),
        "invalid checksum digest format",
    ),
    "a config that is none": (
        _manifest(_with(config={"mediaType": "application/x", "size": 2, "digest": digest(b"")})),
        "Encountered remote .application/x..unknown. when fetching",
    ),
    "a size that is none": (_manifest(_with(config={"digest": digest(b"")})), "without a size"),
    "lists in lists": (_cyclic, "nested too deeply"),
    "redirects in a circle": (_redirecting, "stopped after 10 redirects"),
}


@pytest.mark.parametrize("name", LIES)
async def test_a_registry_that_lies_is_found_out_and_nothing_of_it_stays(
    host: Host, registry: Registry, name: str
) -> None:
    bend, words = LIES[name]
    registry.add(Image([BULKY]))
    bend(registry)
    before = host.everything()
    with pytest.raises(EngineError, match=words):
        await host.pull(registry)
    assert not host.added
    await host.registries.close()
    await host.images.idle()
    left = host.everything() - before
    # What was fetched of a blob that only broke off is for the next attempt.
    breaks = name in ("a blob that breaks off", "a blob that never comes", "too few bytes")
    assert len(left) <= (2 if breaks else 0), left
    assert not any(path.startswith(("content", "layers", "ingest")) for path in left)

"""Pushes to a registry that breaks off, and mirrors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from aiohttp import web

from mooring.kit import references
from mooring.kit.models.registry import PullImage, PushImage
from mooring.runtime.images.registry import client, manifests
from mooring.runtime.images.registry.challenge import Credentials
from mooring.runtime.images.registry.client import Http, Patience, Repository
from mooring.runtime.images.registry.endpoints import Endpoint, Rules
from mooring.runtime.images.registry.manifests import Descriptor
from mooring.runtime.images.registry.upload import Upload
from tests.runtime.images.archives import Entry, Image, digest, layer

from .conftest import Host
from .fake import Registry, refusal

pytestmark = pytest.mark.kernel

DATA = bytes(range(256)) * 8192
BASE = layer([Entry("bin/sh", data=b"shell" * 1000)])


class Sink:
    """A registry's side of uploads: breaks off as often as told, after half of what comes."""

    def __init__(self, registry: Registry, breaks: int = 0, forget: bool = False) -> None:
        self.registry, self.breaks, self.forget = registry, breaks, forget
        self.got = bytearray()
        self.begun = 0
        self.ranges: list[str] = []
        registry.before.append(self.answer)

    async def answer(self, request: web.Request) -> web.StreamResponse | None:
        where = {"Location": f"/v2/app/blobs/uploads/{self.begun}?state=x"}
        if request.method == "HEAD" and "/blobs/" in request.path:
            return web.Response(status=404)
        if request.method == "POST":
            self.begun += 1
            self.got.clear()
            where["Location"] = f"/v2/app/blobs/uploads/{self.begun}?state=x"
            return web.Response(status=202, headers=where)
        if request.method == "PATCH":
            self.ranges.append(request.headers.get("Content-Range", ""))
            size = int(request.headers["Content-Length"])
            have = 0
            async for piece in request.content.iter_any():
                have += len(piece)
                self.got += piece
                if self.breaks and have >= size // 2:
                    self.breaks -= 1
                    assert request.transport is not None
                    request.transport.abort()
                    return web.Response()
            return web.Response(status=202, headers=where)
        if request.method == "GET" and "/uploads/" in request.path:
            if self.forget:
                return refusal(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown")
            headers = {**where, "Range": f"0-{len(self.got) - 1}"}
            return web.Response(status=204, headers=headers)
        if request.method == "PUT" and "/uploads/" in request.path:
            assert request.query["digest"] == digest(bytes(self.got))
            self.registry.blobs[request.query["digest"]] = bytes(self.got)
            return web.Response(status=201)
        if request.method == "PUT":
            raw = await request.read()
            self.registry.put(raw, request.headers["Content-Type"], request.path.split("/")[-1])
            return web.Response(status=201)
        return None


@pytest.mark.parametrize("forget", [False, True])
async def test_an_upload_that_breaks_off_goes_on_where_the_registry_is(
    registry: Registry, tmp_path: Path, forget: bool
) -> None:
    sink = Sink(registry, breaks=1, forget=forget)
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    http = Http(Rules(), Patience(5.0, 3, 0.01))
    try:
        endpoint = Endpoint(f"http://{registry.address}", registry.address)
        repository = Repository(http, endpoint, "app", Credentials())
        await Upload(repository, Descriptor("", digest(DATA), len(DATA)), path).run()
    finally:
        await http.close()
    assert registry.blobs[digest(DATA)] == DATA
    assert sink.begun == (2 if forget else 1)
    assert sink.ranges[0] == ""
    assert bool(sink.ranges[1]) is not forget


async def test_a_plain_layer_is_compressed_once_and_the_next_push_sends_the_same(
    host: Host, registry: Registry
) -> None:
    image = Image([BASE])
    registry.add_raw(
        image.json, [(manifests.layer_type("", oci=True), BASE)], "1", manifests.OCI_MANIFEST
    )
    reference = f"{registry.address}/app:1"
    await host.registries.pull(PullImage(reference=reference, request_id="one"))
    record = host.added[0].image
    Sink(registry)

    async def push(tag: str) -> str:
        request = PushImage(
            name=f"{registry.address}/app", images={tag: record}, request_id=f"push {tag}"
        )
        done = await host.registries.push(request)
        return str(done.messages[-1]["aux"]["Digest"])

    first = await push("2")
    pushed = json.loads(registry.known["2"][0])
    assert pushed["layers"][0]["mediaType"] == manifests.DOCKER_LAYER + ".gzip"
    info = host.images.store.layer_info(record.layers[0].chain_id)
    assert (info.compression, info.blob) == ("gzip", pushed["layers"][0]["digest"])
    assert not host.images.store.blob(digest(BASE)).exists()
    assert await push("3") == first
    assert host.added[-1].action == "push"
    assert host.added[-1].references == [f"{registry.address}/app@{first}"]


async def test_a_mirror_is_asked_first_and_never_told_who_asks(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    http = Http(Rules(mirrors=(f"http://{registry.address}",)), Patience(5.0, 1, 0.01))
    try:
        name = references.parse("bb")
        auth = Credentials(username="me", password="secret")
        found = await client.connect(http, name, auth, "pull", mirrors=True)
        async with found[0].send("GET", "tags/list", accept=(404,)):
            pass
    finally:
        await http.close()
    assert found[0].endpoint.mirror
    assert registry.asked[-1][1] == "/v2/library/bb/tags/list"
    assert not any("Authorization" in headers for _, _, headers in registry.asked)

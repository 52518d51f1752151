"""Pulls from a registry that behaves, and from one that does not."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
from collections.abc import Callable

import pytest
from aiohttp import web

from mooring.kit.errors import EngineError, InvalidParameter, NotFound
from mooring.kit.models.registry import CancelTransfer, CheckAuth, PushImage, RegistryAuth
from mooring.runtime.images.registry import manifests
from tests.runtime.images.archives import COMPRESSORS, Entry, Image, digest, layer

from .conftest import Host
from .fake import Registry, cut, part, refusal, serving

pytestmark = pytest.mark.kernel

BASE = layer([Entry("bin/", "dir"), Entry("bin/sh", data=b"shell", mode=0o755)])
TOP = layer([Entry("etc/motd", data=b"hello")])
BULKY = layer([Entry("var/bulk", data=os.urandom(3 << 20))])
IMAGE = Image([BASE, TOP], config={"Cmd": ["sh"]})


async def _pull(host: Host, registry: Registry, what: str = "app:1", **more: object) -> list[str]:
    done = await host.registries.pull(host.request(f"{registry.address}/{what}", **more))
    return [message["status"] for message in done.messages]


async def test_a_pull_stores_the_image_and_has_it_recorded_by_tag_and_digest(
    host: Host, registry: Registry
) -> None:
    digest_ = registry.add(IMAGE)
    inbox, said = host.watch()
    last = await _pull(host, registry, progress=inbox)
    assert last == [
        f"Digest: {digest_}",
        f"Status: Downloaded newer image for {registry.address}/app:1",
    ]
    (added,) = host.added
    assert added.action == "pull"
    assert added.references == [f"{registry.address}/app:1", f"{registry.address}/app@{digest_}"]
    assert added.image.config == {"Cmd": ["sh"]}
    assert added.image.manifests == [digest_]
    top = host.images.store.layer(added.image.layers[1].chain_id)
    assert (top / "fs/etc/motd").read_bytes() == b"hello"
    assert said[0] == "Pulling from app"
    assert said.count("Pulling fs layer") == said.count("Pull complete") == 2
    assert not list((host.settings.state_dir / "downloads").iterdir())


async def test_a_second_pull_fetches_nothing_but_the_manifest_and_the_config(
    host: Host, registry: Registry
) -> None:
    registry.add(IMAGE)
    await _pull(host, registry)
    registry.asked.clear()
    known = {f"{registry.address}/app:1": IMAGE.id}
    last = await _pull(host, registry, known=known)
    assert last[1] == f"Status: Image is up to date for {registry.address}/app:1"
    blobs = [path for _, path, _ in registry.asked if "/blobs/" in path]
    assert [path.rpartition("/")[2] for path in blobs] == [IMAGE.id]


@pytest.mark.parametrize("kind", ["plain", "gzip", "zstd"])
async def test_layers_come_in_every_compression_that_oci_names(
    host: Host, registry: Registry, kind: str
) -> None:
    pack = COMPRESSORS[kind]
    media = manifests.layer_type("" if kind == "plain" else kind, oci=True)
    layers = [(media, pack(BASE)), (media, pack(TOP))]
    registry.add_raw(IMAGE.json, layers, "1", manifests.OCI_MANIFEST)
    await _pull(host, registry)
    assert host.images.store.layer_info(host.added[0].image.layers[0].chain_id).size == 5


async def test_an_index_leads_to_the_image_for_the_platform_and_no_further(
    host: Host, registry: Registry
) -> None:
    ours = registry.add(IMAGE, "ours")
    other = Image([BASE], extra={"architecture": "arm64"})
    theirs = registry.add(other, "theirs")
    outer = registry.add_index(
        [
            (theirs, {"os": "linux", "architecture": "arm64", "variant": "v8"}),
            (ours, {"os": "linux", "architecture": "amd64"}),
        ],
        "1",
    )
    assert (await _pull(host, registry, platform="linux/amd64"))[0] == f"Digest: {outer}"
    await _pull(host, registry, platform="linux/arm64")
    assert [added.image.id for added in host.added] == [IMAGE.id, other.id]
    with pytest.raises(NotFound, match="no matching manifest for linux/s390x in the manifest list"):
        await _pull(host, registry, platform="linux/s390x")


async def test_a_platform_that_a_single_image_is_not_for_is_refused(
    host: Host, registry: Registry
) -> None:
    registry.add(IMAGE)
    with pytest.raises(NotFound, match="wanted linux/arm64, actual: linux/amd64"):
        await _pull(host, registry, platform="linux/arm64")
    with pytest.raises(InvalidParameter, match="operating system is not supported"):
        await _pull(host, registry, platform="windows/amd64")
    assert not host.added


async def test_all_tags_of_a_repository(host: Host, registry: Registry) -> None:
    registry.add(IMAGE, "1")
    registry.add(Image([BASE]), "2")

    async def tags(request: web.Request) -> web.Response:
        if "last" in request.query:
            return web.json_response({"name": "app", "tags": ["2"]})
        link = {"Link": '</v2/app/tags/list?last=1&n=1>; rel="next"'}
        return web.json_response({"name": "app", "tags": ["1"]}, headers=link)

    registry.instead("/tags/list$", tags)
    await _pull(host, registry, "app")
    assert [added.references[0].rpartition(":")[2] for added in host.added] == ["1", "2"]


async def test_the_same_layer_twice_in_an_image_is_fetched_once(
    host: Host, registry: Registry
) -> None:
    registry.add(Image([BASE, TOP, BASE]))
    await _pull(host, registry)
    assert registry.fetched(digest(gzip.compress(BASE, 1, mtime=0))) == 1
    assert len({entry.chain_id for entry in host.added[0].image.layers}) == 3


# --- sharing, breaking off ---


class Gate:
    """Holds a blob back in the middle of its bytes."""

    def __init__(self, registry: Registry, name: str) -> None:
        self.reached, self.open = asyncio.Event(), asyncio.Event()
        self.data = registry.blobs[name]
        self.half = len(self.data) // 2
        registry.instead(f"/blobs/{name}$", self.answer)

    async def answer(self, request: web.Request) -> web.StreamResponse | None:
        if "Range" in request.headers or self.open.is_set():
            return part(request, self.data)
        response = web.StreamResponse(headers={"Content-Length": str(len(self.data))})
        await response.prepare(request)
        await response.write(self.data[: self.half])
        self.reached.set()
        await self.open.wait()
        await response.write(self.data[self.half :])
        return response


async def _stored(host: Host, name: str, size: int) -> int:
    """Bytes of a blob on its way, as soon as there are so many."""
    path = host.settings.state_dir / "downloads" / name[7:]
    async with asyncio.timeout(10):
        while not path.exists() or (have := path.stat().st_size) < size:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return have


async def test_two_pulls_of_one_layer_share_it_and_one_may_leave(
    host: Host, registry: Registry
) -> None:
    registry.add(Image([BULKY]), "1")
    registry.add(Image([BULKY, TOP]), "2")
    name = digest(gzip.compress(BULKY, 1, mtime=0))
    gate = Gate(registry, name)
    first = host.request(f"{registry.address}/app:1")
    leaving = asyncio.create_task(host.registries.pull(first))
    await gate.reached.wait()
    staying = asyncio.create_task(_pull(host, registry, "app:2"))
    await asyncio.sleep(0)
    await host.registries.cancel(CancelTransfer(transfer=first.request_id))
    with pytest.raises(EngineError, match="context canceled"):
        await leaving
    gate.open.set()
    await staying
    assert [len(added.image.layers) for added in host.added] == [2]


async def test_a_pull_that_nobody_waits_for_ends_and_the_next_goes_on_at_its_byte(
    host: Host, registry: Registry
) -> None:
    registry.add(Image([BULKY]))
    name = digest(gzip.compress(BULKY, 1, mtime=0))
    gate = Gate(registry, name)
    request = host.request(f"{registry.address}/app:1")
    pulling = asyncio.create_task(host.registries.pull(request))
    await gate.reached.wait()
    have = await _stored(host, name, gate.half)
    await host.registries.cancel(CancelTransfer(transfer=request.request_id))
    with pytest.raises(EngineError, match="context canceled"):
        await pulling
    await _pull(host, registry)
    ranges = [headers.get("Range") for _, path, headers in registry.asked if path.endswith(name)]
    assert ranges == [None, f"bytes={have}-"]


async def test_a_transfers_process_that_is_killed_is_replaced_and_goes_on_at_the_byte(
    host: Host, registry: Registry
) -> None:
    registry.add(Image([BASE, BULKY]))
    name = digest(gzip.compress(BULKY, 1, mtime=0))
    gate = Gate(registry, name)
    pulling = asyncio.create_task(_pull(host, registry))
    await gate.reached.wait()
    have = await _stored(host, name, gate.half)
    os.kill(host.registries.pid, signal.SIGKILL)
    await pulling
    ranges = [headers.get("Range") for _, path, headers in registry.asked if path.endswith(name)]
    assert ranges == [None, f"bytes={have}-"]
    assert len(host.added) == 1


async def test_what_an_earlier_process_left_damaged_is_fetched_once_more(
    host: Host, registry: Registry
) -> None:
    registry.add(Image([BULKY]))
    name = digest(gzip.compress(BULKY, 1, mtime=0))
    (host.settings.state_dir / "downloads" / name[7:]).write_bytes(b"\0" * 100_000)
    await _pull(host, registry)
    ranges = [headers.get("Range") for _, path, headers in registry.asked if path.endswith(name)]
    assert ranges == ["bytes=100000-", None]


async def test_a_connection_that_breaks_is_taken_up_where_it_broke(
    host: Host, registry: Registry
) -> None:
    registry.add(Image([BULKY]))
    name = digest(gzip.compress(BULKY, 1, mtime=0))
    data = registry.blobs[name]

    async def breaking(request: web.Request) -> web.StreamResponse:
        if "Range" in request.headers:
            return part(request, data)
        return await cut(request, data, 1 << 20, len(data))

    registry.instead(f"/blobs/{name}$", breaking)
    inbox, said = host.watch()
    await _pull(host, registry, progress=inbox)
    assert any(text.startswith("Retrying in") for text in said)


async def test_a_registry_without_ranges_begins_again_and_what_is_there_is_skipped(
    host: Host, registry: Registry
) -> None:
    registry.add(Image([BULKY]))
    name = digest(gzip.compress(BULKY, 1, mtime=0))
    data, turns = registry.blobs[name], [1 << 20, 2 << 20, len(gzip.compress(BULKY, 1, mtime=0))]

    async def breaking(request: web.Request) -> web.StreamResponse:
        return await cut(request, data, turns.pop(0), len(data))

    registry.instead(f"/blobs/{name}$", breaking)
    await _pull(host, registry)
    assert not turns


async def test_an_image_that_is_removed_during_a_pull_keeps_the_layers_the_pull_counts_on(
    host: Host, registry: Registry
) -> None:
    from mooring.kit.models.image import RemoveLayers

    registry.add(Image([BASE]), "1")
    registry.add(Image([BASE, BULKY]), "2")
    await _pull(host, registry)
    small = host.added[0].image
    gate = Gate(registry, digest(gzip.compress(BULKY, 1, mtime=0)))
    pulling = asyncio.create_task(_pull(host, registry, "app:2"))
    await gate.reached.wait()
    await host.records.delete(small.id[7:])
    await host.images.remove(RemoveLayers(image=small))
    assert host.images.store.has_layer(small.layers[0].chain_id)
    gate.open.set()
    await pulling
    assert len(host.added[1].image.layers) == 2


async def test_a_pull_that_fails_takes_out_what_it_added_and_what_was_removed_meanwhile(
    host: Host, registry: Registry
) -> None:
    from mooring.kit.models.image import RemoveLayers

    before = host.everything()
    registry.add(Image([BASE]), "1")
    registry.add(Image([BASE, TOP, BULKY]), "2")
    await _pull(host, registry)
    small = host.added[0].image
    name = digest(gzip.compress(BULKY, 1, mtime=0))
    reached, on = asyncio.Event(), asyncio.Event()

    async def wrong(request: web.Request) -> web.Response:
        reached.set()
        await on.wait()
        return web.Response(body=b"\0" * len(registry.blobs[name]))

    registry.instead(f"/blobs/{name}$", wrong)
    pulling = asyncio.create_task(_pull(host, registry, "app:2"))
    await reached.wait()
    await host.records.delete(small.id[7:])
    await host.images.remove(RemoveLayers(image=small))
    on.set()
    with pytest.raises(EngineError, match=r"filesystem layer verification failed|register layer"):
        await pulling
    await host.registries.close()
    await host.images.idle()
    left = host.everything() - before
    # The layer that was whole may be wanted soon.
    assert left == {f"downloads/{digest(gzip.compress(TOP, 1, mtime=0))[7:]}"}


# --- a registry that lies ---


def _blob(change: Callable[[bytes], bytes]) -> Callable[[Registry], None]:
    """Every layer is sent changed."""

    def bend(registry: Registry) -> None:
        name = digest(gzip.compress(BULKY, 1, mtime=0))
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

    registry.instead(f"/blobs/{digest(gzip.compress(BULKY, 1, mtime=0))}$", answer)


def _slow(registry: Registry) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    registry.instead(f"/blobs/{digest(gzip.compress(BULKY, 1, mtime=0))}$", answer)


def _truncated(registry: Registry) -> None:
    data = registry.blobs[digest(gzip.compress(BULKY, 1, mtime=0))]

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
        await _pull(host, registry)
    assert not host.added
    await host.registries.close()
    await host.images.idle()
    left = host.everything() - before
    # What was fetched of a blob that only broke off is for the next attempt.
    breaks = name in ("a blob that breaks off", "a blob that never comes", "too few bytes")
    assert len(left) <= (2 if breaks else 0), left
    assert not any(path.startswith(("content", "layers", "ingest")) for path in left)


# --- who asks ---


async def test_a_token_is_fetched_for_the_repository_and_sent_to_nobody_else(
    host: Host, registry: Registry
) -> None:
    registry.add(Image([BULKY]))
    other = Registry(blobs=registry.blobs)
    async with serving(other):

        async def locked(request: web.Request) -> web.StreamResponse | None:
            if request.path == "/token":
                assert request.query["scope"] == "repository:app:pull"
                assert request.query["service"] == "the registry"
                assert request.headers["Authorization"].startswith("Basic ")
                return web.json_response({"token": "t0ken", "expires_in": 300})
            if request.headers.get("Authorization") != "Bearer t0ken":
                realm = f'Bearer realm="http://{registry.address}/token",service="the registry"'
                return refusal(
                    401, "UNAUTHORIZED", "authentication required", **{"WWW-Authenticate": realm}
                )
            if "/blobs/" in request.path:
                where = f"http://{other.address}{request.path}"
                return web.Response(status=307, headers={"Location": where})
            return None

        registry.instead("", locked)
        auth = RegistryAuth(username="me", password="secret")
        await _pull(host, registry, auth=auth)
        assert other.asked
        assert not any("Authorization" in headers for _, _, headers in other.asked)


def _locked(registry: Registry, asked: list[dict[str, str]]) -> None:
    """Have a registry that wants a token, and a token server that notes what it is asked."""

    async def locked(request: web.Request) -> web.StreamResponse | None:
        if request.path == "/token":
            form = await request.post()
            asked.append({**request.query, **{k: str(v) for k, v in form.items()}})
            answer = {"access_token": "t0ken", "refresh_token": "another identity"}
            return web.json_response(answer)
        if request.headers.get("Authorization") == "Bearer t0ken":
            return None
        realm = f'Bearer realm="http://{registry.address}/token",service="the registry"'
        return refusal(401, "UNAUTHORIZED", "no", **{"WWW-Authenticate": realm})

    registry.instead("", locked)


async def test_a_login_gives_an_identity_that_stands_for_the_password(
    host: Host, registry: Registry
) -> None:
    registry.add(IMAGE)
    asked: list[dict[str, str]] = []
    _locked(registry, asked)
    auth = RegistryAuth(username="me", password="secret", serveraddress=registry.address)
    done = await host.registries.check(CheckAuth(auth=auth))
    assert (done.status, done.identity_token) == ("Login Succeeded", "another identity")
    assert asked.pop() == {
        "service": "the registry", "account": "me", "offline_token": "true", "client_id": "docker",
    }  # fmt: skip
    await _pull(host, registry, auth=RegistryAuth(identitytoken=done.identity_token))
    assert asked == [
        {
            "grant_type": "refresh_token",
            "refresh_token": "another identity",
            "service": "the registry",
            "client_id": "docker",
            "scope": "repository:app:pull",
        }
    ]


async def test_a_foreign_layer_comes_from_where_it_may_be_had_and_is_not_pushed(
    host: Host, registry: Registry
) -> None:
    _locked(registry, [])
    layer_ = gzip.compress(BULKY, 1, mtime=0)
    image = Image([BULKY])
    registry.blobs[image.id] = image.json
    elsewhere = Registry()

    async def give(request: web.Request) -> web.Response:
        return part(request, layer_) if request.path == "/files/layer" else web.Response(status=404)

    elsewhere.instead("", give)
    async with serving(elsewhere):
        urls = [f"http://{elsewhere.address}/{name}" for name in ("gone", "files/layer")]
        kind = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        raw = manifests.generate(
            manifests.Descriptor(manifests.DOCKER_CONFIG, image.id, len(image.json)),
            [manifests.Descriptor(kind, digest(layer_), len(layer_), tuple(urls))],
            manifests.DOCKER_MANIFEST,
        )
        assert json.loads(raw)["layers"][0]["urls"] == urls
        registry.put(raw, manifests.DOCKER_MANIFEST, "1")
        auth = RegistryAuth(username="me", password="secret")
        await _pull(host, registry, auth=auth)
    assert [path for _, path, _ in elsewhere.asked] == ["/gone", "/files/layer"]
    assert not any("Authorization" in headers for _, _, headers in elsewhere.asked)
    assert registry.fetched(digest(layer_)) == 0
    inbox, said = host.watch()
    name = f"{registry.address}/app"
    request = PushImage(
        name=name, images={"2": host.added[0].image}, auth=auth, progress=inbox, request_id="push"
    )

    async def take(request: web.Request) -> web.Response | None:
        if request.method != "PUT" or "Authorization" not in request.headers:
            return None
        registry.put(await request.read(), request.headers["Content-Type"], "2")
        return web.Response(status=201)

    registry.instead("/manifests/2$", take)
    await host.registries.push(request)
    assert "Skipped foreign layer" in said
    assert registry.known["2"][0] == raw
    assert not any("/uploads/" in path for _, path, _ in registry.asked)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ('Basic realm="x"', "no basic auth credentials"),
        (
            'Bearer realm="http://127.0.0.1:1/",error="insufficient_scope"',
            "connection refused",
        ),
    ],
)
async def test_what_is_locked_is_refused_in_dockers_words(
    host: Host, registry: Registry, header: str, words: str
) -> None:
    async def locked(request: web.Request) -> web.Response:
        return refusal(
            401, "UNAUTHORIZED", "authentication required", **{"WWW-Authenticate": header}
        )

    registry.instead("", locked)
    with pytest.raises(EngineError, match=words):
        await _pull(host, registry)


async def test_a_repository_of_others_is_denied_in_dockers_words(
    host: Host, registry: Registry
) -> None:
    async def locked(request: web.Request) -> web.Response | None:
        if request.path == "/token":
            return web.json_response({"token": "good for nothing"})
        scope = ',error="insufficient_scope"' if "Authorization" in request.headers else ""
        realm = f'Bearer realm="http://{registry.address}/token"{scope}'
        return refusal(401, "UNAUTHORIZED", "no", **{"WWW-Authenticate": realm})

    registry.instead("", locked)
    with pytest.raises(NotFound) as caught:
        await _pull(host, registry)
    assert str(caught.value) == (
        f"pull access denied for {registry.address}/app, repository does not exist or may require "
        "'docker login': denied: requested access to the resource is denied"
    )


async def test_too_many_requests_are_waited_out_and_in_the_end_said(
    host: Host, registry: Registry
) -> None:
    registry.add(IMAGE)
    refusals = [1, 1]

    async def limited(request: web.Request) -> web.Response | None:
        if refusals:
            refusals.pop()
            return refusal(429, "TOOMANYREQUESTS", "slow down", **{"Retry-After": "0"})
        return None

    registry.instead("/manifests/", limited)
    await _pull(host, registry)
    refusals += [1] * 9
    with pytest.raises(EngineError, match="toomanyrequests: slow down"):
        await _pull(host, registry)

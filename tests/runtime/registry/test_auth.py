"""What a registry wants to know of who asks, and who is told."""

from __future__ import annotations

import gzip
import json

import pytest
from aiohttp import web

from mooring.kit.errors import EngineError, NotFound
from mooring.kit.models.registry import CheckAuth, PushImage, RegistryAuth
from mooring.runtime.images.registry import manifests
from tests.runtime.images.archives import Image, digest

from .conftest import BULKY, IMAGE, Host
from .fake import Registry, part, refusal, serving

pytestmark = pytest.mark.kernel


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
        await host.pull(registry, auth=auth)
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
    await host.pull(registry, auth=RegistryAuth(identitytoken=done.identity_token))
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
        await host.pull(registry, auth=auth)
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
        await host.pull(registry)


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
        await host.pull(registry)
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
    await host.pull(registry)
    refusals += [1] * 9
    with pytest.raises(EngineError, match="toomanyrequests: slow down"):
        await host.pull(registry)

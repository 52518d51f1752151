"""Pulls from a registry that behaves."""

from __future__ import annotations

import gzip

import pytest
from aiohttp import web

from mooring.kit.errors import InvalidParameter, NotFound
from mooring.runtime.images.registry import manifests
from tests.runtime.images.archives import COMPRESSORS, Image, digest

from .conftest import BASE, IMAGE, TOP, Host
from .fake import Registry

pytestmark = pytest.mark.kernel


async def test_a_pull_stores_the_image_and_has_it_recorded_by_tag_and_digest(
    host: Host, registry: Registry
) -> None:
    digest_ = registry.add(IMAGE)
    inbox, said = host.watch()
    last = await host.pull(registry, progress=inbox)
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
    await host.pull(registry)
    registry.asked.clear()
    known = {f"{registry.address}/app:1": IMAGE.id}
    last = await host.pull(registry, known=known)
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
    await host.pull(registry)
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
    assert (await host.pull(registry, platform="linux/amd64"))[0] == f"Digest: {outer}"
    await host.pull(registry, platform="linux/arm64")
    assert [added.image.id for added in host.added] == [IMAGE.id, other.id]
    with pytest.raises(NotFound, match="no matching manifest for linux/s390x in the manifest list"):
        await host.pull(registry, platform="linux/s390x")


async def test_a_platform_that_a_single_image_is_not_for_is_refused(
    host: Host, registry: Registry
) -> None:
    registry.add(IMAGE)
    with pytest.raises(NotFound, match="wanted linux/arm64, actual: linux/amd64"):
        await host.pull(registry, platform="linux/arm64")
    with pytest.raises(InvalidParameter, match="operating system is not supported"):
        await host.pull(registry, platform="windows/amd64")
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
    await host.pull(registry, "app")
    assert [added.references[0].rpartition(":")[2] for added in host.added] == ["1", "2"]


async def test_the_same_layer_twice_in_an_image_is_fetched_once(
    host: Host, registry: Registry
) -> None:
    registry.add(Image([BASE, TOP, BASE]))
    await host.pull(registry)
    assert registry.fetched(digest(gzip.compress(BASE, 1, mtime=0))) == 1
    assert len({entry.chain_id for entry in host.added[0].image.layers}) == 3

"""Pulls that share, that are broken off, and that go on at their byte."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal

import pytest
from aiohttp import web

from mooring.kit.errors import EngineError
from mooring.kit.models.registry import CancelTransfer
from tests.runtime.images.archives import Image, digest

from .conftest import BASE, BULKY, BULKY_BLOB, TOP, Host
from .fake import Registry, cut, part

pytestmark = pytest.mark.kernel


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
    name = BULKY_BLOB
    gate = Gate(registry, name)
    first = host.request(f"{registry.address}/app:1")
    leaving = asyncio.create_task(host.registries.pull(first))
    await gate.reached.wait()
    staying = asyncio.create_task(host.pull(registry, "app:2"))
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
    name = BULKY_BLOB
    gate = Gate(registry, name)
    request = host.request(f"{registry.address}/app:1")
    pulling = asyncio.create_task(host.registries.pull(request))
    await gate.reached.wait()
    have = await _stored(host, name, gate.half)
    await host.registries.cancel(CancelTransfer(transfer=request.request_id))
    with pytest.raises(EngineError, match="context canceled"):
        await pulling
    await host.pull(registry)
    ranges = [headers.get("Range") for _, path, headers in registry.asked if path.endswith(name)]
    assert ranges == [None, f"bytes={have}-"]


async def test_a_transfers_process_that_is_killed_is_replaced_and_goes_on_at_the_byte(
    host: Host, registry: Registry
) -> None:
    registry.add(Image([BASE, BULKY]))
    name = BULKY_BLOB
    gate = Gate(registry, name)
    pulling = asyncio.create_task(host.pull(registry))
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
    name = BULKY_BLOB
    (host.settings.state_dir / "downloads" / name[7:]).write_bytes(b"\0" * 100_000)
    await host.pull(registry)
    ranges = [headers.get("Range") for _, path, headers in registry.asked if path.endswith(name)]
    assert ranges == ["bytes=100000-", None]


async def test_a_connection_that_breaks_is_taken_up_where_it_broke(
    host: Host, registry: Registry
) -> None:
    registry.add(Image([BULKY]))
    name = BULKY_BLOB
    data = registry.blobs[name]

    async def breaking(request: web.Request) -> web.StreamResponse:
        if "Range" in request.headers:
            return part(request, data)
        return await cut(request, data, 1 << 20, len(data))

    registry.instead(f"/blobs/{name}$", breaking)
    inbox, said = host.watch()
    await host.pull(registry, progress=inbox)
    assert any(text.startswith("Retrying in") for text in said)


async def test_a_registry_without_ranges_begins_again_and_what_is_there_is_skipped(
    host: Host, registry: Registry
) -> None:
    registry.add(Image([BULKY]))
    name = BULKY_BLOB
    data, turns = registry.blobs[name], [1 << 20, 2 << 20, len(gzip.compress(BULKY, 1, mtime=0))]

    async def breaking(request: web.Request) -> web.StreamResponse:
        return await cut(request, data, turns.pop(0), len(data))

    registry.instead(f"/blobs/{name}$", breaking)
    await host.pull(registry)
    assert not turns


async def test_an_image_that_is_removed_during_a_pull_keeps_the_layers_the_pull_counts_on(
    host: Host, registry: Registry
) -> None:
    from mooring.kit.models.image import RemoveLayers

    registry.add(Image([BASE]), "1")
    registry.add(Image([BASE, BULKY]), "2")
    await host.pull(registry)
    small = host.added[0].image
    gate = Gate(registry, BULKY_BLOB)
    pulling = asyncio.create_task(host.pull(registry, "app:2"))
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
    await host.pull(registry)
    small = host.added[0].image
    name = BULKY_BLOB
    reached, on = asyncio.Event(), asyncio.Event()

    async def wrong(request: web.Request) -> web.Response:
        reached.set()
        await on.wait()
        return web.Response(body=b"\0" * len(registry.blobs[name]))

    registry.instead(f"/blobs/{name}$", wrong)
    pulling = asyncio.create_task(host.pull(registry, "app:2"))
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

"""The image service on a real bus, with a lifecycle manager that only notes what it is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.errors import Conflict, EngineError, InvalidParameter
from mooring.kit.models.base import Done
from mooring.kit.models.image import (
    AddImage,
    ImageRecord,
    ImagesLoaded,
    ImportImage,
    LoadImages,
    RemoveLayers,
)
from mooring.kit.streams import upload
from mooring.runtime.images import service
from mooring.runtime.images.service import ImageService

from .archives import COMPRESSORS, Entry, Image, digest, docker_archive, layer, oci_archive

pytestmark = pytest.mark.kernel

BASE = layer([Entry("bin/", "dir"), Entry("bin/sh", data=b"shell", mode=0o755)])
TOP = layer([Entry("etc/motd", data=b"hello")])


class Lifecycle:
    """Answers AddImage, or refuses it."""

    def __init__(self) -> None:
        self.added: list[AddImage] = []
        self.refusal: EngineError | None = None

    async def add(self, request: AddImage) -> Done:
        if self.refusal is not None:
            raise self.refusal
        self.added.append(request)
        return Done(revision=len(self.added))


@pytest.fixture
async def lifecycle(bus: Bus) -> Lifecycle:
    lifecycle = Lifecycle()
    await bus.serve(subjects.IMAGE_ADD, AddImage, lifecycle.add)
    return lifecycle


@pytest.fixture
async def images(bus: Bus, settings: Settings, lifecycle: Lifecycle) -> AsyncIterator[ImageService]:
    images = await service.serve(bus, settings)
    yield images
    await images.close()


async def _send(
    bus: Bus, settings: Settings, data: bytes, request: LoadImages | ImportImage
) -> ImagesLoaded:
    verb = subjects.RUNTIME_IMAGE_LOAD
    if isinstance(request, ImportImage):
        verb = subjects.RUNTIME_IMAGE_IMPORT
    async with upload(bus, subjects.runtime(settings.node_id, verb), request, ImagesLoaded) as up:
        await up.write(data)
        return await up.finish()


async def _load(bus: Bus, settings: Settings, data: bytes) -> ImagesLoaded:
    return await _send(bus, settings, data, LoadImages())


def _everything(state: Path) -> set[str]:
    """Files below the store, without the job and trash directories themselves."""
    return {
        str(path.relative_to(state))
        for name in ("content/blobs", "layers", "ingest", "trash")
        for path in (state / name).rglob("*")
        if path.name not in ("sha256", "s")
    }


@pytest.mark.parametrize("turns", range(6))
async def test_a_command_that_is_given_up_at_any_moment_is_ended(turns: int) -> None:
    task = asyncio.create_task(service._command("sleep", "1000"))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    own = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not [pid for pid in own if Path(f"/proc/{pid}/comm").read_text() == "sleep\n"]


@pytest.mark.parametrize("compression", COMPRESSORS)
async def test_load_unpacks_a_docker_archive_and_has_its_images_recorded(
    bus: Bus, settings: Settings, images: ImageService, lifecycle: Lifecycle, compression: str
) -> None:
    image = Image([BASE, TOP], ["bb", "docker.io/user/app:v1"], {"Cmd": ["sh"]})
    loaded = await _load(bus, settings, docker_archive(image, compression=compression))
    assert loaded.lines == ["Loaded image: bb:latest", "Loaded image: user/app:v1"]
    assert loaded.image_ids == [image.id]
    assert loaded.revision == 1
    (added,) = lifecycle.added
    assert added.references == ["docker.io/library/bb:latest", "docker.io/user/app:v1"]
    record = added.image
    assert record.config == {"Cmd": ["sh"]}
    assert [entry.diff_id for entry in record.layers] == [digest(BASE), digest(TOP)]
    assert [entry.size for entry in record.layers] == [5, 5]
    assert record.nodes == [settings.node_id]
    motd = images.store.layer(record.layers[1].chain_id) / "fs/etc/motd"
    assert motd.read_bytes() == b"hello"
    assert not list(images.store.ingest.iterdir())


@pytest.mark.parametrize("nested", [False, True])
async def test_load_takes_an_oci_layout(
    bus: Bus, settings: Settings, images: ImageService, nested: bool
) -> None:
    image = Image([BASE, TOP], ["docker.io/library/bb:1"])
    loaded = await _load(bus, settings, oci_archive(image, nested=nested))
    assert loaded.lines == ["Loaded image: bb:1"]
    assert loaded.image_ids == [image.id]


async def test_load_takes_several_images_and_names_one_without_a_tag_by_its_id(
    bus: Bus, settings: Settings, images: ImageService, lifecycle: Lifecycle
) -> None:
    first, second = Image([BASE], ["a:1"]), Image([BASE, TOP])
    loaded = await _load(bus, settings, docker_archive(first, second))
    assert loaded.lines == ["Loaded image: a:1", f"Loaded image ID: {second.id}"]
    assert [added.image.id for added in lifecycle.added] == [first.id, second.id]


async def test_a_loaded_layer_is_on_disk_before_long(
    bus: Bus, settings: Settings, images: ImageService
) -> None:
    await _load(bus, settings, docker_archive(Image([BASE], ["a"])))
    await images.idle()
    assert not images.store.unsettled()


async def test_a_layer_that_the_host_went_down_over_is_repaired_at_the_next_start(
    bus: Bus, settings: Settings, images: ImageService, lifecycle: Lifecycle
) -> None:
    await _load(bus, settings, docker_archive(Image([BASE], ["a"])))
    await images.idle()
    directory = images.store.layer(lifecycle.added[0].image.layers[0].chain_id)
    (directory / "unsettled").write_text("another boot")
    (directory / "fs/bin/sh").write_bytes(b"")
    again = ImageService(bus, settings)
    await again.start()
    await again.idle()
    await again.close()
    assert (directory / "fs/bin/sh").read_bytes() == b"shell"
    assert not images.store.unsettled() and not list(images.store.trash.iterdir())


async def test_import_makes_an_image_of_one_layer(
    bus: Bus, settings: Settings, images: ImageService, lifecycle: Lifecycle
) -> None:
    request = ImportImage(
        reference="imported", message="by hand", changes=["CMD sh -c 'a b'"], platform="linux/arm64"
    )
    loaded = await _send(bus, settings, COMPRESSORS["xz"](BASE), request)
    (added,) = lifecycle.added
    assert loaded.lines == [added.image.id]
    assert added.action == "import"
    assert added.references == ["docker.io/library/imported:latest"]
    assert added.image.architecture == "arm64"
    assert added.image.config == {"Cmd": ["/bin/sh", "-c", "sh -c 'a b'"]}
    assert added.image.history[0].comment == "by hand"
    assert added.image.layers[0].diff_id == digest(BASE)
    # xz is no encoding of OCI layers, so the layer is kept decompressed.
    assert images.store.blob(digest(BASE)).read_bytes() == BASE


def _nested(depth: int) -> list[object]:
    found: list[object] = []
    for _ in range(depth):
        found = [found]
    return found


BAD = {
    "nothing": (b"", "open manifest.json: no such file or directory"),
    "no archive": (b"x" * 2048, "archive/tar: invalid tar header"),
    "no image": (layer([Entry("bin/sh")]), "open manifest.json: no such file or directory"),
    "cut": (docker_archive(Image([BASE]))[:5000], "unexpected EOF"),
    "cut gzip": (COMPRESSORS["gzip"](docker_archive(Image([BASE])))[:-20], "unexpected EOF"),
    "cut zstd": (COMPRESSORS["zstd"](docker_archive(Image([BASE])))[:-20], "unexpected EOF"),
    "a bad name": (docker_archive(Image([BASE], ["Bad:x"])), "must be lowercase"),
    "another system": (
        docker_archive(Image([BASE], extra={"os": "windows"})),
        'image operating system "windows" cannot be used on this platform',
    ),
    "a wrong digest": (
        docker_archive(
            Image([BASE], extra={"rootfs": {"diff_ids": ["sha256:" + "1" * 64]}}),
        ),
        "invalid diffID for layer 0: expected",
    ),
    "a bad digest": (
        docker_archive(Image([BASE], extra={"rootfs": {"diff_ids": ["../../etc"]}})),
        "invalid checksum digest format",
    ),
    "too few layers": (
        docker_archive(Image([BASE], extra={"rootfs": {"diff_ids": []}})),
        "invalid manifest, layers length mismatch: expected 0, got 1",
    ),
    "a config of wrong types": (
        docker_archive(Image([BASE], extra={"history": 5})),
        "invalid image config: history",
    ),
    "labels that are none": (
        docker_archive(Image([BASE], config={"Labels": ["a"]})),
        "invalid image config: Labels",
    ),
    "variables that are none": (
        docker_archive(Image([BASE], config={"Env": "A=1"})),
        "invalid image config: Env",
    ),
    "a number that is too large": (
        docker_archive(Image([BASE], config={"X": 10**400})),
        "invalid image config: Integer value out of range",
    ),
    "text that is none": (
        docker_archive(Image([BASE], config={"Labels": {"a": "\ud800"}})),
        "invalid image config",
    ),
    "a config too deep": (
        docker_archive(Image([BASE], config={"X": _nested(400)})),
        "invalid image config",
    ),
    "a config deeper still": (
        docker_archive(Image([BASE], config={"X": _nested(900)})),
        "invalid image config: it is nested too deeply",
    ),
    "a config too large": (
        docker_archive(Image([BASE], config={"Labels": {"a": "x" * (1 << 20)}})),
        "invalid image config: it is larger than 1048576 bytes",
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_load_refuses_a_bad_archive_and_leaves_nothing(
    bus: Bus, settings: Settings, images: ImageService, name: str
) -> None:
    data, words = BAD[name]
    before = _everything(settings.state_dir)
    with pytest.raises(InvalidParameter, match=words):
        await _load(bus, settings, data)
    await images.idle()
    assert _everything(settings.state_dir) == before


async def test_load_takes_out_what_it_stored_when_the_image_is_not_recorded(
    bus: Bus, settings: Settings, images: ImageService, lifecycle: Lifecycle
) -> None:
    await _load(bus, settings, docker_archive(Image([BASE], ["a"])))
    await images.idle()
    before = _everything(settings.state_dir)
    lifecycle.refusal = Conflict("no")
    with pytest.raises(Conflict):
        await _load(bus, settings, docker_archive(Image([BASE, TOP], ["b"])))
    await images.idle()
    assert _everything(settings.state_dir) == before


async def test_an_upload_that_is_broken_off_leaves_nothing(
    bus: Bus, settings: Settings, images: ImageService
) -> None:
    before = _everything(settings.state_dir)
    subject = subjects.runtime(settings.node_id, subjects.RUNTIME_IMAGE_LOAD)
    async with upload(bus, subject, LoadImages(), ImagesLoaded) as up:
        await up.write(docker_archive(Image([BASE]))[:5000])
        (receiving,) = (t for t in asyncio.all_tasks() if t.get_name() == f"upload {subject}")
    await receiving
    await images.idle()
    assert _everything(settings.state_dir) == before


async def test_remove_keeps_the_layers_that_others_need(
    bus: Bus, settings: Settings, images: ImageService, lifecycle: Lifecycle
) -> None:
    before = _everything(settings.state_dir)
    await _load(bus, settings, docker_archive(Image([BASE]), Image([BASE, TOP])))
    small, large = (added.image for added in lifecycle.added)
    subject = subjects.runtime(settings.node_id, subjects.RUNTIME_IMAGE_REMOVE)
    keep = [small.layers[0].chain_id]
    await bus.request(subject, RemoveLayers(image=large, keep=keep), Done)
    assert images.store.has_layer(small.layers[0].chain_id)
    assert not images.store.has_layer(large.layers[1].chain_id)
    await bus.request(subject, RemoveLayers(image=small), Done)
    await bus.request(subject, RemoveLayers(image=small), Done)
    await images.idle()
    assert _everything(settings.state_dir) == before


async def test_a_new_service_undoes_what_a_killed_one_left(
    bus: Bus, settings: Settings, images: ImageService, lifecycle: Lifecycle
) -> None:
    await _load(bus, settings, docker_archive(Image([BASE], ["a"])))
    kept = lifecycle.added[0].image
    records = await bus.bucket(subjects.BUCKET_IMAGES, ImageRecord)
    await records.create(kept.id[7:], kept)
    await images.idle()
    before = _everything(settings.state_dir)
    os.mkdir(images.store.ingest / "0123")
    orphan = layer([Entry("x", data=b"y")])
    (images.store.ingest / "0123" / "pending").write_text(
        f"blob {kept.id}\nlayer {kept.layers[0].chain_id}\nblob {digest(orphan)}\nlayer sha25"
    )
    images.store.blob(digest(orphan)).write_bytes(orphan)
    again = ImageService(bus, settings)
    await again.start()
    await again.idle()
    await again.close()
    assert _everything(settings.state_dir) == before


async def test_a_sweep_takes_out_what_is_old_and_no_images(
    bus: Bus, settings: Settings, images: ImageService, lifecycle: Lifecycle
) -> None:
    await _load(bus, settings, docker_archive(Image([BASE], ["a"])))
    kept = lifecycle.added[0].image
    records = await bus.bucket(subjects.BUCKET_IMAGES, ImageRecord)
    await records.create(kept.id[7:], kept)
    await images.idle()
    before = _everything(settings.state_dir)
    await _load(bus, settings, docker_archive(Image([BASE, TOP], ["b"])))
    lost = lifecycle.added[1].image
    images._added.clear()
    assert await images.sweep() == ([], [])
    found = await images.sweep(age=-1.0)
    assert found == ([lost.layers[1].chain_id], [lost.id])
    await images.idle()
    assert _everything(settings.state_dir) == before


@pytest.mark.parametrize("doubt", ["no image is on record", "a job is under way"])
async def test_a_sweep_in_doubt_takes_out_nothing(
    bus: Bus, settings: Settings, images: ImageService, lifecycle: Lifecycle, doubt: str
) -> None:
    await _load(bus, settings, docker_archive(Image([BASE], ["a"])))
    await images.idle()
    images._added.clear()
    if doubt == "a job is under way":
        records = await bus.bucket(subjects.BUCKET_IMAGES, ImageRecord)
        other = lifecycle.added[0].image.model_copy(update={"layers": []})
        await records.create(other.id[7:], other)
        images.store.new_job()
    before = _everything(settings.state_dir)
    assert await images.sweep(age=-1.0) == ([], [])
    assert _everything(settings.state_dir) == before

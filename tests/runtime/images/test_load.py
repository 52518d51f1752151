"""Loading into a store, without the bus: layouts of archives, layers that are shared or implied."""

from __future__ import annotations

import io
import json
import os
import stat
from pathlib import Path

import pytest

from mooring.runtime.images.incoming import Incoming
from mooring.runtime.images.load import LoadedImage, load, receive_archive
from mooring.runtime.images.repair import repair
from mooring.runtime.images.rootfs import ImportOptions, import_rootfs, receive_rootfs
from mooring.runtime.images.store import ImageStore, chain_ids
from mooring.runtime.images.unpack import BadArchive, Limits

from .archives import Entry, Image, archive, digest, docker_archive, layer, oci_archive

pytestmark = pytest.mark.kernel

BASE = layer(
    [
        Entry("home/app/", "dir", mode=0o750, uid=5, gid=6, mtime=1_600_000_000),
        Entry("home/app/old", data=b"old"),
    ]
)
TOP = layer([Entry("home/app/new", data=b"new")])


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    store = ImageStore(tmp_path)
    store.prepare()
    return store


def _load(store: ImageStore, data: bytes) -> list[LoadedImage]:
    job = store.new_job()
    incoming = Incoming(job, Limits())
    received = receive_archive(io.BytesIO(data).read, store, job, incoming)
    images = load(received, store, job, incoming, "amd64")
    store.discard(job)
    return images


def test_an_implied_directory_looks_as_it_does_below(store: ImageStore) -> None:
    (image,) = _load(store, docker_archive(Image([BASE, TOP])))
    below, above = (store.layer(info.chain_id) / "fs/home/app" for info in image.layers)
    found, expected = os.stat(above), os.stat(below)
    assert stat.S_IMODE(found.st_mode) == 0o750
    assert (found.st_uid, found.st_gid) == (5, 6)
    assert found.st_mtime_ns == expected.st_mtime_ns


def test_the_old_layout_with_links_between_its_layers(store: ImageStore) -> None:
    """Before Docker 25 a layer that came twice was a link to the first."""
    image = Image([BASE, TOP, BASE])
    files = {"a/layer.tar": BASE, "b/layer.tar": TOP, "config.json": image.json}
    manifest = [
        {
            "Config": "config.json",
            "RepoTags": ["bb:1"],
            "Layers": ["a/layer.tar", "./b/layer.tar", "c/layer.tar"],
        }
    ]
    files["manifest.json"] = json.dumps(manifest).encode()
    (loaded,) = _load(store, archive(files, {"c/layer.tar": "../a/layer.tar"}))
    assert [info.diff_id for info in loaded.layers] == [digest(BASE), digest(TOP), digest(BASE)]
    assert [info.chain_id for info in loaded.layers] == chain_ids(
        [digest(BASE), digest(TOP), digest(BASE)]
    )
    # One blob serves both layers that are made of it, until the last is gone.
    store.remove_layer(loaded.layers[2].chain_id)
    assert store.blob(digest(BASE)).exists()
    store.remove_layer(loaded.layers[0].chain_id)
    assert not store.blob(digest(BASE)).exists()


def test_a_layer_that_is_unpacked_before_the_archive_is_whole_holds_nothing_open(
    store: ImageStore,
) -> None:
    job = store.new_job()
    incoming = Incoming(job, Limits())
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        pieces = iter([layer([Entry(f"f{number}")])])
        assert incoming.receive(job / str(number), lambda p=pieces: next(p, b"")) is None
        for child in incoming._running.values():
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert len(os.listdir("/proc/self/fd")) - before <= 4
    assert len(dict(incoming.results())) == 20


def test_links_in_a_circle_are_a_missing_file(store: ImageStore) -> None:
    with pytest.raises(BadArchive, match=r"open manifest\.json: no such file or directory"):
        _load(store, archive({}, {"manifest.json": "a", "a": "manifest.json"}))


def test_a_layer_that_is_here_already_need_not_be_in_the_archive(store: ImageStore) -> None:
    first, second = Image([BASE]), Image([BASE, TOP])
    manifest = [{"Config": "config.json", "Layers": ["", "top.tar"]}]
    data = archive(
        {
            "config.json": second.json,
            "top.tar": TOP,
            "manifest.json": json.dumps(manifest).encode(),
        }
    )
    with pytest.raises(BadArchive, match="open : no such file or directory"):
        _load(store, data)
    _load(store, docker_archive(first))
    (loaded,) = _load(store, data)
    assert loaded.id == second.id


def test_what_is_stored_is_found_by_its_digest(store: ImageStore) -> None:
    (image,) = _load(store, oci_archive(Image([BASE, TOP]), compression="zstd"))
    assert json.loads(store.read_blob(image.id)) == image.config
    for info in image.layers:
        assert info.compression == "zstd"
        assert digest(store.blob(info.blob).read_bytes()) == info.blob


def test_an_oci_blob_with_another_digest_is_refused(store: ImageStore) -> None:
    data = bytearray(oci_archive(Image([BASE])))
    data[data.index(b'"architecture"') + 1] = ord("A")
    with pytest.raises(BadArchive, match="the archive is damaged"):
        _load(store, bytes(data))


def test_an_oci_name_that_is_only_a_tag_names_nothing(store: ImageStore) -> None:
    data = oci_archive(Image([BASE], ["x:1"]))
    for name, expected in ((b"latest", ()), (b"reg.io/app:2", ("reg.io/app:2",))):
        annotation = b'"org.opencontainers.image.ref.name": "' + name + b'"'
        files = _files(data)
        files["index.json"] = files["index.json"].replace(
            b'"io.containerd.image.name": "x:1"', annotation
        )
        assert _load(store, archive(files))[0].references == expected


def _files(data: bytes) -> dict[str, bytes]:
    import tarfile

    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        opened = ((member.name, tar.extractfile(member)) for member in tar.getmembers())
        return {name: file.read() for name, file in opened if file is not None}


def test_layers_that_the_host_went_down_over_are_unpacked_again(store: ImageStore) -> None:
    (image,) = _load(store, docker_archive(Image([BASE, TOP])))
    assert store.doubtful() == []
    below, above = (store.layer(info.chain_id) for info in image.layers)
    for layer_directory in (below, above):
        (layer_directory / "unsettled").write_text("another boot")
    (below / "fs/home/app/old").write_bytes(b"")
    (above / "fs/home/app/new").unlink()
    assert repair(store, store.new_job()) == []
    assert (below / "fs/home/app/old").read_bytes() == b"old"
    assert (above / "fs/home/app/new").read_bytes() == b"new"
    assert os.stat(above / "fs/home/app").st_uid == 5
    assert store.doubtful() == []


def test_a_layer_whose_blob_is_damaged_too_is_named_and_loses_the_blob(
    store: ImageStore,
) -> None:
    (image,) = _load(store, docker_archive(Image([BASE])))
    (info,) = image.layers
    store.blob(info.blob).write_bytes(TOP)
    (store.layer(info.chain_id) / "unsettled").write_text("another boot")
    assert repair(store, store.new_job()) == [info.chain_id]
    assert store.has_layer(info.chain_id)
    assert not store.blob(info.blob).exists()


def test_an_import_keeps_only_what_was_said(store: ImageStore) -> None:
    job = store.new_job()
    options = ImportOptions(changes=("ENV A=1",), architecture="arm64", variant="v8")
    incoming = Incoming(job, Limits())
    rootfs = receive_rootfs(io.BytesIO(BASE).read, job, incoming)
    image = import_rootfs(rootfs, options, store, job, incoming)
    assert image.config["config"] == {"Env": ["A=1"]}
    assert image.config["variant"] == "v8"
    assert image.config["rootfs"]["diff_ids"] == [digest(BASE)]
    assert image.layers[0].chain_id == digest(BASE)


def test_a_change_that_is_none_is_refused(store: ImageStore) -> None:
    job = store.new_job()
    incoming = Incoming(job, Limits())
    rootfs = receive_rootfs(io.BytesIO(BASE).read, job, incoming)
    with pytest.raises(BadArchive, match="run is not a valid change command"):
        import_rootfs(rootfs, ImportOptions(changes=("RUN x",)), store, job, incoming)
    incoming.abort()
    assert not list(store.all_layers())

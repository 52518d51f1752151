"""Snapshots: two directories over an image's layers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mooring.kit.errors import EngineError
from mooring.kit.models.image import ImageRecord, Layer
from mooring.runtime.images.store import ImageStore, LayerInfo
from mooring.runtime.snapshots import Snapshots

CHAINS = ["sha256:" + digit * 64 for digit in "12"]


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    store = ImageStore(tmp_path)
    store.prepare()
    for chain_id in CHAINS:
        built = store.new_job() / "layer"
        (built / "fs").mkdir(parents=True)
        (built / "fs" / "who").write_text(chain_id)
        store.add_layer(built, LayerInfo(chain_id, chain_id, chain_id, "", 5))
    return store


@pytest.fixture
def image() -> ImageRecord:
    layers = [Layer(diff_id=chain_id, chain_id=chain_id) for chain_id in CHAINS]
    return ImageRecord(id="sha256:" + "a" * 64, layers=layers)


def test_the_uppermost_layer_comes_first(
    tmp_path: Path, store: ImageStore, image: ImageRecord
) -> None:
    overlay = Snapshots(tmp_path).prepare("c0ffee", image)
    init, *lowers = overlay.lowers
    assert [Path(lower, "who").read_text() for lower in lowers] == CHAINS[::-1]
    assert Path(init).resolve() == store.layer(CHAINS[1]) / "init"
    assert overlay.upper == str(tmp_path / "containers/c0ffee/upper")
    assert Path(overlay.upper).is_dir() and Path(overlay.work).is_dir()


def test_prepare_can_be_repeated(tmp_path: Path, store: ImageStore, image: ImageRecord) -> None:
    snapshots = Snapshots(tmp_path)
    first = snapshots.prepare("c0ffee", image)
    Path(first.upper, "kept").touch()
    assert snapshots.prepare("c0ffee", image) == first
    assert Path(first.upper, "kept").exists()


def test_a_lost_short_link_is_made_again(
    tmp_path: Path, store: ImageStore, image: ImageRecord
) -> None:
    for link in store.short.iterdir():
        link.unlink()
    assert Path(Snapshots(tmp_path).lowers(image)[1], "who").read_text() == CHAINS[1]


def test_two_layers_whose_digits_begin_alike_are_told_apart(
    tmp_path: Path, store: ImageStore, image: ImageRecord
) -> None:
    alike = CHAINS[0][:-1] + "f"
    built = store.new_job() / "layer"
    (built / "fs").mkdir(parents=True)
    (built / "fs" / "who").write_text(alike)
    store.add_layer(built, LayerInfo(alike, alike, alike, "", 5))
    image.layers[0] = Layer(diff_id=alike, chain_id=alike)
    assert Path(Snapshots(tmp_path).lowers(image)[2], "who").read_text() == alike


def test_a_missing_layer_is_named(tmp_path: Path, store: ImageStore, image: ImageRecord) -> None:
    store.remove_layer(CHAINS[0])
    with pytest.raises(EngineError, match=f"layer {CHAINS[0]} is not unpacked here"):
        Snapshots(tmp_path).prepare("c0ffee", image)


def test_remove_moves_the_snapshot_into_the_trash(
    tmp_path: Path, store: ImageStore, image: ImageRecord
) -> None:
    snapshots = Snapshots(tmp_path)
    overlay = snapshots.prepare("c0ffee", image)
    snapshots.remove("c0ffee")
    snapshots.remove("c0ffee")
    assert not Path(overlay.upper).exists() and not Path(overlay.work).exists()
    assert len(list(store.trash.iterdir())) == 2


def test_size_counts_a_file_with_several_names_once(
    tmp_path: Path, store: ImageStore, image: ImageRecord
) -> None:
    snapshots = Snapshots(tmp_path)
    upper = Path(snapshots.prepare("c0ffee", image).upper)
    (upper / "a" / "b").mkdir(parents=True)
    (upper / "a" / "b" / "file").write_bytes(b"x" * 1000)
    (upper / "small").write_bytes(b"x" * 10)
    os.link(upper / "small", upper / "a" / "again")
    assert snapshots.size("c0ffee") == 1010
    assert snapshots.size("beef") == 0


def test_the_upper_root_looks_like_the_image_s(
    tmp_path: Path, store: ImageStore, image: ImageRecord
) -> None:
    root = Path(store.lower(CHAINS[1]))
    os.chown(root, 12, 34)
    root.chmod(0o1777)
    os.setxattr(root, "user.colour", b"blue")
    os.utime(root, ns=(5, 7))
    snapshots = Snapshots(tmp_path)
    upper = Path(snapshots.prepare("c0ffee", image).upper)
    found = upper.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (12, 34, 0o1777)
    assert os.getxattr(upper, "user.colour") == b"blue"
    assert found.st_mtime_ns == 7
    # What the container makes of it is its own.
    upper.chmod(0o700)
    snapshots.prepare("c0ffee", image)
    assert upper.stat().st_mode & 0o7777 == 0o700


def test_an_init_layer_that_cannot_be_made_is_done_without(
    tmp_path: Path, store: ImageStore, image: ImageRecord
) -> None:
    (store.layer(CHAINS[1]) / "init").touch()
    jobs = list(store.ingest.iterdir())
    assert len(Snapshots(tmp_path).lowers(image)) == 2
    assert list(store.ingest.iterdir()) == jobs


@pytest.mark.kernel
def test_an_overlay_mounts_what_prepare_returns(
    tmp_path: Path, store: ImageStore, image: ImageRecord
) -> None:
    overlay = Snapshots(tmp_path).prepare("c0ffee", image)
    target = tmp_path / "mnt"
    target.mkdir()
    options = f"lowerdir={':'.join(overlay.lowers)},upperdir={overlay.upper},workdir={overlay.work}"
    script = f"mount -t overlay overlay -o {options} {target} && cat {target}/who"
    shown = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], check=True, capture_output=True, text=True
    )
    assert shown.stdout == CHAINS[1]

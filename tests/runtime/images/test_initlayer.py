"""The init layer: what an image lacks, and nothing that it has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mooring.runtime.images import initlayer
from mooring.runtime.images.store import ImageStore, LayerInfo

CHAIN = "sha256:" + "1" * 64


def entries(directory: Path) -> set[str]:
    """Every path below a directory."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """Two empty layers, uppermost first."""
    made = [tmp_path / "upper", tmp_path / "lower"]
    for layer in made:
        layer.mkdir()
    return made


def made_for(layers: list[Path]) -> Path:
    """The init layer of these."""
    target = layers[0].parent / "init"
    initlayer.make(target, [str(layer) for layer in layers])
    return target


def test_an_empty_image_lacks_everything(layers: list[Path]) -> None:
    init = made_for(layers)
    files = {"etc/hosts", "etc/hostname", "etc/resolv.conf", ".dockerenv", "dev/console"}
    directories = {"dev", "dev/pts", "dev/shm", "proc", "sys", "etc"}
    assert entries(init) == files | directories | {"etc/mtab"}
    assert all((init / name).is_file() for name in files)
    assert os.readlink(init / "etc/mtab") == "/proc/mounts"


def test_what_the_image_has_is_not_touched(layers: list[Path]) -> None:
    upper, lower = layers
    for name in ("dev/pts", "dev/shm", "proc", "sys"):
        (lower / name).mkdir(parents=True)
    (lower / "dev/console").touch()
    (upper / "etc").mkdir()
    (upper / "etc/mtab").touch()
    (lower / "etc").mkdir()
    (lower / "etc/hosts").symlink_to("elsewhere")
    assert entries(made_for(layers)) == {".dockerenv", "etc", "etc/hostname", "etc/resolv.conf"}


def test_a_link_or_a_file_in_the_place_of_a_directory_stays(layers: list[Path]) -> None:
    upper, lower = layers
    (lower / "usr/etc").mkdir(parents=True)
    (lower / "etc").symlink_to("usr/etc")
    (lower / "proc").symlink_to("nowhere")
    (upper / "dev").touch()
    assert entries(made_for(layers)) == {".dockerenv", "sys"}


def test_what_an_upper_layer_has_deleted_is_missing(layers: list[Path]) -> None:
    upper, lower = layers
    (lower / "sys").mkdir()
    os.mknod(upper / "sys", 0o020000, 0)
    assert "sys" in entries(made_for(layers))


def test_directories_that_the_image_has_keep_their_attributes(layers: list[Path]) -> None:
    upper, lower = layers
    (lower / "etc").mkdir(mode=0o700)
    os.setxattr(lower / "etc", "user.colour", b"blue")
    os.setxattr(upper, "trusted.overlay.opaque", b"x")
    os.chown(lower / "etc", 12, 34)
    upper.chmod(0o1777)
    for path in (lower / "etc", upper):
        os.utime(path, ns=(5, 7))
    init = made_for(layers)
    etc = (init / "etc").stat()
    assert (etc.st_uid, etc.st_gid, etc.st_mode & 0o7777, etc.st_mtime_ns) == (12, 34, 0o700, 7)
    assert os.getxattr(init / "etc", "user.colour") == b"blue"
    assert (init.stat().st_mode & 0o7777, init.stat().st_mtime_ns) == (0o1777, 7)
    assert os.listxattr(init) == []


def test_it_is_made_once_and_goes_with_its_layer(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    store.prepare()
    built = store.new_job() / "layer"
    (built / "fs").mkdir(parents=True)
    store.add_layer(built, LayerInfo(CHAIN, CHAIN, CHAIN, "", 0))
    lowers = [store.lower(CHAIN)]
    path = Path(initlayer.ensure(store, CHAIN, lowers))
    inode = path.stat().st_ino
    assert path.resolve() == store.layer(CHAIN) / "init"
    assert Path(initlayer.ensure(store, CHAIN, lowers)).stat().st_ino == inode
    store.remove_layer(CHAIN)
    assert not (store.layer(CHAIN)).exists()
    with pytest.raises(FileNotFoundError):
        initlayer.ensure(store, CHAIN, lowers)

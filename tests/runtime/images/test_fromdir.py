"""Layers from directories: what an overlay's upper directory says arrives in the layer."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from mooring.runtime.images.fromdir import layer_from_directory
from mooring.runtime.images.pack import pack
from mooring.runtime.images.store import ImageStore, LayerInfo
from mooring.runtime.images.unpack import Job, start

pytestmark = pytest.mark.kernel

CAPABILITY = b"\x01\x00\x00\x02\x00\x20" + bytes(14)
OPAQUE = "trusted.overlay.opaque"


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    store = ImageStore(tmp_path / "state")
    store.prepare()
    return store


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    """What a container might leave."""
    upper = tmp_path / "state" / "upper"
    upper.mkdir(parents=True)
    (upper / "etc").mkdir()
    os.mknod(upper / "etc/gone", stat.S_IFCHR, 0)
    (upper / "fresh").mkdir(mode=0o2750)
    os.chmod(upper / "fresh", 0o2750)
    os.setxattr(upper / "fresh", OPAQUE, b"y")
    os.setxattr(upper / "fresh", "trusted.overlay.impure", b"y")
    program = upper / "fresh/program"
    program.write_bytes(b"program")
    os.chown(program, 3_000_000, 7)
    program.chmod(0o4755)
    os.setxattr(program, "security.capability", CAPABILITY)
    os.setxattr(program, "user.mine", b"\n\0=")
    os.setxattr(program, "trusted.overlay.origin", b"x")
    os.link(program, upper / "hard")
    os.utime(program, ns=(1, 1_234_567_890_123_456_789))
    (upper / "link").symlink_to("/nowhere/" + "x" * 200)
    os.mknod(upper / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(upper / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(upper / "socket"))
    long = upper / ("d" * 90) / ("e" * 90)
    long.mkdir(parents=True)
    (long / "f").write_bytes(b"f")
    (upper / ("n" * 200)).write_bytes(b"n")
    (upper / os.fsdecode(b"odd\n\xff")).write_bytes(b"odd")
    with open(upper / "sparse", "wb") as file:
        file.write(b"start")
        file.truncate(20 << 20)
    with open(upper / "holes", "wb") as file:
        file.seek(5 << 20)
        file.write(b"x" * 5000)
    return upper


def described(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything below a directory, as it looks in a layer."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        if stat.S_ISSOCK(path.lstat().st_mode):
            continue
        status = path.lstat()
        is_link = stat.S_ISLNK(status.st_mode)
        whiteout = stat.S_ISCHR(status.st_mode) and not status.st_rdev
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
            if name == OPAQUE or not name.startswith("trusted.overlay.")
        }
        found[str(path.relative_to(root))] = (
            status.st_mode, status.st_uid, status.st_gid, status.st_rdev,
            0 if whiteout else status.st_mtime_ns,
            status.st_nlink if stat.S_ISREG(status.st_mode) else 0,
            os.readlink(path) if is_link else "",
            path.read_bytes() if stat.S_ISREG(status.st_mode) else b"",
            attributes,
        )  # fmt: skip
    return found


@pytest.mark.parametrize("move", [False, True])
def test_a_layer_is_what_the_upper_directory_says(
    store: ImageStore, upper: Path, move: bool
) -> None:
    expected = described(upper)
    info = layer_from_directory(store, store.new_job(), upper, move=move)
    assert info is not None
    files = store.layer(info.chain_id) / "fs"
    assert described(files) == expected
    assert os.listxattr(files / "fresh/program") == ["security.capability", "user.mine"]
    assert os.stat(files / "sparse").st_blocks * 512 < 1 << 20
    assert upper.exists() is not move
    assert info.blob == info.diff_id
    assert info.compression == ""


def test_copied_and_moved_are_the_same_layer(store: ImageStore, upper: Path) -> None:
    copied = layer_from_directory(store, store.new_job(), upper)
    moved = layer_from_directory(store, store.new_job(), upper, move=True)
    assert copied == moved
    assert copied is not None
    assert copied.size == sum(
        path.stat().st_size for path in _regular_files(store.layer(copied.chain_id) / "fs")
    )


def _regular_files(root: Path) -> list[Path]:
    """Each file once, whatever links it has."""
    found = {p.lstat().st_ino: p for p in root.rglob("*") if stat.S_ISREG(p.lstat().st_mode)}
    return list(found.values())


def test_gnu_tar_reads_what_is_written(upper: Path, tmp_path: Path) -> None:
    archive, out = tmp_path / "layer.tar", tmp_path / "out"
    out.mkdir()
    with open(archive, "wb") as file:
        pack(upper, file.write, upper=True)
    subprocess.run(["tar", "-xf", archive, "-C", out, "--numeric-owner"], check=True)
    assert (out / "etc/.wh.gone").exists()
    assert (out / "fresh/.wh..wh..opq").exists()
    assert (out / "sparse").read_bytes() == (upper / "sparse").read_bytes()
    assert (out / "fresh/program").stat().st_uid == 3_000_000
    assert (out / "fresh/program").stat().st_mtime_ns == 1_234_567_890_123_456_789
    assert (out / ("d" * 90) / ("e" * 90) / "f").read_bytes() == b"f"


def test_the_tar_of_a_layer_unpacks_to_the_same_layer(upper: Path, tmp_path: Path) -> None:
    archive = tmp_path / "layer.tar"
    with open(archive, "wb") as file:
        packed = pack(upper, file.write, upper=True)
    result = start(Job(str(archive), str(tmp_path / "layer"))).finish()
    assert described(tmp_path / "layer/fs") == described(upper)
    assert result.size == packed.size


def test_nothing_written_is_no_layer(store: ImageStore, tmp_path: Path) -> None:
    empty = tmp_path / "state/empty"
    empty.mkdir()
    assert layer_from_directory(store, store.new_job(), empty) is None
    assert list(store.all_layers()) == []


def test_a_root_directory_that_was_changed_is_part_of_the_layer(
    store: ImageStore, tmp_path: Path
) -> None:
    def made(name: str, mode: int, *lowers: str) -> LayerInfo | None:
        directory = tmp_path / "state" / name
        directory.mkdir()
        (directory / name).touch()
        directory.chmod(mode)
        return layer_from_directory(store, store.new_job(), directory, lowers=lowers)

    below = made("below", 0o711)
    assert below is not None
    same = made("same", 0o711, below.chain_id)
    other = made("other", 0o700, below.chain_id)
    assert same is not None and other is not None
    modes = [
        stat.S_IMODE((store.layer(info.chain_id) / "fs").stat().st_mode)
        for info in (below, same, other)
    ]
    assert modes == [0o711, 0o711, 0o700]
    assert same.parent == below.chain_id

"""Archives of directories, read back by the standard library's tarfile."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from mooring.runtime.archive.locating import absolute, base
from mooring.runtime.archive.packing import Packer

pytestmark = pytest.mark.kernel


def packed(path: Path, shown: str = "") -> tarfile.TarFile:
    """The archive of what is at a path."""
    with open(path.parent / "archive", "w+b") as out:
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            Packer(out.fileno()).pack(directory, path.name, shown or path.name)
        finally:
            os.close(directory)
        out.seek(0)
        return tarfile.open(fileobj=io.BytesIO(out.read()))


def test_odd_names_owners_and_sizes_are_kept(tmp_path: Path) -> None:
    top = tmp_path / "top"
    deep = top / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    names = ["f" * 200, "new\nline", "umläut", os.fsdecode(b"\xff\xfe")]
    for name in names:
        (deep / name).write_text(name[:3], errors="surrogateescape")
    os.chown(deep / names[0], 3_000_000, 4_000_000)
    (top / "large").write_bytes(os.urandom(300_000))
    (top / "link").symlink_to("x" * 150)
    os.utime(top / "large", (5, -5))
    with packed(top) as tar:
        prefix = f"top/{'d' * 60}/{'e' * 60}/"
        for name in names:
            file = tar.extractfile(prefix + name)
            assert file is not None
            assert file.read() == os.fsencode(name[:3])
        first = tar.getmember(prefix + names[0])
        assert (first.uid, first.gid) == (3_000_000, 4_000_000)
        large = tar.extractfile("top/large")
        assert large is not None and large.read() == (top / "large").read_bytes()
        assert tar.getmember("top/large").mtime == -5
        assert tar.getmember("top/link").linkname == "x" * 150


def test_kinds_of_files_and_hard_links(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    (top / "a").write_text("x")
    os.link(top / "a", top / "b")
    os.mkfifo(top / "pipe")
    os.mknod(top / "null", 0o20666, os.makedev(1, 3))
    os.symlink("a", top / "sym")
    os.link(top / "sym", top / "sym2", follow_symlinks=False)
    with packed(top) as tar:
        kinds = {member.name: (member.type, member.linkname) for member in tar}
        device = tar.getmember("top/null")
    assert kinds["top/b"] == (tarfile.LNKTYPE, "top/a")
    assert kinds["top/sym2"] == (tarfile.LNKTYPE, "top/sym")
    assert kinds["top/pipe"][0] == tarfile.FIFOTYPE
    assert (device.devmajor, device.devminor) == (1, 3)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 65536, 65537, 1_000_001])
def test_a_single_file_of_any_size(tmp_path: Path, size: int) -> None:
    (tmp_path / "f").write_bytes(os.urandom(size))
    with packed(tmp_path / "f", "shown") as tar:
        file = tar.extractfile("shown")
        assert file is not None and file.read() == (tmp_path / "f").read_bytes()


@pytest.mark.parametrize(
    ("path", "expected", "name"),
    [
        ("a", "/a", "a"),
        ("/a/b/", "/a/b/", "b"),
        ("/a/b/.", "/a/b/.", "."),
        ("../../x", "/x", "x"),
        ("/", "/", "/"),
        (".", "/.", "."),
        ("//a//b", "/a/b", "b"),
        ("/a/..", "/", "/"),
    ],
)
def test_a_path_as_it_is_written(path: str, expected: str, name: str) -> None:
    assert (absolute(path), base(absolute(path))) == (expected, name)

"""Layers unpacked for real: what they hold arrives whole, and nothing gets out of them."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from mooring.runtime.images.unpack import BadArchive, Job, Unpacked, start

from .archives import COMPRESSORS, Entry, digest, layer

pytestmark = pytest.mark.kernel

CAPABILITY = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"


class Layer:
    """A place to unpack into, and an outside that must stay as it is."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = root / "layer" / "fs"
        self.outside = root / "outside"
        self.outside.mkdir()
        (self.outside / "file").write_text("untouched")

    def unpack(self, data: bytes) -> Unpacked:
        blob = self.root / "blob"
        blob.write_bytes(data)
        return start(Job(blob=str(blob), target=str(self.files.parent))).finish()

    def assert_contained(self) -> None:
        """Nothing appeared or changed beside the layer."""
        assert sorted(os.listdir(self.root)) == ["blob", "layer", "outside"]
        assert os.listdir(self.root / "layer") == ["fs"]
        assert os.listdir(self.outside) == ["file"]
        assert (self.outside / "file").read_text() == "untouched"


@pytest.fixture
def target(tmp_path: Path) -> Layer:
    return Layer(tmp_path)


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_a_layer_arrives_with_all_its_attributes(target: Layer, compression: str) -> None:
    data = layer(
        [
            Entry("./", "dir", mode=0o711),
            Entry("./bin/", "dir", mode=0o2755, gid=7),
            Entry(
                "./bin/su",
                data=b"program",
                mode=0o4755,
                uid=8,
                gid=9,
                mtime=1234567890,
                pax={
                    "SCHILY.xattr.security.capability": CAPABILITY.decode("latin-1"),
                    "mtime": "1234567890.123456789",
                },
            ),
            Entry("./bin/inherits", data=b"x"),
            Entry("./bin/sudo", "link", link="./bin/su"),
            Entry("./sh", "symlink", link="/bin/sh", uid=3),
            Entry("./tmp", "dir", mode=0o1777),
            Entry("./null", "char", device=(1, 3), mode=0o666),
            Entry("./sda", "block", device=(8, 0), mode=0o660, gid=6),
            Entry("./pipe", "fifo", mode=0o622),
        ]
    )
    result = target.unpack(COMPRESSORS[compression](data))
    assert result.diff_id == digest(data)
    assert result.size == len(b"program") + 1
    assert result.implied == ()
    su = os.stat(target.files / "bin/su")
    assert stat.S_IMODE(su.st_mode) == 0o4755
    assert (su.st_uid, su.st_gid, su.st_nlink) == (8, 9, 2)
    assert su.st_mtime_ns == 1234567890_123456789
    assert os.getxattr(target.files / "bin/su", "security.capability") == CAPABILITY
    assert stat.S_IMODE(os.stat(target.files / "bin").st_mode) == 0o2755
    assert os.stat(target.files / "bin").st_mtime == 1_700_000_000
    assert os.stat(target.files / "bin/inherits").st_gid == 0
    assert stat.S_IMODE(os.stat(target.files).st_mode) == 0o711
    assert stat.S_IMODE(os.stat(target.files / "tmp").st_mode) == 0o1777
    assert os.readlink(target.files / "sh") == "/bin/sh"
    assert os.lstat(target.files / "sh").st_uid == 3
    assert os.stat(target.files / "null").st_rdev == os.makedev(1, 3)
    assert stat.S_IMODE(os.stat(target.files / "null").st_mode) == 0o666
    assert stat.S_ISBLK(os.stat(target.files / "sda").st_mode)
    assert stat.S_ISFIFO(os.stat(target.files / "pipe").st_mode)


def test_names_need_no_encoding(target: Layer) -> None:
    name = b"caf\xe9\n\xff"
    target.unpack(layer([Entry(os.fsdecode(name), data=b"x")]))
    assert os.listdir(os.fsencode(target.files)) == [name]


def test_sparse_files_stay_sparse(target: Layer) -> None:
    source = target.outside / "sparse"
    with open(source, "wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"data")
    data = subprocess.run(
        ["tar", "-cS", "--format=pax", "-C", target.outside, "sparse"],
        check=True,
        capture_output=True,
    ).stdout
    content = source.read_bytes()
    source.unlink()
    assert target.unpack(data).size == 64 << 20
    assert (target.files / "sparse").read_bytes() == content
    assert os.stat(target.files / "sparse").st_blocks * 512 < 1 << 20


def test_what_a_layer_deletes_becomes_a_whiteout(target: Layer) -> None:
    target.unpack(
        layer(
            [
                Entry("etc/.wh.passwd"),
                Entry("var/", "dir"),
                Entry("var/.wh..wh..opq"),
                Entry(".wh..wh.plnk", "dir"),
                Entry("opt/.wh..wh..opq"),
            ]
        )
    )
    whiteout = os.lstat(target.files / "etc/passwd")
    assert stat.S_ISCHR(whiteout.st_mode) and whiteout.st_rdev == 0
    assert os.getxattr(target.files / "var", "trusted.overlay.opaque") == b"y"
    assert os.getxattr(target.files / "opt", "trusted.overlay.opaque") == b"y"
    assert os.listdir(target.files / "var") == []
    assert not (target.files / ".wh..wh.plnk").exists()


@pytest.mark.parametrize("backwards", [False, True])
def test_a_directory_deleted_and_made_anew_shows_nothing_of_the_old_one(
    target: Layer, backwards: bool
) -> None:
    entries = [Entry(".wh.dir"), Entry("dir/", "dir"), Entry(".wh.file"), Entry("file", data=b"x")]
    if backwards:
        entries.reverse()
    target.unpack(layer(entries))
    assert os.getxattr(target.files / "dir", "trusted.overlay.opaque") == b"y"
    assert (target.files / "file").read_bytes() == b"x"


def test_the_later_of_two_entries_counts(target: Layer) -> None:
    deep = [Entry(f"{'d/' * depth}f") for depth in range(1, 1500, 500)]
    target.unpack(
        layer(
            [
                Entry("a", data=b"old"),
                Entry("a", data=b"new"),
                *deep,
                Entry("d", "symlink", link="a"),
                Entry("e/", "dir", mode=0o700),
                Entry("e/kept"),
                Entry("e/", "dir", mode=0o750),
                Entry("f", "symlink", link="e"),
                Entry("f/", "dir"),
            ]
        )
    )
    assert (target.files / "a").read_bytes() == b"new"
    assert os.readlink(target.files / "d") == "a"
    assert stat.S_IMODE(os.stat(target.files / "e").st_mode) == 0o750
    assert (target.files / "e/kept").exists()
    assert (target.files / "f").is_dir() and not (target.files / "f").is_symlink()


def test_what_takes_the_place_of_a_directory_has_nothing_of_it(target: Layer) -> None:
    result = target.unpack(
        layer(
            [
                Entry("d/", "dir", mtime=1_500_000_000),
                Entry("d/e/", "dir"),
                Entry("d", data=b"a file", mtime=1_600_000_000),
                Entry("i/j/f"),
                Entry("i", "symlink", link="t"),
                Entry("t/", "dir"),
                Entry("t/j/", "dir", mtime=1_550_000_000),
            ]
        )
    )
    assert result.implied == (b".",)
    assert os.stat(target.files / "d").st_mtime == 1_600_000_000
    assert os.stat(target.files / "t/j").st_mtime == 1_550_000_000


def test_parents_without_an_entry_are_made_and_reported(target: Layer) -> None:
    result = target.unpack(layer([Entry("a/b/c/file"), Entry("a/", "dir", mode=0o700)]))
    assert result.implied == (b".", b"a/b", b"a/b/c")
    assert stat.S_IMODE(os.stat(target.files / "a/b").st_mode) == 0o755


@pytest.mark.parametrize("name", ["../../outside/new", "/../../../outside/new", "a/../../../new"])
def test_a_name_that_leads_out_stays_in(target: Layer, name: str) -> None:
    target.unpack(layer([Entry(name, data=b"x")]))
    target.assert_contained()


@pytest.mark.parametrize("hops", ["../../outside", "/../outside", "{root}/outside"])
def test_a_link_that_leads_out_stays_in(target: Layer, hops: str) -> None:
    link = hops.format(root=target.root)
    entries = [
        Entry("evil", "symlink", link=link),
        Entry("evil/new", data=b"x"),
        Entry("evil/file", data=b"overwritten"),
        Entry("file", "symlink", link=f"{link}/file"),
        Entry("file", data=b"overwritten"),
        Entry("evil/.wh.file"),
        Entry("evil/.wh..wh..opq"),
        Entry("evil/", "dir", mode=0o777),
    ]
    for last in range(1, len(entries) + 1):
        try:
            target.unpack(layer(entries[:last]))
        except BadArchive:
            pass
        target.assert_contained()
        subprocess.run(["rm", "-rf", target.files], check=True)


@pytest.mark.parametrize("link", ["../../outside/file", "/outside/file", "evil/file"])
def test_a_hard_link_cannot_reach_out(target: Layer, link: str) -> None:
    entries = [Entry("evil", "symlink", link="/../../outside"), Entry("hard", "link", link=link)]
    with pytest.raises(BadArchive, match="no such file or directory"):
        target.unpack(layer(entries))
    target.assert_contained()
    assert os.stat(target.outside / "file").st_nlink == 1


def test_overlays_own_attributes_are_not_taken(target: Layer) -> None:
    records = {
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.trusted.overlay.metacopy": "",
        "SCHILY.xattr.user.mine": "kept",
    }
    target.unpack(layer([Entry("d/", "dir", pax=records)]))
    assert os.listxattr(target.files / "d") == ["user.mine"]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([Entry("a"), Entry("a/b")], "cannot extract /a/b: not a directory"),
        ([Entry("a", "symlink", link="a"), Entry("a/b")], "cannot extract /a/b: "),
        ([Entry("n" * 300)], "cannot extract /nnn.*: file name too long"),
        ([Entry("d/", "dir"), Entry("h", "link", link="d")], "link /d /h: operation not permitted"),
        ([Entry("h", "link", link="absent")], "link /absent /h: no such file or directory"),
        ([Entry("h/i", "link", link="absent")], "link /absent /h/i: no such file or directory"),
        ([Entry("a/.wh..")], "invalid whiteout name"),
        ([Entry("a", uid=(1 << 32) + 5)], "archive/tar: invalid tar header"),
        ([Entry("a"), Entry("a/.wh.b")], "cannot extract /a/.wh.b: not a directory"),
        ([Entry("a"), Entry("a/.wh..wh..opq")], "cannot extract /a/.wh..wh..opq: not a directory"),
        ([Entry(".wh." + "n" * 300)], "cannot extract /.wh.nnn.*: file name too long"),
        (
            [Entry("a", pax={"SCHILY.xattr.user.big": "x" * 70_000})],
            "cannot extract /a: argument list too long",
        ),
        ([Entry("n" * 5000)], "^n{64}: file name too long$"),
        ([Entry("s", "symlink", link="n" * 5000)], "^s: file name too long$"),
    ],
)
def test_what_cannot_be_a_layer_is_refused(target: Layer, entries: list[Entry], words: str) -> None:
    with pytest.raises(BadArchive, match=words):
        target.unpack(layer(entries))


def test_a_cut_archive_is_refused(target: Layer) -> None:
    with pytest.raises(BadArchive, match="unexpected EOF"):
        target.unpack(layer([Entry("a", data=b"x" * 100_000)])[:50_000])


def test_an_unpacking_that_is_not_wanted_any_more_ends(target: Layer) -> None:
    os.mkfifo(target.root / "blob")
    keeper = os.open(target.root / "blob", os.O_RDWR)
    child = start(Job(blob=str(target.root / "blob"), target=str(target.files.parent)))
    child.abort()
    os.close(keeper)
    with pytest.raises(ChildProcessError):
        os.waitpid(child.pid, os.WNOHANG)

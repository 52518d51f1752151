"""The tar reader against archives of the standard library and of GNU tar."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from mooring.runtime.images.tar import (
    CHARACTER,
    DIRECTORY,
    FIFO,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    Member,
    TarError,
    TarReader,
)

from .archives import Entry, layer

LONG = "directory/" * 30 + "file"
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def _reader(data: bytes, piece: int = 1 << 20) -> TarReader:
    """Gives at most `piece` bytes at a time, as a pipe does."""
    stream = io.BytesIO(data)
    return TarReader(lambda limit: stream.read(min(limit, piece)))


def _members(data: bytes, piece: int = 1 << 20) -> list[tuple[Member, bytes]]:
    reader = _reader(data, piece)
    found = []
    for member in reader:
        content = b""
        while part := reader.data():
            content += part
        found.append((member, content))
    return found


@pytest.mark.parametrize("piece", [100, 512, 1 << 20])
@pytest.mark.parametrize("format", FORMATS)
def test_members_come_out_as_they_went_in(format: int, piece: int) -> None:
    data = layer(
        [
            Entry("d/", "dir", mode=0o1777, uid=5, gid=6),
            Entry("d/empty"),
            Entry("d/file", data=b"x" * 3000, mode=0o4755, mtime=1234567890),
            Entry("d/link", "symlink", link="../target"),
            Entry("d/hard", "link", link="d/file"),
            Entry("null", "char", device=(1, 3)),
            Entry("pipe", "fifo"),
        ],
        format,
    )
    members = _members(data, piece)
    assert [m.type for m, _ in members] == [
        DIRECTORY,
        REGULAR,
        REGULAR,
        SYMLINK,
        HARD_LINK,
        CHARACTER,
        FIFO,
    ]
    directory, file = members[0][0], members[2][0]
    assert (directory.mode, directory.uid, directory.gid) == (0o1777, 5, 6)
    assert members[2][1] == b"x" * 3000
    assert (file.mode, file.mtime_ns) == (0o4755, 1234567890 * 10**9)
    assert members[3][0].link == b"../target"
    assert members[4][0].link == b"d/file"
    assert (members[5][0].major, members[5][0].minor) == (1, 3)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_large_numbers(format: int) -> None:
    data = layer(
        [
            Entry(LONG, uid=1 << 30, gid=(1 << 32) - 2),
            Entry("link", "symlink", link="x" * 200),
        ],
        format,
    )
    (file, _), (link, _) = _members(data)
    assert file.name == LONG.encode()
    assert (file.uid, file.gid) == (1 << 30, (1 << 32) - 2)
    assert link.link == b"x" * 200


def test_a_name_of_ustar_is_put_together_from_its_prefix() -> None:
    name = "d" * 90 + "/" + "f" * 90
    assert _members(layer([Entry(name)], tarfile.USTAR_FORMAT))[0][0].name == name.encode()


def test_names_are_bytes() -> None:
    data = layer([Entry(b"\xff\xfe".decode("utf-8", "surrogateescape"))], tarfile.GNU_FORMAT)
    assert _members(data)[0][0].name == b"\xff\xfe"


def test_times_have_nanoseconds_and_never_lie_before_1970() -> None:
    data = layer([Entry("a", pax={"mtime": "12.3456789"}), Entry("b", pax={"mtime": "-5.5"})])
    assert [m.mtime_ns for m, _ in _members(data)] == [12_345_678_900, 0]


def test_pax_records_hold_any_bytes() -> None:
    capability = "\x01\x00\x00\x02\n="
    data = layer([Entry("a", pax={"SCHILY.xattr.security.capability": capability})])
    assert _members(data)[0][0].xattrs == {b"security.capability": capability.encode()}


def test_a_global_header_holds_for_what_follows() -> None:
    buffer = io.BytesIO()
    headers = {"SCHILY.xattr.user.a": "b"}
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers=headers
    ) as tar:
        tar.addfile(tarfile.TarInfo("a"))
    assert _members(buffer.getvalue())[0][0].xattrs == {b"user.a": b"b"}


@pytest.mark.parametrize(
    "form", ["gnu", "pax --sparse-version=0.0", "pax --sparse-version=0.1", "pax"]
)
def test_sparse_files_of_every_form(tmp_path: Path, form: str) -> None:
    content = bytearray(3 << 20)
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(len(content))
        # More extents than fit into the first header.
        for number in range(0, len(content), 200_000):
            content[number : number + 5000] = b"x" * 5000
            file.seek(number)
            file.write(b"x" * 5000)
    (tmp_path / "after").write_text("after")
    command = ["tar", "-cS", "-f", "-", "-C", str(tmp_path), f"--format={form.split()[0]}"]
    data = subprocess.run(
        [*command, *form.split()[1:], "sparse", "after"], check=True, capture_output=True
    ).stdout
    (sparse, packed), (after, _) = _members(data)
    assert after.name == b"after"
    assert sparse.name == b"sparse"
    assert sparse.real_size == len(content)
    assert sparse.sparse is not None and len(packed) < len(content) // 4
    rebuilt, position = bytearray(sparse.real_size), 0
    for extent in sparse.sparse:
        part = packed[position : position + extent.length]
        rebuilt[extent.offset : extent.offset + extent.length] = part
        position += extent.length
    assert rebuilt == content


def test_data_that_is_not_read_is_skipped() -> None:
    reader = _reader(layer([Entry("a", data=b"x" * 5000), Entry("b", data=b"y")]), 700)
    assert [member.name for member in reader] == [b"a", b"b"]


@pytest.mark.parametrize("end", [0, 512, 1024])
def test_an_archive_may_end_without_its_two_blocks_of_zeros(end: int) -> None:
    data = layer([Entry("a", data=b"x" * 600)], tarfile.USTAR_FORMAT)[: 512 + 1024 + end]
    assert [m.name for m, _ in _members(data)] == [b"a"]


def _spoiled(position: int, value: bytes, *, checked: bool = True) -> bytes:
    """A header with some bytes changed and, if checked, its checksum right again."""
    header = bytearray(layer([Entry("a", data=b"12345")], tarfile.GNU_FORMAT))
    header[position : position + len(value)] = value
    if checked:
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"x" * 512, "archive/tar: invalid tar header"),
        (_spoiled(0, b"b", checked=False), "archive/tar: invalid tar header"),
        (_spoiled(124, b"notanumber"), "archive/tar: invalid tar header"),
        (_spoiled(124, b"\xff" * 12), "archive/tar: invalid tar header"),
        (_spoiled(124, b"77777777777\0")[:1024], "unexpected EOF"),
        (_spoiled(124, b"77777777777\0")[:700], "unexpected EOF"),
        (layer([Entry("a")])[:100], "unexpected EOF"),
        (_spoiled(156, b"x"), "archive/tar: invalid tar header"),
        (_spoiled(156, b"L")[:156], "unexpected EOF"),
        (b"\0" * 512 + b"x" * 512, "archive/tar: invalid tar header"),
    ],
)
def test_what_is_no_archive_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(TarError, match=words):
        _members(data)


def test_what_holds_for_all_that_follows_has_a_limit() -> None:
    blocks = [
        tarfile.TarInfo.create_pax_global_header({f"comment{number}": "x" * 1000})
        for number in range(100)
    ]
    with pytest.raises(TarError, match="header field too long"):
        _members(b"".join(blocks))


def test_a_describing_header_has_a_limit() -> None:
    header = _spoiled(156, b"x")
    large = bytearray(header[:512])
    large[124:136] = b"00010000000\0"
    large[148:156] = b" " * 8
    large[148:156] = b"%06o\0 " % sum(large)
    with pytest.raises(TarError, match="header field too long"):
        _members(bytes(large) + b"\0" * (3 << 20))

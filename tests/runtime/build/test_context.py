"""A build context: read once, kept as an index, nothing of it outside."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mooring.runtime.build import context as context_module
from mooring.runtime.build.context import BadContext, Context
from mooring.runtime.build.tree import Kind, digest, resolve, walk

Adding = Callable[[tarfile.TarFile], None]


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    context = Context(tmp_path / "spool")
    yield context
    context.close()


def fill(context: Context, add: Adding, mode: str = "w", limit: int = 1 << 20) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:  # type: ignore[call-overload]
        add(tar)
    out.seek(0)
    context.receive(out.read, limit)


def member(name: str, data: bytes = b"", **fields: object) -> Adding:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return lambda tar: tar.addfile(info, io.BytesIO(data))


def several(*members: Adding) -> Adding:
    def add(tar: tarfile.TarFile) -> None:
        for each in members:
            each(tar)

    return add


def link(name: str, target: str) -> Adding:
    return member(name, type=tarfile.SYMTYPE, linkname=target)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_becomes_an_index_whatever_its_compression(context: Context, mode: str) -> None:
    fill(context, several(member("./d/a", b"a"), member("b", b"bb", mode=0o600)), mode)
    assert [name for name, _ in walk(context, "")] == ["b", "d", "d/a"]
    found = context.entry("b")
    assert found is not None
    assert (found.kind, found.mode, found.size) == (Kind.FILE, 0o600, 2)
    assert context.text("d/a") == "a"


def test_names_that_lead_out_are_names_inside(context: Context) -> None:
    fill(context, several(member("../../x", b"1"), member("/y", b"2"), member("d/../z", b"3")))
    assert [name for name, _ in walk(context, "")] == ["x", "y", "z"]


def test_links_are_followed_inside_alone(context: Context) -> None:
    files = several(member("d/f", b"in"), link("l", "d"), link("up", "../../../d/f"))
    fill(context, several(files, link("abs", "/d/f"), link("loop", "loop"), link("no", "none")))
    assert resolve(context, "l/f") == "d/f"
    assert context.text("up") == context.text("abs") == "in"
    assert resolve(context, "loop") is None
    assert resolve(context, "no") is None
    assert resolve(context, "l", follow_last=False) == "l"


def test_a_later_member_takes_the_place_of_an_earlier_one(context: Context) -> None:
    fill(context, several(member("a/b", b"1"), member("a", b"file"), member("a", b"again")))
    assert context.text("a") == "again"
    assert context.entry("a/b") is None


def test_a_hard_link_is_the_same_file(context: Context) -> None:
    hard = member("b", type=tarfile.LNKTYPE, linkname="a")
    fill(context, several(member("a", b"data"), hard))
    assert context.text("b") == "data"


def test_a_hard_link_to_nothing_is_refused(context: Context) -> None:
    with pytest.raises(BadContext, match="link to a file that is not in the build context"):
        fill(context, member("b", type=tarfile.LNKTYPE, linkname="a"))


def test_a_context_beyond_the_limit_is_refused(context: Context) -> None:
    with pytest.raises(BadContext, match="larger than 10 bytes"):
        fill(context, several(member("a", b"x" * 6), member("b", b"x" * 6)), limit=10)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (member("d/a", b"a", mtime=99), True),
        (member("d/a", b"b"), False),
        (member("d/a", b"a", mode=0o755), False),
        (member("d/a", b"a", uid=1), False),
        (several(member("d/a", b"a"), member("d/b")), False),
    ],
)
def test_a_digest_tells_everything_but_times(
    context: Context, tmp_path: Path, change: Adding, same: bool
) -> None:
    fill(context, member("d/a", b"a"))
    other = Context(tmp_path / "other")
    fill(other, change)
    found = [digest(c, "d", e) for c in (context, other) if (e := c.entry("d")) is not None]
    other.close()
    assert (found[0] == found[1]) == same


@pytest.mark.parametrize(
    ("everything", "left"),
    [(False, ["a", "d", "d/b", "d/c"]), (True, ["a", "d", "d/c"])],
)
def test_an_ignore_file_applies_to_what_clients_always_send_or_to_all(
    context: Context, everything: bool, left: list[str]
) -> None:
    ignored = member(".dockerignore", b"d/b\nDockerfile\n.dockerignore\n")
    files = [member(name, b"x") for name in ("a", "d/b", "d/c", "Dockerfile")]
    fill(context, several(ignored, *files))
    context.filter("Dockerfile", everything=everything)
    assert [name for name, _ in walk(context, "")] == left


def test_long_names_are_kept_within_bounds(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_module, "_NAMES", 100_000)
    # Each directory on the way is in the index under its whole path.
    deep = several(*(member(f"{number}/" + "d/" * 200) for number in range(10)))
    with pytest.raises(BadContext, match="names in the build context are too long together"):
        fill(context, deep)


def test_a_sparse_file_has_its_holes_in_the_digest_and_the_spool(
    context: Context, tmp_path: Path
) -> None:
    import subprocess

    with (tmp_path / "sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    tar = subprocess.run(
        ["tar", "-cS", "-C", tmp_path, "sparse"], capture_output=True, check=True
    ).stdout
    context.receive(io.BytesIO(tar).read, 1 << 30)
    plain = Context(tmp_path / "plain")
    fill(plain, member("sparse", bytes(1 << 20) + b"end"), limit=1 << 30)
    sparse, whole = context.entry("sparse"), plain.entry("sparse")
    plain.close()
    assert sparse is not None
    assert whole is not None
    assert sparse.content == whole.content

"""Users by a container's own files, read through the layers without a mount."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mooring.kit.errors import EngineError
from mooring.runtime.overlay import Overlay, View
from mooring.runtime.spec import User
from mooring.runtime.users import Users, identify, lookup
from tests.descriptors import descriptors

PASSWD = b"""\
root:x:0:0:root:/root:/bin/sh
# a comment
daemon:x:1:1::/usr/sbin:/bin/false
app:x:1000:1000:App:/home/app:/bin/sh
7:x:70:70::/named-seven:/bin/sh
broken:x:many:1::/:
short:x
nohome:x:5:6
"""
GROUP = b"""\
root:x:0:
daemon:x:1:app
app:x:1000:
video:x:44:app,daemon
staff:x:50:
"""


def _read(path: str) -> bytes | None:
    return {"etc/passwd": PASSWD, "etc/group": GROUP}[path]


@pytest.mark.parametrize(
    ("user", "group_add", "expected"),
    [
        ("", [], User(0, 0, (0,), "/root")),
        ("root", [], User(0, 0, (0,), "/root")),
        ("app", [], User(1000, 1000, (1000, 1, 44), "/home/app")),
        ("1000", [], User(1000, 1000, (1000, 1, 44), "/home/app")),
        ("app:staff", [], User(1000, 50, (50,), "/home/app")),
        ("app:77", [], User(1000, 77, (77,), "/home/app")),
        ("4711", [], User(4711, 0, (0,), "/")),
        ("4711:50", [], User(4711, 50, (50,), "/")),
        (":staff", [], User(0, 50, (50,), "/root")),
        ("app", ["video", "staff", "999"], User(1000, 1000, (1000, 1, 44, 50, 999), "/home/app")),
        ("7", [], User(70, 70, (70,), "/named-seven")),
        ("nohome", [], User(5, 6, (6,), "/")),
    ],
)
def test_a_user_is_found(user: str, group_add: list[str], expected: User) -> None:
    assert identify(_read, user, group_add) == expected


@pytest.mark.parametrize(
    ("user", "group_add", "words"),
    [
        ("foo", [], "unable to find user foo: no matching entries in passwd file"),
        ("broken", [], "unable to find user broken: no matching entries in passwd file"),
        ("-1", [], "unable to find user -1: no matching entries in passwd file"),
        ("app:foo", [], "unable to find group foo: no matching entries in group file"),
        ("app", ["foo"], "Unable to find group foo"),
        ("2147483648", [], "uids and gids must be in range 0-2147483647"),
        ("app:2147483648", [], "uids and gids must be in range 0-2147483647"),
        ("app", ["2147483648"], "uids and gids must be in range 0-2147483647"),
    ],
)
def test_a_user_that_is_not_there_is_refused(user: str, group_add: list[str], words: str) -> None:
    with pytest.raises(EngineError) as raised:
        identify(_read, user, group_add)
    assert raised.value.message == words


def test_without_files_numbers_and_root_still_work() -> None:
    assert identify(lambda _: None, "", []) == User(0, 0, (0,), "/")
    assert identify(lambda _: None, "5:6", ["7"]) == User(5, 6, (6, 7), "/")


@pytest.fixture
def overlay(tmp_path: Path) -> Overlay:
    """An upper directory and two layers, the lower with users."""
    paths = [tmp_path / name for name in ("upper", "top", "base")]
    for path in paths:
        path.mkdir()
    (paths[2] / "etc").mkdir()
    (paths[2] / "etc/passwd").write_bytes(PASSWD)
    (paths[2] / "etc/group").write_bytes(GROUP)
    return Overlay((str(paths[1]), str(paths[2])), str(paths[0]), str(tmp_path / "work"))


def test_the_uppermost_file_counts(overlay: Overlay) -> None:
    assert lookup(overlay, "app").uid == 1000
    Path(overlay.upper, "etc").mkdir()
    Path(overlay.upper, "etc/passwd").write_bytes(b"app:x:7:8::/new:")
    assert lookup(overlay, "app").uid == 7


def test_links_lead_through_the_layers_and_never_out(overlay: Overlay) -> None:
    base = Path(overlay.lowers[1])
    (base / "usr").mkdir()
    (base / "etc").rename(base / "usr/etc")
    Path(overlay.lowers[0], "etc").symlink_to("../../../../usr/./etc")
    (base / "usr/etc/passwd").rename(base / "usr/accounts")
    Path(overlay.lowers[0], "usr/etc").mkdir(parents=True)
    Path(overlay.lowers[0], "usr/etc/passwd").symlink_to("/usr/accounts")
    assert lookup(overlay, "app").groups == (1000, 1, 44)


def test_links_in_a_circle_are_no_file(overlay: Overlay) -> None:
    Path(overlay.upper, "etc").symlink_to("/etc")
    with pytest.raises(EngineError, match="no matching entries in passwd file"):
        lookup(overlay, "app")


@pytest.mark.kernel
def test_a_whiteout_hides_the_files_below(overlay: Overlay) -> None:
    os.mknod(Path(overlay.upper, "etc"), stat.S_IFCHR, 0)
    with pytest.raises(EngineError, match="no matching entries in passwd file"):
        lookup(overlay, "app")


@pytest.mark.kernel
def test_an_opaque_directory_hides_the_files_below(overlay: Overlay) -> None:
    opaque = Path(overlay.lowers[0], "etc")
    opaque.mkdir()
    os.setxattr(opaque, "trusted.overlay.opaque", b"y")
    with pytest.raises(EngineError, match="no matching entries in passwd file"):
        lookup(overlay, "app")


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_what_is_no_regular_file_is_no_file(overlay: Overlay, kind: str) -> None:
    Path(overlay.upper, "etc").mkdir()
    passwd = Path(overlay.upper, "etc/passwd")
    if kind == "fifo":
        os.mkfifo(passwd)
    else:
        passwd.mkdir()
    with pytest.raises(EngineError, match="no matching entries in passwd file"):
        lookup(overlay, "app")


def test_a_file_over_the_limit_is_refused(overlay: Overlay) -> None:
    with View(overlay) as view, pytest.raises(ValueError, match="larger than 10 bytes"):
        view.read("etc/passwd", 10)


def test_a_view_leaves_no_descriptor_open(overlay: Overlay) -> None:
    before = descriptors()
    lookup(overlay, "app:staff", ["video"])
    assert descriptors() <= before


def test_the_images_answer_is_kept_until_the_container_has_its_own_etc(overlay: Overlay) -> None:
    users = Users()
    assert users.lookup(overlay, "image", "app").uid == 1000
    Path(overlay.lowers[1], "etc/passwd").unlink()
    assert users.lookup(overlay, "image", "app").uid == 1000
    Path(overlay.upper, "etc").mkdir()
    with pytest.raises(EngineError, match="no matching entries in passwd file"):
        users.lookup(overlay, "image", "app")

"""A state directory without a byte left: what asked for too much fails, and the engine goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .builds import build, context
from .harness import Engine, until, until_gone

pytestmark = [pytest.mark.kernel, pytest.mark.fault]
__all__ = ["context"]

SIZE = 64
"""MiB of its file system."""


@pytest.fixture(scope="module")
def e() -> Iterator[Engine]:
    folder = Path(tempfile.mkdtemp(prefix="moor-"))
    made = Engine(folder, DOCKER_BUILDKIT="0")
    made.state = disk = Path(tempfile.mkdtemp(prefix="disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}m", "full", str(disk)]
    subprocess.run(mount, check=True)
    try:
        made.up()
        made.load()
        yield made
    finally:
        made.remove_all()
        until("containers are cleared away", lambda: not os.listdir(made.state / "containers"))
        made.down("--containers")
        left = until_gone(made)
        subprocess.run(["umount", str(disk)], check=True)
        disk.rmdir()
        shutil.rmtree(folder, ignore_errors=True)
    assert not left, f"left behind: {left}"


def free(e: Engine) -> int:
    """MiB."""
    found = os.statvfs(e.state)
    return found.f_bavail * found.f_frsize >> 20


def nothing_left(e: Engine) -> bool:
    """No build, container, image or rubbish under way, and the room that was there is back."""
    folders = ("builds", "containers", "ingest", "trash")
    return free(e) > SIZE - 20 and not any(os.listdir(e.state / name) for name in folders)


def works(e: Engine, context: Path) -> None:
    """The engine still does all that takes records and files."""
    build(e, context, "FROM bb\nCOPY one /\nRUN cat /one > /two\n", "-t", "works")
    assert e.out("run", "--rm", "--network", "none", "works", "cat", "/two") == "one"
    e.docker("rmi", "works")


def test_a_command_that_fills_the_disk_fails_its_build_alone(e: Engine, context: Path) -> None:
    text = "FROM bb\nRUN head -c 200000000 /dev/zero > /full\n"
    done = build(e, context, text, "--force-rm", check=False)
    assert done.returncode == 1
    assert "returned a non-zero code: 1" in done.stderr
    until("nothing is left", lambda: nothing_left(e))
    assert e.out("ps", "-aq") == ""
    works(e, context)


@pytest.mark.parametrize("size", [30, 70], ids=["the layer", "the context"])
def test_a_copy_that_has_no_room_fails_and_leaves_nothing(
    e: Engine, context: Path, size: int
) -> None:
    (context / "big").write_bytes(os.urandom(1 << 20) * size)
    done = build(e, context, "FROM bb\nCOPY one /\nCOPY big /\n", check=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    until("nothing is left", lambda: nothing_left(e))
    (context / "big").unlink()
    works(e, context)


def test_a_commit_that_has_no_room_fails_and_its_container_can_go(e: Engine, context: Path) -> None:
    command = "head -c 35000000 /dev/urandom > /half"
    e.docker("run", "--name", "box", "--network", "none", "bb", "sh", "-c", command)
    done = e.docker("commit", "box", "half", check=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    e.docker("rm", "box")
    until("nothing is left", lambda: nothing_left(e))
    works(e, context)

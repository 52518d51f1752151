"""The directory of the runs is in memory, ours to take away, and never taken from a container."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mooring.supervisor import rundir

pytestmark = pytest.mark.kernel


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "shims"
    yield made
    if os.path.ismount(made):
        subprocess.run(["umount", "-l", made], check=True)


def test_a_directory_on_a_disk_gets_a_tmpfs_once(directory: Path) -> None:
    rundir.mount(directory)
    rundir.mount(directory)
    assert rundir.in_memory(directory)
    rundir.unmount(directory)
    assert not os.path.ismount(directory)


@pytest.mark.parametrize("name", ["li nk", "link"])
def test_a_tmpfs_is_known_behind_a_link_and_by_any_name(directory: Path, name: str) -> None:
    place = directory.with_name(f"{name}.real")
    place.mkdir()
    link = directory.with_name(name)
    link.symlink_to(place)
    rundir.mount(link / "shims")
    assert os.path.ismount(place / "shims")
    rundir.unmount(link / "shims")
    mounted = os.path.ismount(place / "shims")
    if mounted:
        subprocess.run(["umount", "-l", place / "shims"], check=True)
    assert not mounted


def test_what_a_running_container_needs_stays(directory: Path) -> None:
    rundir.mount(directory)
    (directory / "c0ffee.1").mkdir()
    rundir.unmount(directory)
    assert (directory / "c0ffee.1").is_dir()


def test_runs_whose_end_is_known_hold_nothing_up(directory: Path) -> None:
    rundir.mount(directory)
    (directory / "c0ffee.1").mkdir()
    (directory / "c0ffee.1" / "exit.acked").touch()
    rundir.unmount(directory)
    assert not os.path.ismount(directory)


def test_a_directory_that_is_not_empty_is_left_as_it_is(directory: Path) -> None:
    (directory / "c0ffee.1").mkdir(parents=True)
    rundir.mount(directory)
    assert (directory / "c0ffee.1").is_dir()
    assert not os.path.ismount(directory)

"""Room that is kept for nats-server, on a small file system of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from mooring.runtime import ballast
from mooring.runtime.ballast import FILES, Ballast

pytestmark = pytest.mark.kernel


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """64 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "ballast", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def kept(disk: Path) -> list[int]:
    """The sizes on disk of the files."""
    return [path.stat().st_blocks * 512 for path in disk.glob("ballast.*")]


def fill(disk: Path) -> Path:
    path = disk / "full"
    with pytest.raises(OSError, match="No space left"), open(path, "ab", buffering=0) as file:
        while True:
            if file.write(bytes(1 << 16)) < 1 << 16:
                raise OSError("No space left")
    return path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the time on, by seconds; it stands still otherwise."""
    now = 1000.0

    def move(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(ballast, "time", SimpleNamespace(monotonic=lambda: now))
    return move


def test_room_is_given_up_bit_by_bit_and_made_up_for(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Callable[[float], None]
) -> None:
    config = tmp_path / "nats.conf"
    made = Ballast(disk, config)
    made.look()
    assert kept(disk) == [1 << 20] * FILES
    full = fill(disk)
    # What is run as a shell looks like the server with its configuration.
    config.write_text("#!/bin/sh\nread word\n")
    config.chmod(0o755)
    command = ["/usr/bin/nats-server", "-c", str(config)]
    server = subprocess.Popen(command, executable="/bin/sh", stdin=subprocess.PIPE)
    made.look()
    with server:
        assert server.wait(10) == -9
    assert len(kept(disk)) == FILES - 1
    monkeypatch.setattr(ballast, "_running", lambda _: [])
    # Whoever takes that as well gets no more until some time has passed.
    fill(disk)
    made.look()
    clock(0.9)
    made.look()
    assert len(kept(disk)) == FILES - 1
    for number in range(FILES):
        clock(2**number)
        made.look()
        fill(disk)
    assert kept(disk) == []
    os.unlink(full)
    made.look()
    assert len(kept(disk)) == FILES


def test_a_server_that_may_have_failed_to_write_is_started_anew_when_there_is_room(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Callable[[float], None]
) -> None:
    """One had, while the next file was waited for: with the room back it stayed as it was."""
    started: list[Path] = []

    def running(config: Path) -> list[int]:
        started.append(config)
        return []

    monkeypatch.setattr(ballast, "_running", running)
    made = Ballast(disk, tmp_path / "nats.conf")
    made.look()
    full = fill(disk)
    made.look()
    assert len(started) == 1
    # What was given up is no room for good.
    made.look()
    fill(disk)
    made.look()
    assert len(started) == 1
    os.unlink(full)
    for _ in range(2):
        made.look()
        assert len(started) == 2


def test_a_file_system_that_is_nearly_full_gets_none(disk: Path, tmp_path: Path) -> None:
    full = fill(disk)
    os.truncate(full, 40 << 20)
    Ballast(disk, tmp_path / "nats.conf").look()
    assert kept(disk) == []

"""What a purge takes away by itself, and what it leaves as it is not the engine's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mooring.kit.config import Settings
from mooring.supervisor import leftovers
from mooring.systemd import purge


def _settings(tmp_path: Path) -> Settings:
    state, run = tmp_path / "state", tmp_path / "run"
    for directory in (state / "containers" / "x", state / "nats", run / "shims"):
        directory.mkdir(parents=True)
    (state / "node-id").write_text("x\n")
    return Settings(state_dir=state, run_dir=run, host=[f"unix://{tmp_path}/docker.sock"])


def test_state_run_directory_and_sockets_go(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    (tmp_path / "docker.sock").touch()
    # One that was run by hand before it was installed.
    os.close(leftovers.lock(settings.state_dir))
    assert purge.remove_directories(settings) == []
    assert list(tmp_path.iterdir()) == []
    # Again: there is nothing, and that is fine.
    assert purge.remove_directories(settings) == []


def test_what_is_not_the_engine_s_stays_and_is_named(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    (settings.state_dir / "letters").mkdir()
    assert purge.remove_directories(settings) == [
        f"{settings.state_dir}/letters is not the engine's"
    ]
    assert [path.name for path in settings.state_dir.iterdir()] == ["letters"]


def test_nothing_is_deleted_below_a_mount_that_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(tmp_path)
    mounted = f"{settings.state_dir}/volumes/v/_data"
    monkeypatch.setattr(purge, "_mounts_below", lambda _: iter([mounted]))
    assert purge.remove_directories(settings) == [f"{mounted} is mounted"]
    assert (settings.state_dir / "node-id").exists() and settings.run_dir.exists()


@pytest.mark.kernel
def test_what_is_mounted_in_a_volume_is_not_deleted_behind_a_link(tmp_path: Path) -> None:
    """rm stays on its file system, but so is what an operator has bound into a volume."""
    settings = _settings(tmp_path)
    for directory in (settings.state_dir, settings.run_dir):
        directory.rename(directory.with_suffix(".real"))
        directory.symlink_to(directory.with_suffix(".real"))
    theirs, volume = tmp_path / "theirs", settings.state_dir / "volumes/v/_data"
    for directory in (theirs, volume, settings.run_dir / "shims"):
        directory.mkdir(parents=True, exist_ok=True)
    (theirs / "letter").touch()
    script = f"""if True:
        import subprocess
        from mooring.kit.config import Settings
        from mooring.systemd import purge
        subprocess.run(["mount", "--bind", {str(theirs)!r}, {str(volume)!r}], check=True)
        shims = {str(settings.run_dir / "shims")!r}
        subprocess.run(["mount", "-t", "tmpfs", "none", shims], check=True)
        print(purge.remove_directories(Settings.model_validate_json({settings.model_dump_json()!r})))
    """
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert [path.name for path in theirs.iterdir()] == ["letter"]
    assert done.stdout == "[]\n"
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_a_directory_that_cannot_be_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(tmp_path)

    def busy(path: Path) -> None:
        raise OSError(16, "Device or resource busy", str(path))

    monkeypatch.setattr(Path, "rmdir", busy)
    assert purge.remove_directories(settings) == [
        f"[Errno 16] Device or resource busy: '{path}'"
        for path in (settings.state_dir, settings.run_dir)
    ]


def test_cgroups_go_in_every_hierarchy(tmp_path: Path) -> None:
    mounts = b""
    for name in ("memory", "pids"):
        (tmp_path / name / "m.slice/c.service/warm.1.2").mkdir(parents=True)
        mounts += f"1 1 0:1 / {tmp_path}/{name} rw - cgroup cgroup rw\n".encode()
    (tmp_path / "pids/m.slice/other").mkdir()
    purge.remove_cgroups("/m.slice/c.service", mounts)
    assert not (tmp_path / "memory/m.slice").exists()
    assert [path.name for path in (tmp_path / "pids/m.slice").iterdir()] == ["other"]
    purge.remove_cgroups("/", mounts)
    assert (tmp_path / "pids/m.slice/other").exists()

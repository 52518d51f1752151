"""Run directories and trash: what may go, and what is taken away for good."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest

from mooring.kit.config import Settings, load
from mooring.runtime import sharedshm, trash
from mooring.runtime.layout import Layout
from mooring.runtime.locks import KeyedLocks
from mooring.runtime.reaper import Reaper
from mooring.runtime.runs import Runs, Stage, read, split, start_time
from mooring.runtime.sandbox import HostNetworks

ID = "c" * 64


class NoNetworks:
    """Networks of which nothing is in use."""

    def __init__(self) -> None:
        self.detached: list[str] = []

    def detach(self, holder: str) -> None:
        self.detached.append(holder)

    def sweep(self, live: set[str]) -> None:
        pass


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    settings: Settings = load(
        {"state_dir": tmp_path / "state", "run_dir": tmp_path / "run"}, environ={}
    )
    made = Layout(settings)
    for directory in made.directories():
        os.makedirs(directory)
    return made


@pytest.fixture
def reaper(layout: Layout) -> Reaper:
    networks: HostNetworks = NoNetworks()  # type: ignore[assignment]
    return Reaper(layout, Runs(layout.shims), networks, KeyedLocks(), "/mooring-test-nothing")


def make_run(layout: Layout, run: int = 1, *, pid: int = 0, start: int = 0) -> Path:
    directory = Path(layout.run_directory(ID, run))
    directory.mkdir()
    shim = {
        "shim_pid": pid,
        "shim_start": start,
        "init_pid": pid,
        "init_start": start,
        "started_ns": 5,
        "cgroup": "/mooring-test-nothing/x",
    }
    (directory / "shim.json").write_text(json.dumps(shim))
    return directory


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.1", ("a", 1)), ("a.b.12", ("a.b", 12)), ("a", None), (".1", None), ("a.x", None)],
)
def test_the_name_of_a_run_directory(name: str, expected: tuple[str, int] | None) -> None:
    assert split(name) == expected


def test_a_process_has_one_start_time_and_none_once_it_has_ended() -> None:
    child = subprocess.Popen(["sleep", "100"])
    assert start_time(child.pid) > 0
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_time(child.pid) == -1  # a zombie
    child.wait()


def test_how_far_a_run_is(layout: Layout) -> None:
    directory = make_run(layout, pid=os.getpid(), start=start_time(os.getpid()))

    def stage() -> Stage:
        found = read(str(directory), ID, 1)
        assert found is not None
        return found.stage

    assert stage() is Stage.LIVE
    (directory / "exit.json").write_text("{}")
    assert stage() is Stage.OVER
    (directory / "exit.json").unlink()
    (directory / "shim.json").unlink()
    assert stage() is Stage.HALF
    assert read(str(directory) + "x", ID, 1) is None


def test_a_reused_pid_is_not_taken_for_the_container(layout: Layout) -> None:
    directory = make_run(layout, pid=os.getpid(), start=start_time(os.getpid()) + 1)
    found = read(str(directory), ID, 1)
    assert found is not None
    assert (found.stage, found.shim_alive) == (Stage.OVER, False)


async def test_a_fenced_run_can_never_be_found_again(layout: Layout, reaper: Reaper) -> None:
    """A shim that is still at work has the directory as its working directory."""
    directory = Path(layout.run_directory(ID, 1))
    directory.mkdir()
    (directory / "network.msgpack").touch()
    shim = await asyncio.create_subprocess_exec(
        *("sh", "-c", "read x; echo 1 > shim.json || exit 7"),
        cwd=directory,
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert await reaper.fence(ID, 1)
    await shim.communicate(b"go\n")
    assert shim.returncode == 7
    assert not list(Path(layout.shims).glob("[!.]*"))
    assert not os.listdir(layout.run_trash)
    assert await reaper.fence(ID, 1)


async def test_who_is_at_work_on_a_half_made_run_is_waited_for(
    layout: Layout, reaper: Reaper
) -> None:
    """What it takes back, a cgroup and the end of a log, has the names of the next attempt."""
    directory = Path(layout.run_directory(ID, 1))
    directory.mkdir()
    at_work = await asyncio.create_subprocess_exec("sleep", "100")
    said = {"pid": at_work.pid, "start": start_time(at_work.pid)}
    (directory / "busy").write_text(json.dumps(said))
    fencing = asyncio.create_task(reaper.fence(ID, 1))
    done, _ = await asyncio.wait({fencing}, timeout=0.05)
    assert not done
    at_work.kill()
    await at_work.wait()
    assert await fencing
    assert not directory.exists()


async def test_a_run_whose_program_is_started_is_not_fenced(layout: Layout, reaper: Reaper) -> None:
    directory = make_run(layout)
    assert not await reaper.fence(ID, 1)
    assert (directory / "shim.json").exists()


async def test_what_nobody_has_published_yet_stays(layout: Layout, reaper: Reaper) -> None:
    directory = make_run(layout)
    (directory / "exit.json").touch()
    (directory / "execs/e").mkdir(parents=True)
    await reaper.recover()
    work = asyncio.create_task(reaper.run())
    os.rename(directory / "exit.json", directory / "exit.acked")
    found = read(str(directory), ID, 1)
    assert found is not None
    reaper.finish(found)
    (directory / "execs/e/exit.acked").touch()
    assert directory.exists()
    trash.discard(str(directory / "execs/e"), layout.run_trash)
    async with asyncio.timeout(10):
        while directory.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await reaper.close(last=False)
    assert os.listdir(layout.run_trash) == []


async def test_unread_output_of_an_exec_does_not_stay_for_long_once_its_container_is_removed(
    layout: Layout, reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mooring.runtime.reaper.READERS_OF_REMOVED", 0.3)
    directory = make_run(layout)
    for acknowledged in ("exit.acked", "execs/e/exit.acked"):
        (directory / acknowledged).parent.mkdir(parents=True, exist_ok=True)
        (directory / acknowledged).touch()
    await reaper.recover()
    work = asyncio.create_task(reaper.run())
    kept = asyncio.get_running_loop().time() + 1
    while asyncio.get_running_loop().time() < kept:
        assert directory.exists()
        await asyncio.sleep(0.05)
    reaper.mark_removed(ID)
    async with asyncio.timeout(10):
        while directory.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await reaper.close(last=False)


async def test_recovery_removes_the_cgroup_of_a_half_made_run_wherever_it_is(
    layout: Layout, reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below another parent than ours (`--cgroup-parent`) nobody else would ever look."""
    removed: list[str] = []

    async def remove(path: str) -> None:
        removed.append(path)

    monkeypatch.setattr(reaper, "remove_cgroup", remove)
    directory = Path(layout.run_directory(ID, 1))
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"linux": {"cgroupsPath": f"/else/{ID}"}}))
    await reaper.recover()
    assert removed == [f"/else/{ID}"]
    assert not directory.exists()


async def test_recovery_undoes_what_is_half_made_and_finishes_what_was_removed(
    layout: Layout, reaper: Reaper
) -> None:
    Path(layout.run_directory(ID, 1)).mkdir()
    Path(layout.container(ID)).mkdir()
    reaper.mark_removed(ID)
    await reaper.recover()
    await reaper.close(last=False)
    assert not list(Path(layout.shims).glob("[!.]*"))
    for directory in (layout.containers, layout.trash, layout.run_trash):
        assert os.listdir(directory) == []
    assert reaper.was_removed(ID)


def test_the_last_released_run_is_remembered(reaper: Reaper) -> None:
    assert reaper.last_released(ID) == 0
    reaper.note_released(ID, 3)
    reaper.note_released(ID, 2)
    assert reaper.last_released(ID) == 3


async def test_trash_is_emptied_however_deep_it_is(tmp_path: Path) -> None:
    (tmp_path / "trash").mkdir()
    victim = tmp_path / "victim"
    victim.mkdir()
    descriptor = os.open(victim, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("deeper", dir_fd=descriptor)
        inner = os.open("deeper", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.symlink("/etc", "link", dir_fd=descriptor)
    os.mkfifo("fifo", dir_fd=descriptor)
    os.close(descriptor)
    assert trash.discard(str(victim), str(tmp_path / "trash"))
    assert not trash.discard(str(victim), str(tmp_path / "trash"))
    await trash.Emptier(str(tmp_path / "trash")).empty()
    assert os.listdir(tmp_path / "trash") == []
    assert Path("/etc/passwd").exists()


async def test_what_cannot_be_deleted_holds_nothing_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trashes = [tmp_path / "one", tmp_path / "two"]
    for directory in trashes:
        (directory / "x" / "y").mkdir(parents=True)
    mounted = trashes[0] / "x" / "y"
    sharedshm.share(str(mounted), 4096)
    emptier = trash.Emptier(*map(str, trashes))
    try:
        await emptier.empty()
    finally:
        sharedshm.unshare(str(mounted))
    assert os.listdir(trashes[1]) == []
    assert "not all of the trash can be deleted" in caplog.text
    emptier.soon()
    await emptier.close()
    assert os.listdir(trashes[0]) == []

"""What is killed, where, and what is whole afterwards."""

from __future__ import annotations

import fcntl
import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import time
from _socket import AF_UNIX, SOCK_SEQPACKET, socketpair
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mooring.shim import version
from mooring.shim.adopt import READY, SERVES
from mooring.shim.control import send_with
from mooring.shim.frames import RUN_ENDS
from mooring.shim.packets import join
from mooring.shim.shim import _wake
from mooring.shim.staging import FIONREAD

from .harness import PYTHON, ROOT, Client, Container, Launcher, alive, eventually, everything

COUNT = "i=0; while :; do echo $i; i=$((i+1)); done"


class Adopter:
    """What the agent does for a container: hold its descriptors, replace its shim."""

    def __init__(self, container: Container) -> None:
        self.container = container
        client = container.client()
        names = client.ask("descriptors")["names"]
        self.held = dict(zip(names, client.fds, strict=True))
        client.close()

    def replace(self) -> int:
        """Have another shim take the place of the killed one; its pid."""
        with self.prepare() as sock:
            self.hand_over(sock)
            assert sock.recv(4096) == SERVES
        return shim_of(self.container)

    def prepare(self) -> socket.socket:
        """A process that is ready to take over."""
        sock = self.container.launcher.succeed(self.container.directory)
        sock.settimeout(30)
        assert sock.recv(4096) == READY
        return sock

    def hand_over(self, sock: socket.socket) -> None:
        """Give it what was held."""
        packet = json.dumps({"names": list(self.held)}).encode()
        socket.send_fds(sock, [packet], list(self.held.values()))
        sock.send(b"{}")

    def let_go(self, name: str) -> None:
        """Hold this no longer, as when a stdin is closed."""
        os.close(self.held.pop(name))

    def close(self) -> None:
        for fd in self.held.values():
            os.close(fd)


def shim_of(container: Container) -> int:
    pid: int = json.loads((container.directory / "shim.json").read_text())["shim_pid"]
    return pid


def ended(container: Container) -> bool:
    return (container.directory / "exit.json").exists()


def take_lane(adopter: Adopter) -> None:
    """As the agent does: hold the lane of an output that floods, and say so."""
    client = adopter.container.client()
    client.ask("hello")
    event = client.event("lane")
    assert (event["exec"], event["names"]) == ("", ["stdout_outlet", "stdout_inlet"])
    adopter.held |= zip(event["names"], client.fds, strict=True)
    client.ask("lane", exec="", stream=event["stream"])
    client.close()


def sigkill(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([pidfd], [], [], 10)
    os.close(pidfd)


@pytest.fixture
def counting(launcher: Launcher, tmp_path: Path) -> Iterator[Container]:
    with Container(
        launcher, tmp_path, ["sh", "-c", COUNT], log_max_size=1 << 20, log_max_files=1000
    ) as container:
        yield container


def test_output_of_a_container_whose_shim_is_killed_again_and_again_is_whole(
    counting: Container,
) -> None:
    adopter = Adopter(counting)
    choose = random.Random(1)
    shim = counting.shim
    for _ in range(12):
        time.sleep(choose.random() / 10)
        sigkill(shim)
        shim = adopter.replace()
    end = counting.reader().end()
    eventually(lambda: counting.reader().end() > end + 10_000)
    os.kill(counting.answer["pid"], signal.SIGKILL)
    eventually(lambda: ended(counting))
    assert counting.exit()["exit_code"] == 137
    lines = counting.output().split(b"\n")
    if lines[-1] != b"":
        assert str(len(lines) - 1).encode().startswith(lines[-1])
    assert [int(line) for line in lines[:-1]] == list(range(len(lines) - 1))
    adopter.close()


FLOOD = "seq 1 100000000"


def _numbers(container: Container) -> list[bytes]:
    lines = container.output(1).split(b"\n")
    if lines[-1] != b"":
        assert str(len(lines)).encode().startswith(lines[-1])
    return lines[:-1]


def test_a_flood_is_whole_through_its_lane_whose_shims_are_killed(
    launcher: Launcher, tmp_path: Path
) -> None:
    command = ["sh", "-c", f"sleep 0.2; exec {FLOOD}"]
    small: dict[str, Any] = {"log_max_size": 1 << 20, "log_max_files": 100_000}
    with Container(launcher, tmp_path, command, **small) as container:
        adopter = Adopter(container)
        take_lane(adopter)
        choose = random.Random(2)
        shim = container.shim
        for _ in range(12):
            end = container.reader().end()
            eventually(lambda end=end: container.reader().end() > end + (1 << 20))
            time.sleep(choose.random() / 100)
            sigkill(shim)
            shim = adopter.replace()
        os.kill(container.answer["pid"], signal.SIGKILL)
        eventually(lambda: ended(container), 30)
        lines = _numbers(container)
        assert len(lines) > 1_000_000
        assert lines == [b"%d" % number for number in range(1, len(lines) + 1)]
        adopter.close()


def test_a_lane_that_nobody_said_to_hold_is_not_used(launcher: Launcher, tmp_path: Path) -> None:
    command = ["sh", "-c", f"sleep 0.2; {FLOOD} | head -c 30000000"]
    with Container(launcher, tmp_path, command) as container:
        adopter = Adopter(container)
        client = container.client()
        client.ask("hello")
        client.event("lane")
        # Without the lane: what was in it would be lost.
        sigkill(container.shim)
        adopter.replace()
        eventually(lambda: ended(container), 30)
        lines = _numbers(container)
        assert lines == [b"%d" % number for number in range(1, len(lines) + 1)]
        assert len(container.output(1)) == 30_000_000
        adopter.close()


def test_what_came_between_two_shims_is_read_by_the_second(
    launcher: Launcher, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    script = f"while [ ! -e {go} ]; do sleep 0.02; done; echo out; echo err >&2; exit 5"
    with Container(launcher, tmp_path, ["sh", "-c", script]) as container:
        adopter = Adopter(container)
        sigkill(container.shim)
        go.touch()
        eventually(lambda: not alive(container.answer["pid"]))
        adopter.replace()
        eventually(lambda: ended(container))
        assert container.exit()["exit_code"] == 5
        assert (container.output(1), container.output(2)) == (b"out\n", b"err\n")
        adopter.close()


def test_stdin_outlives_its_shim(launcher: Launcher, tmp_path: Path) -> None:
    with Container(launcher, tmp_path, ["cat"], stdin=True, stdin_once=True) as container:
        adopter = Adopter(container)
        client = container.client()
        client.ask("stdin", b"one ", session="s", offset=0)
        sigkill(container.shim)
        adopter.replace()
        client = Client(container.directory)
        assert client.ask("stdin", b"two", session="s", offset=4)["offset"] == 7
        # Whoever holds the write end keeps the container from seeing the end of its input.
        os.close(adopter.held.pop("stdin"))
        assert client.ask("stdin", session="s", offset=7, eof=True)["closed"] is True
        client.close()
        eventually(lambda: ended(container))
        assert container.output() == b"one two"
        adopter.close()


def test_a_terminal_outlives_its_shim(launcher: Launcher, tmp_path: Path) -> None:
    script = "read a; echo got:$a; exit 2"
    with Container(launcher, tmp_path, ["sh", "-c", script], stdin=True, tty=True) as container:
        adopter = Adopter(container)
        sigkill(container.shim)
        adopter.replace()
        client = Client(container.directory)
        client.ask("stdin", b"it\n", session="s", offset=0)
        client.close()
        eventually(lambda: ended(container))
        assert container.exit()["exit_code"] == 2
        assert container.output() == b"it\r\ngot:it\r\n"
        adopter.close()


def start_with_fault(tmp_path: Path, faults: Path, point: str, script: str) -> Container:
    (faults / point).touch()
    launcher = Launcher({"MOORING_FAULTS": str(faults)})
    try:
        return Container(launcher, tmp_path, ["sh", "-c", script])
    finally:
        launcher.close()


@pytest.mark.parametrize("point", ["shim.started", "shim.before_exec"])
def test_killed_before_the_program_ran_it_never_runs(
    tmp_path: Path, faults: Path, point: str
) -> None:
    container = start_with_fault(tmp_path, faults, point, f"touch {tmp_path}/ran")
    assert container.answer == {}
    eventually(lambda: not alive(container.shim))
    assert set(os.listdir(container.directory)) <= {"busy"}
    assert not (tmp_path / "ran").exists()
    assert [s for s, _ in everything(container.reader())] in ([], [16, 17])


def test_a_warm_shim_that_is_killed_is_no_reason_that_its_container_could_not_be_started(
    launcher: Launcher, tmp_path: Path
) -> None:
    """It ends without an answer, as one does that is killed later: another one is taken."""

    def kill(shim: int) -> None:
        eventually(Path(f"/proc/{shim}/task/{shim}/children").read_text)
        sigkill(shim)

    program = ["touch", f"{tmp_path}/ran"]
    with Container(launcher, tmp_path, program, meanwhile=kill) as container:
        assert container.answer == {}
        assert set(os.listdir(container.directory)) <= {"busy"}
        assert not (tmp_path / "ran").exists()
        *_, (stream, payload) = everything(container.reader())
        assert stream == RUN_ENDS and json.loads(payload)["undone"]


def test_killed_after_the_program_ran_the_run_goes_on(tmp_path: Path, faults: Path) -> None:
    container = start_with_fault(tmp_path, faults, "shim.after_exec", "sleep 0.3; echo on; exit 6")
    assert container.answer == {}
    assert container.wait()["exit_code"] == 6
    assert container.output() == b"on\n"
    assert (container.directory / "executed").exists()


def test_killed_after_a_program_that_is_over_at_once_the_run_is_recorded(
    tmp_path: Path, faults: Path
) -> None:
    container = start_with_fault(tmp_path, faults, "shim.after_exec", "echo on; exit 6")
    assert container.wait()["exit_code"] == 6
    assert container.output() == b"on\n"


@pytest.mark.parametrize("point", ["shim.exited", "shim.before_exit_record"])
def test_killed_before_the_exit_record_another_shim_writes_it(
    tmp_path: Path, faults: Path, point: str
) -> None:
    launcher = Launcher({"MOORING_FAULTS": str(faults)})
    with Container(launcher, tmp_path, ["sh", "-c", "read a; echo $a; exit 9"], stdin=True) as one:
        adopter = Adopter(one)
        (faults / point).touch()
        client = one.client()
        client.tell("stdin", b"last words\n", session="s", offset=0)
        eventually(lambda: not alive(one.shim))
        assert not ended(one)
        adopter.replace()
        eventually(lambda: ended(one))
        assert one.exit()["exit_code"] == 9
        assert one.output() == b"last words\n"
        adopter.close()
    launcher.close()


def test_killed_after_the_exit_record_all_is_there(tmp_path: Path, faults: Path) -> None:
    container = start_with_fault(tmp_path, faults, "shim.after_exit_record", "echo x; exit 8")
    assert container.wait()["exit_code"] == 8
    assert container.output() == b"x\n"


@pytest.mark.kernel
def test_a_full_disk_blocks_the_container_and_loses_nothing(
    launcher: Launcher, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)], check=True)
    try:
        (disk / "ballast").write_bytes(bytes(1 << 20))
        script = "seq 1 1000000; exit 3"
        with Container(launcher, tmp_path, ["sh", "-c", script], log=disk / "log") as container:
            client = container.client()
            eventually(lambda: os.statvfs(disk).f_bavail == 0)
            assert client.ask("hello")["ok"] is True
            end = container.reader().end()
            assert alive(container.answer["pid"])
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            assert container.wait()["exit_code"] == 3
            assert container.reader().end() > end
            expected = b"".join(b"%d\n" % n for n in range(1, 1_000_001))
            assert container.output() == expected
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_input_that_is_sent_again_after_a_kill_is_written_once(
    launcher: Launcher, tmp_path: Path
) -> None:
    with Container(launcher, tmp_path, ["cat"], stdin=True, stdin_once=True) as container:
        client = container.client()
        client.ask("stdin", b"one\n", session="a", offset=0)
        client.ask("stdin", b"two\n", session="b", offset=0)
        adopter = Adopter(container)
        client.close()
        sigkill(container.shim)
        adopter.replace()
        client = container.client()
        assert client.ask("stdin", b"one\nmore\n", session="a", offset=0)["offset"] == 9
        adopter.let_go("stdin")
        assert client.ask("stdin", b"two\n", session="b", offset=0, eof=True)["closed"]
        eventually(lambda: ended(container))
        assert container.output() == b"one\ntwo\nmore\n"
        client.close()
        adopter.close()


def test_input_on_its_way_when_the_shim_is_killed_arrives_once(
    launcher: Launcher, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    script = f"while [ ! -e {go} ]; do sleep 0.02; done; cat"
    data = b"".join(b"%07d\n" % number for number in range(16 << 10))
    with Container(
        launcher, tmp_path, ["sh", "-c", script], stdin=True, stdin_once=True
    ) as container:
        client = container.client()
        client.ask("stdin", b"begin\n", session="a", offset=0)
        adopter = Adopter(container)
        # More than pipes hold: it is not answered before it is read.
        client.tell("stdin", data, session="a", offset=6)
        eventually(lambda: available(adopter.held["stage_out"]) > 0)
        client.close()
        sigkill(container.shim)
        adopter.replace()
        adopter.let_go("stdin")
        go.touch()
        client = container.client()
        assert client.ask("stdin", data, session="a", offset=6, eof=True)["closed"]
        eventually(lambda: ended(container))
        assert container.output() == b"begin\n" + data
        client.close()
        adopter.close()


def test_a_successor_that_is_not_needed_ends_and_changes_nothing(counting: Container) -> None:
    adopter = Adopter(counting)
    adopter.prepare().close()
    adopter.close()
    client = counting.client()
    end = client.ask("hello")["log_end"]
    client.ask("watch_log", after=end)
    assert client.event("log")["end"] > end
    assert shim_of(counting) == counting.shim


def test_a_run_that_is_served_is_not_taken_over_a_second_time(counting: Container) -> None:
    adopter = Adopter(counting)
    sigkill(counting.shim)
    shim = adopter.replace()
    with adopter.prepare() as sock:
        adopter.hand_over(sock)
        assert sock.recv(4096) == b"Unfit: another shim serves it"
    assert shim_of(counting) == shim
    adopter.close()


def test_a_run_that_is_over_is_not_taken_over(counting: Container) -> None:
    adopter = Adopter(counting)
    with adopter.prepare() as sock:
        os.kill(counting.answer["pid"], signal.SIGKILL)
        eventually(lambda: ended(counting))
        record = counting.exit()
        adopter.hand_over(sock)
        assert sock.recv(4096) == b"Unfit: the run is over"
    assert counting.exit() == record
    adopter.close()


def test_a_shim_whose_record_is_of_another_version_has_no_successor(counting: Container) -> None:
    path = counting.directory / "shim.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    with counting.launcher.succeed(counting.directory) as sock:
        sock.settimeout(30)
        assert sock.recv(4096) == b"Unfit: its shim.json is of version 2"


def test_a_shim_says_what_code_it_runs(counting: Container) -> None:
    assert counting.client().ask("hello")["code"] == version.digest()
    path = counting.directory / "shim.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "code": "older"}))
    adopter = Adopter(counting)
    sigkill(counting.shim)
    adopter.replace()
    assert json.loads(path.read_text())["code"] == version.digest()
    adopter.close()


def test_the_digest_is_of_all_that_a_launcher_imports() -> None:
    code = "import sys; sys.path[:0] = sys.argv[1:]; import mooring.runtime.launcher\n"
    code += "import mooring.runtime.oci.container, mooring.runtime.oci.rehearsal\n"
    code += "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('mooring.')"
    code += " and getattr(m, '__file__', None)), sep='\\n')"
    command = [
        PYTHON,
        "-I",
        "-S",
        "-c",
        code,
        str(ROOT / "runtime-worker"),
        str(ROOT / "shim-agent"),
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    empty = {path for path in found if not os.path.getsize(path)}
    assert set(found) - empty <= set(version.files())
    assert len(found) > 50


def available(fd: int) -> int:
    found: int = struct.unpack("i", fcntl.ioctl(fd, FIONREAD, bytes(4)))[0]
    return found


def test_a_start_that_comes_after_its_run_was_undone_touches_nothing(
    launcher: Launcher, tmp_path: Path
) -> None:
    """The directory is that of the next attempt at the same run."""
    with Container(launcher, tmp_path, ["true"], inode=1) as container:
        assert "undone" in container.answer["error"]["message"]
        assert not list(container.directory.iterdir())
        assert not container.log.exists()


def test_a_shim_that_wakes_after_its_run_was_undone_ends_its_process_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    (run / "shim.json").write_text("of the next attempt")
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    with subprocess.Popen(["sleep", "100"]) as process:
        pidfd = os.pidfd_open(process.pid)
        record = {"id": "c", "run": 1, "path": f"{run}/", "inode": 1, "names": ["pidfd"]}
        send_with(ours, join(record), [pidfd])
        os.close(pidfd)
        ours.close()
        _wake(None, theirs, select.epoll(), 0, -1)
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in run.iterdir()] == ["shim.json"]
    assert (run / "shim.json").read_text() == "of the next attempt"

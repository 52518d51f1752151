"""A real supervisor with small services: restarts, what survives them, and the end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mooring.kit.config import Settings, load
from mooring.supervisor import control
from tests.supervisor.gateway import MANY


def runs(pid: int) -> bool:
    """Whether a process is there and not merely waiting to be collected by its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Engine:
    """One supervisor in directories of its own."""

    def __init__(self, folder: Path) -> None:
        self.settings: Settings = load(
            {"state_dir": folder / "state", "run_dir": folder / "run"}, environ={}
        )
        self.socket = str(folder / "run" / "docker.sock")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.settings.run_dir.mkdir(exist_ok=True)
        with (self.settings.run_dir / "mooring.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.supervisor.engine"],
                env={**os.environ, **self.settings.environment()},
                stdout=log,
                stderr=log,
            )
        self.until(lambda status: status["state"] == "ready")

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + 30
        while True:
            try:
                status = control.status(self.settings.run_dir)
                if condition(status):
                    return status
            except control.NotRunning:
                status = {}
            if time.monotonic() > deadline:
                raise AssertionError(f"{status}\n{self.log()}")
            time.sleep(0.01)

    def log(self) -> str:
        return (self.settings.run_dir / "mooring.log").read_text()

    def service(self, name: str) -> dict[str, Any]:
        listed = control.status(self.settings.run_dir)["services"]
        return next(item for item in listed if item["name"] == name)

    def ask(self, word: bytes = b"hello") -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(self.socket)
            client.sendall(word)
            answer: dict[str, Any] = json.loads(client.makefile().readline())
            return answer

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
            self.process = None


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tmp_path)
    engine.start()
    yield engine
    engine.stop()


def test_services_are_ready_and_serve_with_the_settings_they_were_given(engine: Engine) -> None:
    status = control.status(engine.settings.run_dir)
    assert [item["name"] for item in status["services"]] == ["nats", "network", "worker", "gateway"]
    assert engine.service("gateway")["status"] == "serving"
    assert engine.ask()["node"] == engine.settings.node_id


def test_a_killed_service_is_back_and_the_clients_that_waited_are_answered(engine: Engine) -> None:
    before = engine.ask()["pid"]
    os.kill(before, signal.SIGSTOP)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(engine.socket)
        client.sendall(b"hello")
        os.kill(before, signal.SIGKILL)
        client.settimeout(20)
        after = json.loads(client.makefile().readline())["pid"]
    assert after != before
    assert engine.service("gateway")["restarts"] == 1


def test_a_stored_descriptor_is_handed_to_the_next_life(engine: Engine) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(engine.socket)
        client.sendall(b"keep")
        lines = client.makefile()
        first = json.loads(lines.readline())
        assert first["stored"] == []
        engine.until(lambda _: engine.service("gateway")["stored"] == 1)
        os.kill(first["pid"], signal.SIGKILL)
        assert lines.readline() == "again\n"
        assert lines.readline() == ""
    engine.until(lambda _: engine.service("gateway")["stored"] == 0)


def test_a_stored_descriptor_whose_other_end_is_gone_is_dropped(engine: Engine) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(engine.socket)
        client.sendall(b"keep")
        engine.until(lambda _: engine.service("gateway")["stored"] == 1)
    engine.until(lambda _: engine.service("gateway")["stored"] == 0)


def test_a_service_that_dies_again_and_again_is_started_ever_more_slowly(engine: Engine) -> None:
    crash = engine.settings.run_dir / "crash"
    crash.touch()
    os.kill(engine.service("worker")["pid"], signal.SIGKILL)
    engine.until(lambda _: engine.service("worker")["restarts"] >= 4)
    assert engine.ask()["pid"]
    crash.unlink()
    engine.until(lambda _: engine.service("worker")["state"] == "ready")


def test_a_killed_bus_comes_back_at_its_address(engine: Engine) -> None:
    url = (engine.settings.run_dir / "nats.json").read_text()
    old = engine.service("nats")["pid"]
    os.kill(old, signal.SIGKILL)
    engine.until(
        lambda _: (
            engine.service("nats")["state"] == "ready" and engine.service("nats")["pid"] != old
        )
    )
    assert (engine.settings.run_dir / "nats.json").read_text() == url


def test_stopping_ends_every_service_and_removes_the_sockets(engine: Engine) -> None:
    pids = [item["pid"] for item in control.status(engine.settings.run_dir)["services"]]
    control.stop(engine.settings.run_dir)
    assert not [pid for pid in pids if runs(pid)]
    assert not os.path.exists(engine.socket)
    with pytest.raises(control.NotRunning):
        control.status(engine.settings.run_dir)


def test_a_second_supervisor_is_refused(engine: Engine) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "tests.supervisor.engine"],
        env={**os.environ, **engine.settings.environment()},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert second.returncode == 1
    assert "an engine already runs" in second.stderr
    assert engine.ask()["pid"]


def test_after_a_killed_supervisor_the_next_one_ends_what_it_left(engine: Engine) -> None:
    left = [item["pid"] for item in control.status(engine.settings.run_dir)["services"]]
    assert engine.process is not None
    engine.process.kill()
    engine.process.wait()
    assert engine.ask()["pid"] in left
    engine.start()
    assert engine.ask()["pid"] not in left
    assert not [pid for pid in left if runs(pid)]


def kill_supervisor(engine: Engine) -> None:
    assert engine.process is not None
    engine.process.kill()
    engine.process.wait()


def who_answers_after_a_start(engine: Engine) -> int:
    """The pid of the gateway that answers a client which has connected before that."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(engine.socket)
        client.sendall(b"hello")
        engine.start()
        return int(json.loads(client.makefile().readline())["pid"])


def keep(engine: Engine, client: socket.socket, word: bytes = b"keep") -> Any:
    """Have a connection stored; its lines from then on."""
    client.settimeout(20)
    client.connect(engine.socket)
    client.sendall(word)
    lines = client.makefile()
    lines.readline()
    return lines


def test_what_a_service_stored_outlives_a_killed_supervisor(engine: Engine) -> None:
    with socket.socket(socket.AF_UNIX) as before, socket.socket(socket.AF_UNIX) as between:
        first = keep(engine, before)
        engine.until(lambda _: engine.service("gateway")["stored"] == 1)
        kill_supervisor(engine)
        second = keep(engine, between)
        engine.start()
        assert [first.readline(), second.readline()] == ["again\n", "again\n"]
        assert [first.readline(), second.readline()] == ["", ""]
    engine.until(lambda _: engine.service("gateway")["stored"] == 0)


def test_who_connects_between_two_supervisors_is_answered(engine: Engine) -> None:
    pid = engine.service("gateway")["pid"]
    kill_supervisor(engine)
    os.kill(pid, signal.SIGKILL)
    assert who_answers_after_a_start(engine) == engine.service("gateway")["pid"]


def test_a_service_on_demand_that_has_stored_something_runs_under_the_next_supervisor(
    engine: Engine,
) -> None:
    ask_sleeper(engine, b"store")
    engine.until(lambda _: engine.service("network")["stored"] == 2)
    kill_supervisor(engine)
    engine.start()
    assert engine.service("network")["pid"]
    assert ask_sleeper(engine, b"hello")[1] == 2


def test_a_killed_keeper_is_replaced_by_one_that_knows_as_much(engine: Engine) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        lines = keep(engine, client)
        engine.until(lambda _: engine.service("gateway")["stored"] == 1)
        keeper = control.status(engine.settings.run_dir)["keeper"]
        os.kill(keeper, signal.SIGKILL)
        engine.until(lambda status: status["keeper"] not in (0, keeper))
        kill_supervisor(engine)
        engine.start()
        assert lines.readline() == "again\n"


def test_more_than_a_keeper_can_be_told_at_once_is_kept(engine: Engine) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        keeper = control.status(engine.settings.run_dir)["keeper"]
        keep(engine, client, b"many")
        engine.until(lambda _: engine.service("gateway")["stored"] == MANY)
        assert control.status(engine.settings.run_dir)["keeper"] == keeper
        kill_supervisor(engine)
        engine.start()
        assert len(engine.ask()["stored"]) == MANY


@pytest.mark.parametrize("line", [b"[" * 4000, b"\xff", b"{}", b"[]", b'{"op": "sing"}'])
def test_a_request_that_is_none_is_refused_and_nothing_ends(engine: Engine, line: bytes) -> None:
    before = control.status(engine.settings.run_dir)["pid"]
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(engine.settings.run_dir / "supervisor.sock"))
        client.sendall(line + b"\n")
        assert json.loads(client.makefile().readline())["ok"] is False
    assert control.status(engine.settings.run_dir)["pid"] == before


@pytest.fixture
def fault(engine: Engine) -> Callable[[str], None]:
    """Has the supervisor, which is started anew with fault points, killed at one of them."""
    engine.stop()
    engine.settings = engine.settings.model_copy(update={"faults": True})
    faults = engine.settings.run_dir / "faults"
    faults.mkdir()
    engine.start()

    def arm(point: str) -> None:
        (faults / point).touch()

    return arm


def await_death(engine: Engine) -> None:
    assert engine.process is not None
    assert engine.process.wait(20) == -signal.SIGKILL


@pytest.mark.parametrize("point", ["supervisor.heard", "supervisor.told"])
def test_what_is_stored_while_the_supervisor_is_killed_is_kept_once(
    engine: Engine, fault: Callable[[str], None], point: str
) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        fault(point)
        lines = keep(engine, client)
        await_death(engine)
        engine.start()
        assert lines.readline() == "again\n"
        assert lines.readline() == ""


def test_a_service_that_the_killed_supervisor_had_not_recorded_never_began(
    engine: Engine, fault: Callable[[str], None]
) -> None:
    before = engine.service("gateway")["pid"]
    fault("supervisor.forked")
    os.kill(before, signal.SIGKILL)
    await_death(engine)
    # One that somebody knows, and not one that nobody will ever end.
    assert who_answers_after_a_start(engine) == engine.service("gateway")["pid"]


def test_a_keeper_ends_with_its_engine_and_with_its_successor(engine: Engine) -> None:
    first = control.status(engine.settings.run_dir)["keeper"]
    kill_supervisor(engine)
    assert runs(first)
    engine.start()
    second = engine.until(lambda _: not runs(first))["keeper"]
    engine.stop()
    assert not runs(second)
    assert not (engine.settings.run_dir / "keeper.sock").exists()


def test_a_keeper_ends_also_where_its_successor_is_killed_before_it_says_that_it_is_there(
    engine: Engine, fault: Callable[[str], None]
) -> None:
    first = control.status(engine.settings.run_dir)["keeper"]
    kill_supervisor(engine)
    fault("keeper.listening")
    engine.start()
    assert not (engine.settings.run_dir / "faults" / "keeper.listening").exists()
    # Two that hear the services would each have half of what they say.
    engine.until(lambda _: not runs(first))


def test_an_engine_stops_whose_keeper_does_nothing(engine: Engine) -> None:
    keeper = control.status(engine.settings.run_dir)["keeper"]
    os.kill(keeper, signal.SIGSTOP)
    engine.stop()
    assert not runs(keeper)


def test_a_service_that_hangs_is_killed_by_its_watchdog(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.stop()
    monkeypatch.setenv("MOORING_TEST_WATCHDOG", "0.4")
    engine.start()
    before = engine.service("gateway")["pid"]
    with pytest.raises(json.JSONDecodeError):
        engine.ask(b"hang")
    engine.until(lambda _: engine.service("gateway")["pid"] not in (0, before))
    assert engine.ask()["pid"] != before


def test_the_socket_is_for_root_and_the_group_only(engine: Engine) -> None:
    assert os.stat(engine.socket).st_mode & 0o777 in (0o600, 0o660)
    assert os.stat(engine.settings.run_dir / "supervisor.sock").st_mode & 0o777 == 0o600


def ask_sleeper(engine: Engine, word: bytes) -> tuple[int, int]:
    """What the service on demand says: its pid, and how many descriptors it found stored."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(20)
        client.connect(str(engine.settings.run_dir / "network.sock"))
        client.send(word)
        pid, stored = client.recv(100).split()
        return int(pid), int(stored)


def test_a_service_on_demand_runs_from_its_first_client_to_its_own_end(engine: Engine) -> None:
    assert engine.service("network")["state"] == "idle"
    pid, _ = ask_sleeper(engine, b"end")
    engine.until(lambda _: engine.service("network")["state"] == "idle")
    assert engine.service("network")["restarts"] == 0
    again, _ = ask_sleeper(engine, b"hello")
    assert again != pid


def test_a_killed_service_on_demand_is_back_with_what_it_stored(engine: Engine) -> None:
    pid, _ = ask_sleeper(engine, b"store")
    engine.until(lambda _: engine.service("network")["stored"] == 2)
    os.kill(pid, signal.SIGKILL)
    engine.until(lambda _: engine.service("network")["restarts"] == 1)
    assert ask_sleeper(engine, b"hello")[1] == 2

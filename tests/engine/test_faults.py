"""The kill table: any process of the engine is killed, nothing of a container is lost."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .harness import SERVICES, Engine, engine, numbers, until

pytestmark = [pytest.mark.kernel, pytest.mark.fault]

COUNTER = "i=1; while [ $i -le {n} ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 7"


@pytest.fixture(scope="module")
def faulty() -> Iterator[Engine]:
    with engine() as made:
        yield made


@pytest.fixture
def docker(faulty: Engine) -> Iterator[Engine]:
    yield faulty
    faulty.remove_all()
    with contextlib.suppress(AssertionError):
        # a fact whose handler was killed comes again; what nobody was told of, a sweep finds
        until("nothing is left of the containers", lambda: not faulty.leftovers(), 75)
    left = faulty.leftovers()
    assert not left, f"{left}\n{faulty.logs()[-5000:]}"


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_service_costs_no_output_exit_code_or_event(docker: Engine, service: str) -> None:
    made = docker.out("run", "-d", "--name", "count", "bb", "sh", "-c", COUNTER.format(n=200))
    docker.docker("run", "-d", "--name", "other", "bb", "sleep", "1000")
    follower = docker.popen("logs", "-f", "count")
    old = docker.kill(service)
    starting = docker.popen("run", "-d", "--name", "started", "bb", "sleep", "1000")
    stopping = docker.popen("stop", "-t", "1", "other")
    docker.back(service, old)
    starting.communicate(timeout=60)
    stopping.communicate(timeout=60)
    until("the count ended", lambda: docker.state_of("count") == "exited")
    assert docker.inspect("count")["State"]["ExitCode"] == 7
    assert numbers(docker.out("logs", "count")) == list(range(1, 201))
    out, _ = follower.communicate(timeout=30)
    assert numbers(out) == list(range(1, 201))
    actions = docker.actions(made)
    assert actions == ["create", "start", "die"]
    docker.retried("rm", "-f", "started", "other")


@pytest.mark.parametrize("service", SERVICES)
def test_an_attached_client_sees_every_line_through_a_kill(docker: Engine, service: str) -> None:
    running = docker.popen("run", "--name", "count", "bb", "sh", "-c", COUNTER.format(n=200))
    until("it runs", lambda: docker.api("GET", "/containers/count/json").status == 200
          and docker.state_of("count") == "running")  # fmt: skip
    old = docker.kill(service)
    docker.back(service, old)
    out, err = running.communicate(timeout=60)
    assert numbers(out) == list(range(1, 201)), err
    assert running.returncode == 7


def test_all_services_at_once(docker: Engine) -> None:
    for n in range(5):
        docker.docker("run", "-d", "--name", f"c{n}", "bb", "sh", "-c", COUNTER.format(n=500))
    before = {n: docker.inspect(f"c{n}")["State"]["Pid"] for n in range(5)}
    old = docker.pids()
    for pid in old.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for service, pid in old.items():
        docker.back(service, pid)
    assert {n: docker.inspect(f"c{n}")["State"]["Pid"] for n in range(5)} == before
    for n in range(5):
        assert docker.out("wait", f"c{n}") == "7"
        assert numbers(docker.out("logs", f"c{n}")) == list(range(1, 501))


def test_the_whole_engine_is_killed_with_its_supervisor_and_comes_up_again(docker: Engine) -> None:
    # However long the engine takes to come up, the container is still at it.
    script = f"trap 'exit 7' TERM; {COUNTER.format(n=1_000_000)}"
    docker.docker("run", "-d", "--name", "count", "bb", "sh", "-c", script)
    pid = docker.inspect("count")["State"]["Pid"]
    victims = [docker.status()["pid"], *docker.pids().values()]
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    docker.up()
    assert docker.inspect("count")["State"]["Pid"] == pid
    docker.docker("stop", "count")
    assert docker.out("wait", "count") == "7"
    counted = numbers(docker.out("logs", "count"))
    assert counted == list(range(1, len(counted) + 1))
    assert counted


def test_no_container_outlives_an_end_with_all_of_them_whoever_still_starts_some(
    docker: Engine,
) -> None:
    mark = f"{random.randrange(10**9)}"
    refused = threading.Event()

    def start() -> None:
        while not refused.is_set():
            body = {"Image": "bb", "Cmd": ["sleep", mark]}
            try:
                id_ = docker.api("POST", "/containers/create", body).json["Id"]
                docker.api("POST", f"/containers/{id_}/start")
            except (OSError, http.client.HTTPException, KeyError):
                refused.set()

    starting = [threading.Thread(target=start) for _ in range(4)]
    for thread in starting:
        thread.start()
    until("some run", lambda: len(docker.api("GET", "/containers/json").json) > 8)
    docker.down("--containers", "--timeout", "0")
    refused.set()
    for thread in starting:
        thread.join()
    wanted = f"sleep\0{mark}\0".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += [path] if path.read_bytes() == wanted else []
    docker.up()
    assert not found
    assert not docker.api("GET", "/containers/json").json


def why_not(docker: Engine) -> str:
    """What `mooring status` says of an engine that does not answer."""
    said = docker.mooring("status", *docker.dirs(), check=False).stderr
    return " ".join(said.split())


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with all services"])
def test_an_engine_whose_supervisor_was_killed_can_be_ended(docker: Engine, alone: bool) -> None:
    docker.docker("run", "-d", "--name", "web", "bb", "sleep", "1000")
    pid = docker.inspect("web")["State"]["Pid"]
    for killed in (docker.supervisor(), *(() if alone else docker.pids().values())):
        os.kill(killed, signal.SIGKILL)
    until("it says so", lambda: "has lost its supervisor" in why_not(docker))
    docker.down("--containers", "--timeout", "0")
    assert not os.path.exists(f"/proc/{pid}")
    until("all of it has ended", lambda: not docker.processes())
    assert "no engine runs" in why_not(docker)
    docker.up()
    assert docker.state_of("web") == "exited"


def test_a_container_that_ends_while_the_engine_is_down_is_reported_after(docker: Engine) -> None:
    docker.docker("run", "-d", "--name", "count", "bb", "sh", "-c", COUNTER.format(n=50))
    pid = docker.inspect("count")["State"]["Pid"]
    docker.down()
    until("it ended alone", lambda: not os.path.exists(f"/proc/{pid}"))
    docker.up()
    until("its end is known", lambda: docker.state_of("count") == "exited")
    assert docker.inspect("count")["State"]["ExitCode"] == 7
    assert numbers(docker.out("logs", "count")) == list(range(1, 51))


def test_the_bus_is_away_for_half_a_minute(docker: Engine) -> None:
    docker.docker("run", "-d", "--name", "count", "bb", "sh", "-c", COUNTER.format(n=300))
    follower = docker.popen("logs", "-f", "count")
    assert follower.stdout is not None
    first = follower.stdout.readline()
    pid = docker.pids()["nats"]
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(30)  # the fault itself, not a synchronisation
        ended = docker.api("GET", "/_ping").status
    finally:
        os.kill(pid, signal.SIGCONT)
    assert ended == 200
    until("the end is known", lambda: docker.state_of("count") == "exited", 60)
    out = first + follower.stdout.read()
    follower.communicate(timeout=60)
    assert numbers(out) == list(range(1, 301))


class Load(threading.Thread):
    """Starts, stops, logs and execs by one client until told to end; notes every deviation."""

    def __init__(self, docker: Engine, number: int, ended: threading.Event, calm_at: float) -> None:
        super().__init__(name=f"load-{number}")
        self.calm_at = calm_at
        """When the kills end (monotonic, s)."""
        self.docker, self.number, self.ended = docker, number, ended
        self.wrong: list[str] = []
        self.done = 0
        self.sent = 0
        """Starts sent for the container at hand."""
        self.last = ""
        """What the engine said last."""

    def until(self, what: str, condition: Callable[[], object]) -> Any:
        """As `until`, but patient: while services are being killed, nothing has to get done."""
        return until(what, condition, max(0.0, self.calm_at - time.monotonic()) + 60)

    def run(self) -> None:
        at = 0
        while not self.ended.is_set():
            at += 1
            try:
                self.one(f"load-{self.number}-{at}")
                self.done += 1
            except Exception as exc:
                self.wrong.append(f"load-{self.number}-{at}: {type(exc).__name__}: {exc}")
                self.wrong.append(self.explanation(f"load-{self.number}-{at}"))

    def explanation(self, name: str) -> str:
        """All there is to say about a container that something is wrong with."""
        with contextlib.suppress(AssertionError):
            self.until("the API answers", self.docker.answers)
        record: Any = self.calm(lambda: self.docker.api("GET", f"/containers/{name}/json").json)
        said = [f"last: {self.last}", f"record: {record}"]
        said.append(f"events: {self.calm(lambda: self.docker.actions(name))}")
        if isinstance(record, dict) and (id_ := record.get("Id")):
            runs = list((self.docker.run / "shims").glob(f"{id_}.*"))
            said += [f"{run.name}: {sorted(p.name for p in run.iterdir())}" for run in runs]
            said += [line for line in self.docker.logs().splitlines() if id_[:12] in line][-40:]
        else:
            said += [line for line in self.docker.logs().splitlines() if name in line][-40:]
        return "\n  ".join(said)

    def one(self, name: str) -> None:
        lines, code = random.randint(1, 200), random.randint(0, 100)
        script = f"seq 1 {lines}; sleep 0.{random.randint(0, 9)}; exit {code}"

        def created() -> bool:
            self.docker.docker("create", "--name", name, "bb", "sh", "-c", script, check=False)
            return self.docker.api("GET", f"/containers/{name}/json").status == 200

        self.until("created", lambda: self.calm(created))
        self.sent = 0
        self.until("started", lambda: self.calm(lambda: self.started(name)))
        if random.random() < 0.3:
            self.docker.docker("exec", name, "true", check=False)
        self.until("exited", lambda: self.calm(lambda: self.docker.state_of(name) == "exited"))
        state = self.until(
            "inspected", lambda: self.calm(lambda: self.docker.inspect(name)["State"])
        )
        if state["ExitCode"] != code:
            self.wrong.append(f"{name}: exit code {state['ExitCode']} instead of {code}")
        runs = self.events(name)
        found = self.log(name)
        if found != list(range(1, lines + 1)) * runs and self.sent > 1:
            # A start that was given up by its client may have been carried out since.
            self.docker.in_state(name, "exited", seconds=60)
            runs, found = self.events(name), self.log(name)
        expected = list(range(1, lines + 1)) * runs
        if found != expected:
            again = self.log(name)
            self.wrong.append(
                f"{name}: {len(found)} lines, read again {len(again)}, of {len(expected)}:"
                f" {found[:3]}…{found[-3:]}"
            )
        self.until("removed", lambda: self.calm(lambda: self.removed(name)))

    def log(self, name: str) -> list[int]:
        """The numbers in the log of a container."""
        out = self.until("logs", lambda: self.calm(lambda: self.docker.docker("logs", name)))
        return numbers(out.stdout)

    def events(self, name: str) -> int:
        """How often it ran. Events may come late, after a kill, but all, in order and once.

        A start that was answered with an error, as the gateway was killed, may still have been
        carried out after the next one was sent: then it ran again, and all of it has to be there.
        """
        expected = [["create", *["start", "die"] * runs] for runs in range(1, self.sent + 1)]

        def seen() -> list[str]:
            found = self.docker.actions(name)
            return [action for action in found if not action.startswith("exec")]

        with contextlib.suppress(AssertionError):
            self.until("events", lambda: self.calm(lambda: seen() in expected))
        actions = self.until("events", lambda: self.calm(seen))
        if actions not in expected:
            self.wrong.append(f"{name}: events {actions}, started {self.sent} times")
        return int(actions.count("start"))

    def calm(self, step: object) -> object:
        """The step's value, or None while the engine is being killed under it."""
        try:
            return step()  # type: ignore[operator]
        except (
            OSError,
            http.client.HTTPException,
            AssertionError,
            ValueError,
            subprocess.TimeoutExpired,
        ) as exc:
            self.last = repr(exc)
        return None

    def started(self, name: str) -> bool:
        if self.docker.state_of(name) == "created":
            self.sent += 1
            self.last = self.docker.docker("start", name, check=False).stderr
        return self.docker.state_of(name) in ("running", "exited")

    def removed(self, name: str) -> bool:
        self.last = self.docker.docker("rm", "-f", name, check=False).stderr
        return self.docker.api("GET", f"/containers/{name}/json").status == 404


def test_random_kills_under_load_lose_nothing(docker: Engine) -> None:
    seed = int(os.environ.get("MOORING_TEST_SEED", time.time_ns() % 100_000))
    chance = random.Random(seed)
    seconds = float(os.environ.get("MOORING_STORM_SECONDS", "120"))
    docker.docker("run", "-d", "--name", "steady", "bb", "sh", "-c",
                  COUNTER.format(n=1_000_000))  # fmt: skip
    pid = docker.inspect("steady")["State"]["Pid"]
    ended = threading.Event()
    deadline, kills = time.monotonic() + seconds, 0
    load = [Load(docker, n, ended, deadline) for n in range(3)]
    for thread in load:
        thread.start()
    while time.monotonic() < deadline:
        time.sleep(chance.uniform(0.2, 2.0))  # the moments are the test
        service = chance.choice(SERVICES)
        with contextlib.suppress(KeyError, ProcessLookupError, OSError, ValueError):
            docker.kill(service)
            kills += 1
    ended.set()
    for thread in load:
        thread.join(240)
    until("the API answers", docker.answers)
    wrong = [line for thread in load for line in thread.wrong]
    assert not wrong, "\n".join([f"seed {seed}, {kills} kills", *wrong])
    assert sum(thread.done for thread in load) > 5
    assert docker.inspect("steady")["State"]["Pid"] == pid
    counted = numbers(docker.out("logs", "steady"))
    assert counted == list(range(1, len(counted) + 1))


# two minutes of storm and what it takes to end
test_random_kills_under_load_lose_nothing = pytest.mark.timeout(420)(
    test_random_kills_under_load_lose_nothing
)

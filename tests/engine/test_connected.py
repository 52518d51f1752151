"""Clients stay connected while the gateway is killed, and go on at the byte."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from .harness import SERVICES, Engine, engine, numbers, until
from .test_run import Terminal

pytestmark = [pytest.mark.kernel, pytest.mark.fault]

LINES = 400
COUNTER = f"i=1; while [ $i -le {LINES} ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 7"
FLOOD = "seq 1 400000; exit 3"


@pytest.fixture(scope="module")
def connected() -> Iterator[Engine]:
    with engine("--set", "faults=true") as made:
        yield made


@pytest.fixture
def docker(connected: Engine) -> Iterator[Engine]:
    yield connected
    connected.remove_all()


class Killer(threading.Thread):
    """Kills the gateway again and again until told to end.

    One life in four is a good one: else there would be no gateway most of the time, as the pause
    before a restart grows for what never lives for a second.
    """

    def __init__(self, docker: Engine) -> None:
        super().__init__(name="killer")
        self.docker, self.ended, self.kills = docker, threading.Event(), 0

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()
        until("the API answers", self.docker.answers)

    def run(self) -> None:
        # The moments are the test.
        while not self.ended.wait(random.uniform(0.05, 0.6)):
            if self.kills % 4 == 3:
                until("the API answers", self.docker.answers)
                self.ended.wait(1.1)
            with contextlib.suppress(KeyError, ProcessLookupError, OSError, ValueError):
                self.docker.kill("gateway")
                self.kills += 1


def begun(docker: Engine, name: str) -> None:
    until(f"{name} runs", lambda: docker.api("GET", f"/containers/{name}/json").status == 200
          and docker.state_of(name) == "running")  # fmt: skip


def finished(client: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output; of a client that was read from before, communicate() loses some."""
    with client:
        assert client.stdout is not None and client.stderr is not None
        out, err = client.stdout.read(), client.stderr.read()
        assert not err, err
        return client.wait(90), out


def test_docker_run_rm_ends_when_its_start_is_lost_with_the_gateway(docker: Engine) -> None:
    """It waits for the removal of a container that nobody would have removed."""
    docker.arm("gateway.start.noted")
    done = docker.docker("run", "--rm", "--name", "lost", "bb", "echo", "never", check=False)
    assert done.returncode == 125 and done.stdout == ""
    assert docker.api("GET", "/containers/lost/json").status == 404
    assert [event["Action"] for event in docker.events(container="lost")][-1] == "destroy"


def test_a_container_whose_start_is_lost_is_still_there(docker: Engine) -> None:
    docker.arm("gateway.start.noted")
    done = docker.docker("run", "--name", "lost", "bb", "echo", "never", check=False)
    assert done.returncode == 125
    assert docker.state_of("lost") == "created"
    assert docker.docker("start", "-a", "lost").stdout == "never\n"


def test_docker_run_in_the_foreground_sees_every_line_and_the_exit_code(docker: Engine) -> None:
    client = docker.popen("run", "--name", "count", "bb", "sh", "-c", COUNTER)
    begun(docker, "count")
    with Killer(docker) as killer:
        code, out = finished(client)
    assert numbers(out) == list(range(1, LINES + 1)) and code == 7
    assert killer.kills >= 2


def test_a_flood_arrives_whole(docker: Engine) -> None:
    docker.docker("create", "--name", "flood", "bb", "sh", "-c", f"sleep 1; {FLOOD}")
    client = docker.popen("start", "-a", "flood")
    begun(docker, "flood")
    with Killer(docker):
        code, out = finished(client)
    assert code == 3
    assert numbers(out) == list(range(1, 400_001))


def test_logs_events_and_wait_go_on(docker: Engine) -> None:
    docker.docker("create", "--name", "count", "bb", "sh", "-c", COUNTER)
    events = docker.popen("events", "--format", "{{json .}}", "--filter", "type=container")
    docker.docker("start", "count")
    logs = docker.popen("logs", "-f", "--timestamps", "count")
    wait = docker.popen("wait", "count")
    assert logs.stdout is not None
    first = logs.stdout.readline()
    with Killer(docker):
        code, out = finished(logs)
        waited = finished(wait)
        for n in range(3):
            # requests in between are answered or fail cleanly
            docker.docker("rename", "count", f"count{n}", check=False)
            docker.docker("rename", f"count{n}", "count", check=False)
    assert code == 0 and waited == (0, "7\n")
    lines = [line.split(" ", 1)[1] for line in (first + out).splitlines()]
    assert [int(line) for line in lines] == list(range(1, LINES + 1))
    docker.remove_all()
    assert events.stdout is not None
    seen = []
    for line in events.stdout:
        seen.append(json.loads(line)["Action"])
        if seen[-1] == "destroy":
            break
    events.kill()
    finished(events)
    recorded = [event["Action"] for event in docker.events(type="container")]
    assert seen == recorded[-len(seen) :]


def test_what_is_typed_arrives_once_and_in_order(docker: Engine) -> None:
    client = docker.popen("run", "-i", "--name", "cat", "bb", "cat", stdin=subprocess.PIPE)
    begun(docker, "cat")
    assert client.stdin is not None
    with Killer(docker):
        for n in range(1, 301):
            client.stdin.write(f"{n}\n")
            client.stdin.flush()
            time.sleep(0.01)  # a hand that types
        out, err = client.communicate(timeout=60)
    assert numbers(out) == list(range(1, 301)), err
    assert client.returncode == 0


def test_a_terminal_of_an_exec_goes_on(docker: Engine) -> None:
    docker.docker("run", "-d", "--name", "box", "bb", "sleep", "1000")
    terminal = Terminal(docker, "exec", "-it", "box", "sh")
    terminal.expect("# ")
    with Killer(docker) as killer:
        while killer.kills < 4:
            n = random.randint(1, 10**9)
            terminal.send(f"echo $(({n}+1))\n")
            terminal.expect(str(n + 1))
    terminal.send("exit 9\n")
    assert terminal.end() == 9


def test_following_what_has_ended_comes_to_its_end(docker: Engine) -> None:
    """Who follows can't know that the run is over already."""
    docker.docker("run", "-d", "--name", "over", "bb", "seq", "1", "500000")
    docker.docker("wait", "over")
    client = docker.popen("logs", "-f", "over")
    assert client.stdout is not None
    first = client.stdout.readline()
    old = docker.kill("gateway")
    docker.back("gateway", old)
    code, out = finished(client)
    assert (first + out).split() == [str(n) for n in range(1, 500_001)] and code == 0


def test_stats_go_on(docker: Engine) -> None:
    docker.docker("run", "-d", "--name", "box", "bb", "sleep", "1000")
    client = docker.popen("stats", "--format", "{{.Name}} {{.PIDs}}", "box")
    assert client.stdout is not None
    until("a reading", lambda: "box 1" in client.stdout.readline())  # type: ignore[union-attr]
    old = docker.kill("gateway")
    docker.back("gateway", old)
    for _ in range(3):
        until("more", lambda: "box 1" in client.stdout.readline())  # type: ignore[union-attr]
    client.kill()
    finished(client)


def test_a_graceful_restart_of_the_gateway_is_not_felt_either(docker: Engine) -> None:
    client = docker.popen("run", "--name", "count", "bb", "sh", "-c", COUNTER)
    begun(docker, "count")
    old = docker.pids()["gateway"]
    os.kill(old, signal.SIGTERM)
    docker.back("gateway", old)
    code, out = finished(client)
    assert numbers(out) == list(range(1, LINES + 1)) and code == 7


@pytest.mark.parametrize("services", [(), SERVICES], ids=["alone", "with all services"])
def test_a_killed_supervisor_that_is_started_again_is_not_felt(
    docker: Engine, services: tuple[str, ...]
) -> None:
    count = docker.popen("run", "--name", "count", "bb", "sh", "-c", COUNTER)
    cat = docker.popen("run", "-i", "--name", "cat", "bb", "cat", stdin=subprocess.PIPE)
    begun(docker, "count")
    begun(docker, "cat")
    logs = docker.popen("logs", "-f", "count")
    terminal = Terminal(docker, "exec", "-it", "cat", "sh")
    terminal.expect("# ")
    assert cat.stdin is not None and cat.stdout is not None
    cat.stdin.write("before\n")
    cat.stdin.flush()
    echo = cat.stdout.readline()
    for pid in (docker.supervisor(), *(docker.pids()[service] for service in services)):
        os.kill(pid, signal.SIGKILL)
    cat.stdin.write("between\n")
    cat.stdin.flush()
    docker.up()
    terminal.send("echo $((40+2))\n")
    terminal.expect("42")
    terminal.send("exit 9\n")
    assert terminal.end() == 9
    out, err = cat.communicate("after\n", timeout=60)
    assert (echo + out, err) == ("before\nbetween\nafter\n", "")
    for client, code in ((count, 7), (logs, 0)):
        found, out = finished(client)
        assert numbers(out) == list(range(1, LINES + 1)) and found == code


def test_a_client_that_leaves_while_no_gateway_runs_leaves_nothing(docker: Engine) -> None:
    def stored() -> int:
        found = [s["stored"] for s in docker.status()["services"] if s["name"] == "gateway"]
        return int(found[0])

    docker.docker("run", "-d", "--name", "box", "bb", "sleep", "1000")
    clients = [docker.popen("attach", "--no-stdin", "box") for _ in range(5)]
    # Each attaches, and waits for the exit; five descriptors to a session, one of them the client.
    until("five are attached", lambda: stored() >= 5 * 10)
    most = stored()
    pid = docker.pids()["gateway"]
    os.kill(pid, signal.SIGSTOP)
    for client in clients:
        client.kill()
        client.communicate()
    os.kill(pid, signal.SIGKILL)
    docker.back("gateway", pid)
    # The pipes of a session are kept for the next one; its client is not.
    until("their sockets are gone", lambda: stored() == most - 10)

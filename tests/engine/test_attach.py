"""Attached clients and the log: every byte to them, however little of it the log may keep."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator

import pytest

from .harness import Engine, engine, numbers, until

pytestmark = pytest.mark.kernel

HELD = 60 << 20
SMALL = ("--log-opt", "max-size=10k", "--log-opt", "max-file=2")


@pytest.fixture(scope="module")
def docker() -> Iterator[Engine]:
    with engine() as made:
        yield made


def slowly(client: subprocess.Popen[str], lines: int) -> str:
    """The first lines of what a client prints, and nothing taken from it meanwhile."""
    assert client.stdout is not None
    return "".join(client.stdout.readline() for _ in range(lines))


def rest_of(client: subprocess.Popen[str]) -> str:
    """All that it prints from here on; nothing went wrong with it."""
    assert client.stdout is not None
    assert client.stderr is not None
    with client.stdout, client.stderr:
        rest = client.stdout.read()
        assert client.stderr.read() == ""
    client.wait(60)
    return rest


def log_size(docker: Engine, name: str) -> int:
    """Bytes of a container's log on disk."""
    log = docker.state / "containers" / docker.inspect(name)["Id"] / "log"
    return sum(path.stat().st_size for path in log.glob("*.log"))


def test_a_foreground_run_gets_every_byte_of_a_log_that_keeps_few(docker: Engine) -> None:
    out = docker.out("run", "--rm", *SMALL, "bb", "seq", "1", "1000000")
    assert numbers(out) == list(range(1, 1_000_001))


def test_a_reader_that_is_far_behind_holds_the_container_back(docker: Engine) -> None:
    # 84 MB of text: more than the log holds for anyone.
    running = docker.popen("run", "--name", "flood", *SMALL, "bb", "seq", "1", "10500000")
    out = slowly(running, 1000)
    until("the log is full", lambda: log_size(docker, "flood") > HELD)
    out += rest_of(running)
    assert out.count("\n") == 10_500_000
    assert out.endswith("\n10500000\n")
    assert log_size(docker, "flood") < HELD + (16 << 20)
    docker.docker("rm", "flood")


@pytest.mark.fault
def test_an_agent_is_killed_while_a_reader_holds_the_log(docker: Engine) -> None:
    running = docker.popen("run", "--name", "flood", *SMALL, "bb", "seq", "1", "2000000")
    out = slowly(running, 1000)
    docker.back("shim-agent", docker.kill("shim-agent"))
    out += slowly(running, 200_000)
    # What it printed fits between it and its reader: it is over, and its reader far behind.
    until("it has ended", lambda: docker.state_of("flood") == "exited")
    docker.back("shim-agent", docker.kill("shim-agent"))
    assert numbers(out + rest_of(running)) == list(range(1, 2_000_001))
    docker.docker("rm", "flood")


def test_a_follower_that_is_overtaken_by_rotation_goes_on(docker: Engine) -> None:
    docker.docker("run", "-d", "--name", "flood", *SMALL, "bb", "sh", "-c",
                  "seq 1 3000000; echo the end")  # fmt: skip
    following = docker.popen("logs", "-f", "flood")
    out = slowly(following, 10)
    docker.docker("wait", "flood")
    out += rest_of(following)
    assert out.endswith("\nthe end\n")
    found = numbers(out)
    assert found[-1] == 3_000_000
    # Where it was overtaken, the line that it was in is cut, and the next one is whole.
    cut = [a for a, b in itertools.pairwise(found) if a >= b]
    assert len(cut) < len(found) / 100
    docker.docker("rm", "flood")


@pytest.mark.fault
def test_an_agent_is_killed_as_a_container_that_removes_itself_ends(docker: Engine) -> None:
    for _ in range(5):
        running = docker.popen("run", "--rm", "--name", "short", "bb", "seq", "1", "300000")
        out = slowly(running, 1)
        docker.back("shim-agent", docker.kill("shim-agent"))
        assert numbers(out + rest_of(running)) == list(range(1, 300_001))
        until("it is gone", lambda: docker.api("GET", "/containers/short/json").status == 404)

"""A new version comes: shims are replaced by its own, and nobody but `mooring upgrade` can tell."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from mooring.kit.config import Settings, load
from mooring.kit.models.host import ShimsRenewed
from mooring.shim import version
from mooring.systemd.shims import renew
from tests.engine.harness import Engine, engine, until

pytestmark = [pytest.mark.kernel, pytest.mark.fault]

REPOSITORY = Path(__file__).resolve().parents[2]
COUNT = "i=0; while [ $i -lt 150 ]; do echo $i; i=$((i+1)); sleep 0.02; done"
COUNTED = [str(number) for number in range(150)]


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an earlier version of the shim is imported from."""
    root = tmp_path_factory.mktemp("older")
    shutil.copytree(REPOSITORY / "shim-agent/mooring/shim", root / "mooring/shim")
    with (root / "mooring/shim/packets.py").open("a") as file:
        file.write("# An earlier version.\n")
    return root


@pytest.fixture(scope="module")
def made(older: Path) -> Iterator[Engine]:
    """An engine, of the earlier version at first."""
    if shutil.which("docker") is None:
        pytest.skip("no docker CLI on PATH")
    with engine("--set", "faults=true", PYTHONPATH=str(older)) as running:
        yield running


@pytest.fixture
def docker(made: Engine) -> Iterator[Engine]:
    """Whatever containers a test made are gone after it."""
    yield made
    made.remove_all()


def records(docker: Engine) -> dict[str, Any]:
    """shim.json of every run, by container."""
    found = {}
    for path in (docker.run / "shims").glob("[!.]*/shim.json"):
        record = json.loads(path.read_text())
        found[record["id"]] = record
    return found


def settings_of(docker: Engine) -> Settings:
    return load({"state_dir": docker.state, "run_dir": docker.run}, environ={})


def renewed(docker: Engine) -> ShimsRenewed:
    """Have every shim replaced, as `mooring upgrade --every-shim` does."""
    return renew(settings_of(docker), every=True)


def test_an_engine_of_a_new_version_replaces_the_shims_that_it_finds(docker: Engine) -> None:
    script = "i=0; while [ ! -e /end ]; do echo $i; i=$((i+1)); sleep 0.02; done; exit 7"
    docker.out("run", "-d", "--name", "one", "bb", "sh", "-c", script)
    docker.out("run", "-d", "--name", "two", "bb", "sleep", "1000")
    before = records(docker)
    codes = {record["code"] for record in before.values()}
    assert len(codes) == 1 and version.digest() not in codes
    docker.down()
    del docker.env["PYTHONPATH"]
    docker.up("--set", "faults=true")
    until(
        "shims of this version",
        lambda: {record["code"] for record in records(docker).values()} == {version.digest()},
    )
    assert all(before[id_]["shim_pid"] != now["shim_pid"] for id_, now in records(docker).items())
    agent = next(s for s in docker.status()["services"] if s["name"] == "shim-agent")
    assert agent["status"] == "2 shims replaced by this version, 0 kept"
    docker.out("run", "-d", "--name", "three", "bb", "sleep", "1000")
    assert records(docker)[docker.inspect("three")["Id"]]["code"] == version.digest()
    done = renew(settings_of(docker), every=False)
    assert (done.replaced, done.current, done.kept) == (2, 1, [])
    docker.out("exec", "one", "touch", "/end")
    docker.in_state("one", "exited")
    assert docker.inspect("one")["State"]["ExitCode"] == 7
    printed = docker.out("logs", "one").split()
    assert printed == [str(number) for number in range(len(printed))]
    docker.out("stop", "-t", "0", "two")
    assert docker.inspect("two")["State"]["ExitCode"] == 137


def test_everything_goes_on_at_the_byte_while_shims_are_replaced_again_and_again(
    docker: Engine,
) -> None:
    health = ("--health-cmd", "sleep 0.1", "--health-interval", "100ms")
    for number in range(6):
        docker.out("run", "-d", "--name", f"quiet{number}", *health, "bb", "sleep", "1000")
    docker.out("run", "-d", "-t", "--name", "tty", "bb", "sh", "-c", f"{COUNT}; exit 3")
    attached = docker.popen("run", "--name", "front", "bb", "sh", "-c", f"{COUNT}; exit 7")
    typing = docker.popen("run", "-i", "--name", "typed", "bb", "cat", stdin=PIPE)
    until("all of them run", lambda: len(docker.out("ps", "-q").split()) == 9)
    inside = docker.popen("exec", "-i", "quiet0", "sh", "-c", f"{COUNT}; cat; exit 9", stdin=PIPE)
    assert typing.stdin is not None and typing.stdout is not None
    sent = 0
    before = records(docker)
    for _ in range(3):
        for _ in range(200):
            typing.stdin.write(f"{sent}\n")
            sent += 1
        typing.stdin.flush()
        done = renewed(docker)
        assert not done.kept, done.kept
        assert docker.out("exec", "quiet1", "echo", "in between") == "in between"
    now = records(docker)
    lived = [id_ for id_ in now if id_ in before and now[id_]["init_pid"]]
    assert all(now[id_]["shim_pid"] != before[id_]["shim_pid"] for id_ in lived)
    output, _ = typing.communicate(timeout=30)
    assert output.split() == [str(number) for number in range(sent)]
    assert typing.returncode == 0
    output, _ = attached.communicate(timeout=30)
    assert (output.split(), attached.returncode) == (COUNTED, 7)
    output, _ = inside.communicate("typed\n", timeout=30)
    assert (output.split(), inside.returncode) == ([*COUNTED, "typed"], 9)
    docker.in_state("tty", "exited")
    assert docker.inspect("tty")["State"]["ExitCode"] == 3
    assert docker.out("logs", "tty").split() == COUNTED
    for number in range(6):
        state = docker.inspect(f"quiet{number}")["State"]
        assert state["Health"]["Status"] == "healthy" and state["Health"]["FailingStreak"] == 0
        assert {check["ExitCode"] for check in state["Health"]["Log"]} == {0}


@pytest.mark.parametrize("point", ["agent.renewal.held", "agent.renewal.killed"])
def test_an_agent_killed_at_it_leaves_a_container_with_a_shim(docker: Engine, point: str) -> None:
    client = docker.popen("run", "--name", "one", "bb", "sh", "-c", f"{COUNT}; exit 7")
    until("output", lambda: docker.out("ps", "-q") and docker.out("logs", "one"))
    agent = docker.pids()["shim-agent"]
    docker.arm(point)
    # The request is sent again to the next agent, which does it.
    done = renewed(docker)
    assert docker.pids()["shim-agent"] != agent
    assert (done.replaced, done.kept) == (1, [])
    output, _ = client.communicate(timeout=30)
    assert (output.split(), client.returncode) == (COUNTED, 7)

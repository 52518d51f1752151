"""A shim is killed: another one takes its place, and nobody but the log of the agent can tell."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

from tests.engine.harness import Engine, engine, until

pytestmark = [pytest.mark.kernel, pytest.mark.fault]

COUNT = "i=0; while [ $i -lt 60 ]; do echo $i; i=$((i+1)); sleep 0.05; done"
COUNTED = [str(number) for number in range(60)]
OWN = 3
"""What the agent has stored for itself: the listener of agent.sock, its vestibule, the porch."""


@pytest.fixture(scope="module")
def made() -> Iterator[Engine]:
    """An engine for these tests."""
    if shutil.which("docker") is None:
        pytest.skip("no docker CLI on PATH")
    with engine("--set", "faults=true") as running:
        yield running


@pytest.fixture
def docker(made: Engine) -> Iterator[Engine]:
    """Whatever containers a test made are gone after it."""
    yield made
    made.remove_all()
    until("nothing of them is kept", lambda: made.stored("shim-agent") == OWN)


def kill_shim(docker: Engine, name: str) -> None:
    """SIGKILL the shim of a container, and wait for the one that takes over."""
    id_ = docker.inspect(name)["Id"]
    record = next((docker.run / "shims").glob(f"{id_}.*/shim.json"))
    killed = json.loads(record.read_text())["shim_pid"]
    os.kill(killed, signal.SIGKILL)
    until("another shim", lambda: json.loads(record.read_text())["shim_pid"] != killed)


def test_output_and_exit_code_are_whole(docker: Engine) -> None:
    client = docker.popen("run", "--name", "one", "bb", "sh", "-c", f"{COUNT}; exit 7")
    until("output", lambda: docker.out("ps", "-q") and docker.out("logs", "one"))
    kill_shim(docker, "one")
    kill_shim(docker, "one")
    output, _ = client.communicate(timeout=30)
    assert output.split() == COUNTED
    assert client.returncode == 7
    assert docker.out("logs", "one").split() == COUNTED


def test_a_terminal_does_not_hang_up(docker: Engine) -> None:
    docker.out("run", "-d", "-t", "--name", "one", "bb", "sh", "-c", f"{COUNT}; exit 7")
    until("output", lambda: docker.out("logs", "one"))
    kill_shim(docker, "one")
    docker.in_state("one", "exited")
    assert docker.inspect("one")["State"]["ExitCode"] == 7
    assert docker.out("logs", "one").split() == COUNTED


def test_input_goes_on_and_ends(docker: Engine) -> None:
    client = docker.popen("run", "-i", "--name", "one", "bb", "cat", stdin=subprocess.PIPE)
    assert client.stdin is not None and client.stdout is not None
    client.stdin.write("before\n")
    client.stdin.flush()
    assert client.stdout.readline() == "before\n"
    kill_shim(docker, "one")
    output, _ = client.communicate("after\n", timeout=30)
    assert output == "after\n"
    assert client.returncode == 0


def test_execs_end_as_they_do_and_others_can_be_started(docker: Engine) -> None:
    docker.out("run", "-d", "--name", "one", "bb", "sleep", "1000")
    client = docker.popen("exec", "one", "sh", "-c", "echo begun; sleep 0.5; exit 9")
    assert client.stdout is not None
    assert client.stdout.readline() == "begun\n"
    kill_shim(docker, "one")
    client.communicate(timeout=30)
    assert client.returncode == 9
    assert docker.out("exec", "one", "echo", "again") == "again"


@pytest.mark.parametrize("options", [(), ("-t",)], ids=["", "terminal"])
@pytest.mark.parametrize("point", ["shim.exec.handed", "shim.exec.recorded", "shim.exec.gone"])
def test_an_exec_runs_once_wherever_its_shim_is_killed(
    docker: Engine, point: str, options: tuple[str, ...]
) -> None:
    """Recorded and handed over before it executes anything: who comes after knows of it."""
    docker.out("run", "-d", "--name", "one", "bb", "sleep", "1000")
    docker.arm(point)
    script = "echo ran >>/tmp/ran; echo out; exit 9"
    done = docker.docker("exec", *options, "one", "sh", "-c", script, check=False)
    assert docker.fired(point)
    assert (done.returncode, done.stdout.split(), done.stderr) == (9, ["out"], "")
    assert docker.out("exec", "one", "cat", "/tmp/ran") == "ran"


def test_a_container_whose_shim_was_replaced_is_stopped_and_paused(docker: Engine) -> None:
    docker.out("run", "-d", "--name", "one", "bb", "sleep", "1000")
    kill_shim(docker, "one")
    docker.out("pause", "one")
    assert docker.state_of("one") == "paused"
    docker.out("unpause", "one")
    docker.out("stop", "-t", "0", "one")
    assert docker.inspect("one")["State"]["ExitCode"] == 137


def test_it_works_again_after_the_agent_was_killed(docker: Engine) -> None:
    docker.out("run", "-d", "--name", "one", "bb", "sh", "-c", f"{COUNT}; exit 7")
    old = docker.kill("shim-agent")
    docker.back("shim-agent", old)
    until("an answer of the agent", lambda: docker.docker("top", "one").returncode == 0)
    kill_shim(docker, "one")
    docker.in_state("one", "exited")
    assert docker.inspect("one")["State"]["ExitCode"] == 7
    assert docker.out("logs", "one").split() == COUNTED


HELPED = ("-t",)
"""Options of a container that the machine can't make: a helper does."""


@pytest.mark.parametrize(
    ("point", "options"),
    [
        ("runtime.start.executed", ()),
        ("runtime.start.told", ()),
        ("shim.untold", HELPED),
    ],
)
def test_a_shim_is_replaced_wherever_who_made_its_container_was_killed(
    docker: Engine, point: str, options: tuple[str, ...]
) -> None:
    """The agent had not heard of such a container, or not what it would need for another shim."""
    docker.arm(point)
    docker.out("run", "-d", "--name", "one", *options, "bb", "sh", "-c", f"{COUNT}; exit 7")
    assert docker.fired(point)
    until("it is kept", lambda: docker.stored("shim-agent") == OWN + 1)
    kill_shim(docker, "one")
    docker.in_state("one", "exited")
    assert docker.inspect("one")["State"]["ExitCode"] == 7
    assert docker.out("logs", "one").split() == COUNTED


def kill_both(docker: Engine, name: str) -> None:
    """SIGKILL the agent and the shim of a container, so that nobody is left who could adopt."""
    id_ = docker.inspect(name)["Id"]
    record = next((docker.run / "shims").glob(f"{id_}.*/shim.json"))
    killed = json.loads(record.read_text())["shim_pid"]
    old = docker.kill("shim-agent")
    os.kill(killed, signal.SIGKILL)
    docker.back("shim-agent", old)
    until("another shim", lambda: json.loads(record.read_text())["shim_pid"] != killed)


def test_a_shim_and_the_agent_that_die_together_lose_no_byte_and_no_exit_code(
    docker: Engine,
) -> None:
    client = docker.popen("run", "--name", "one", "bb", "sh", "-c", f"{COUNT}; exit 7")
    until("output", lambda: docker.out("ps", "-q") and docker.out("logs", "one"))
    kill_both(docker, "one")
    kill_both(docker, "one")
    output, _ = client.communicate(timeout=30)
    assert output.split() == COUNTED
    assert client.returncode == 7
    assert docker.out("logs", "one").split() == COUNTED


def test_a_container_that_ends_while_its_shim_and_the_agent_are_gone_keeps_its_exit_code(
    docker: Engine,
) -> None:
    docker.out("run", "-d", "--name", "one", "bb", "sh", "-c", "echo a; sleep 0.4; echo b; exit 7")
    until("output", lambda: docker.out("logs", "one"))
    id_ = docker.inspect("one")["Id"]
    pid = docker.inspect("one")["State"]["Pid"]
    record = next((docker.run / "shims").glob(f"{id_}.*/shim.json"))
    stopped = docker.pids()["shim-agent"]
    # Stopped, it can't adopt before it is killed.
    os.kill(stopped, signal.SIGSTOP)
    os.kill(json.loads(record.read_text())["shim_pid"], signal.SIGKILL)
    until("the end of its init", lambda: not os.path.exists(f"/proc/{pid}"))
    os.kill(stopped, signal.SIGKILL)
    docker.back("shim-agent", stopped)
    docker.in_state("one", "exited")
    assert docker.inspect("one")["State"]["ExitCode"] == 7
    assert docker.out("logs", "one").split() == ["a", "b"]


def test_input_ends_though_the_agent_was_killed_after_it_was_closed(docker: Engine) -> None:
    script = "cat; echo ended; sleep 0.5"
    client = docker.popen("run", "-i", "--name", "one", "bb", "sh", "-c", script, stdin=PIPE)
    until("a start", lambda: docker.out("ps", "-q"))
    kill_both(docker, "one")
    output, _ = client.communicate("all\n", timeout=30)
    assert output == "all\nended\n"


@pytest.mark.parametrize("kill", [kill_shim, kill_both])
def test_an_exec_goes_on_at_the_byte_under_another_shim(
    docker: Engine, kill: Callable[[Engine, str], None]
) -> None:
    docker.out("run", "-d", "--name", "one", "bb", "sleep", "1000")
    client = docker.popen("exec", "-i", "one", "sh", "-c", f"{COUNT}; cat; exit 9", stdin=PIPE)
    typing = docker.popen("exec", "-i", "one", "cat", stdin=PIPE)
    assert client.stdout is not None and typing.stdin is not None and typing.stdout is not None
    assert client.stdout.readline() == "0\n"
    typing.stdin.write("before\n")
    typing.stdin.flush()
    assert typing.stdout.readline() == "before\n"
    kill(docker, "one")
    kill(docker, "one")
    with client:
        assert client.stdin is not None and client.stderr is not None
        with contextlib.suppress(BrokenPipeError):
            client.stdin.write("typed\n")
            client.stdin.close()
        # Not communicate(): it would miss what was read ahead with the first line.
        output, said = client.stdout.read(), client.stderr.read()
    assert output.split() == [*COUNTED[1:], "typed"], f"{said}\n{docker.logs()[-5000:]}"
    assert client.returncode == 9
    output, _ = typing.communicate("after\n", timeout=30)
    assert output == "after\n"
    assert typing.returncode == 0


def test_nothing_is_kept_for_the_next_agent_of_what_is_over(docker: Engine) -> None:
    before = docker.stored("shim-agent")
    docker.out("run", "-d", "--name", "one", "bb", "sleep", "1000")
    docker.out("exec", "one", "true")
    until("one is kept", lambda: docker.stored("shim-agent") == before + 1)
    docker.out("rm", "-f", "one")
    until("none is kept", lambda: docker.stored("shim-agent") == before)


UNSTORED = ["agent.keeping.put", "agent.keeping.dropped", "agent.keeping.stored"]
"""Where what a shim has handed over is with the agent, and not, or not only, stored by its name."""


def kill_both_at(docker: Engine, point: str, act: Callable[[], None]) -> None:
    """The agent dies at a point of what `act` begins, and the shim before the next agent is."""
    supervisor, agent = docker.supervisor(), docker.pids()["shim-agent"]
    docker.arm(point)
    os.kill(supervisor, signal.SIGSTOP)
    try:
        act()
        until("the agent's death", lambda: _state(agent) == "Z")
        record = until("a shim", lambda: next((docker.run / "shims").glob("*/shim.json"), None))
        killed = json.loads(record.read_text())["shim_pid"]
        os.kill(killed, signal.SIGKILL)
    finally:
        os.kill(supervisor, signal.SIGCONT)
    until("another shim", lambda: json.loads(record.read_text())["shim_pid"] != killed)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


@pytest.mark.parametrize("point", ["agent.keeping.came", *UNSTORED])
def test_a_container_is_whole_wherever_the_agent_was_with_what_its_shim_handed_over(
    docker: Engine, point: str
) -> None:
    script = f"cat; {COUNT}; exit 7"
    create = ("create", "-i", "--network", "none", "--name", "one", "bb", "sh", "-c", script)
    docker.out(*create)
    clients = list[subprocess.Popen[str]]()
    kill_both_at(
        docker, point, lambda: clients.append(docker.popen("start", "-ai", "one", stdin=PIPE))
    )
    output, _ = clients[0].communicate("typed\n", timeout=30)
    assert output.split() == ["typed", *COUNTED]
    assert clients[0].returncode == 7


@pytest.mark.parametrize("point", ["agent.exec.begins", *UNSTORED])
def test_an_exec_is_whole_wherever_the_agent_was_with_what_its_shim_handed_over(
    docker: Engine, point: str
) -> None:
    docker.out("run", "-d", "--network", "none", "--name", "one", "bb", "sleep", "1000")
    until("it is kept", lambda: docker.stored("shim-agent") == OWN + 1)
    clients = list[subprocess.Popen[str]]()
    command = ("exec", "-i", "one", "sh", "-c", f"{COUNT}; cat; exit 9")
    kill_both_at(docker, point, lambda: clients.append(docker.popen(*command, stdin=PIPE)))
    output, _ = clients[0].communicate("typed\n", timeout=30)
    assert output.split() == [*COUNTED, "typed"]
    assert clients[0].returncode == 9
    docker.out("kill", "one")
    docker.in_state("one", "exited")
    assert docker.inspect("one")["State"]["ExitCode"] == 137


@pytest.mark.parametrize("point", UNSTORED)
def test_input_is_whole_wherever_the_agent_was_with_what_it_goes_through(
    docker: Engine, point: str
) -> None:
    """More of a run is stored in place of what was: in between there is nothing by its name."""
    create = ("create", "-i", "--network", "none", "--name", "one", "bb", "sh", "-c")
    docker.out(*create, f"{COUNT}; cat; exit 7")
    client = docker.popen("start", "-ai", "one", stdin=PIPE)
    until("it is kept", lambda: docker.stored("shim-agent") == OWN + 1)
    kill_both_at(docker, point, lambda: write(client, "typed\n"))
    output, _ = client.communicate("more\n", timeout=30)
    assert output.split() == [*COUNTED, "typed", "more"]
    assert client.returncode == 7


def write(client: subprocess.Popen[str], line: str) -> None:
    """Type a line."""
    assert client.stdin is not None
    client.stdin.write(line)
    client.stdin.flush()


def test_an_agent_that_dies_with_a_hello_unread_has_the_next_one_ask_the_shim(
    docker: Engine,
) -> None:
    docker.arm("agent.shim.accepted")
    docker.out("run", "-d", "--name", "one", "bb", "sh", "-c", f"{COUNT}; exit 7")
    assert docker.fired("agent.shim.accepted")
    until("it is kept", lambda: docker.stored("shim-agent") == OWN + 1)
    kill_both(docker, "one")
    docker.in_state("one", "exited")
    assert docker.inspect("one")["State"]["ExitCode"] == 7
    assert docker.out("logs", "one").split() == COUNTED

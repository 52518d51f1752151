"""start, stop, kill, wait, pause, rename, restart policies, removal."""

from __future__ import annotations

import pytest

from .harness import Engine, until

pytestmark = pytest.mark.kernel

POLITE = ["sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"]
RUDE = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"]


def ready(docker: Engine, name: str) -> None:
    until("the trap is set", lambda: "ready" in docker.out("logs", name))


def test_stop_lets_the_program_end_itself(docker: Engine) -> None:
    made = docker.out("run", "-d", "--name", "web", "bb", *POLITE)
    ready(docker, "web")
    docker.docker("stop", "web")
    state = docker.inspect("web")["State"]
    assert (state["Status"], state["ExitCode"], state["Running"]) == ("exited", 3, False)
    assert docker.actions(made) == ["create", "start", "kill", "die", "stop"]


def test_stop_kills_what_ignores_it(docker: Engine) -> None:
    docker.docker("run", "-d", "--name", "web", "bb", *RUDE)
    ready(docker, "web")
    docker.docker("stop", "-t", "1", "web")
    assert docker.inspect("web")["State"]["ExitCode"] == 137


def test_stop_signal_and_kill_signal(docker: Engine) -> None:
    script = "trap 'echo usr1; exit 11' USR1; echo ready; while :; do sleep 0.05; done"
    docker.docker("run", "-d", "--name", "aa", "--stop-signal", "SIGUSR1", "bb", "sh", "-c", script)
    docker.docker("run", "-d", "--name", "bb2", "bb", "sh", "-c", script)
    ready(docker, "aa")
    ready(docker, "bb2")
    docker.docker("stop", "aa")
    docker.docker("kill", "-s", "USR1", "bb2")
    assert docker.out("wait", "aa", "bb2").split() == ["11", "11"]


def test_commands_that_do_not_fit_the_state_are_refused_in_dockers_words(docker: Engine) -> None:
    made = docker.out("create", "--name", "web", "bb", *POLITE)
    kill = docker.api("POST", "/containers/web/kill")
    assert (kill.status, f"container {made} is not running" in kill.message) == (409, True)
    assert docker.api("POST", "/containers/web/stop").status == 304
    assert docker.api("POST", "/containers/web/pause").status == 409
    docker.docker("start", "web")
    assert docker.api("POST", "/containers/web/start").status == 304
    removal = docker.api("DELETE", "/containers/web")
    assert removal.status == 409
    assert "container is running" in removal.message
    twice = docker.docker("create", "--name", "web", "bb", check=False)
    assert f'The container name "/web" is already in use by container "{made}"' in twice.stderr
    assert docker.api("POST", "/containers/nope/start").message == "No such container: nope"
    assert docker.api("POST", "/containers/web/kill?signal=NOPE").status == 400


def test_pause_and_unpause(docker: Engine) -> None:
    script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"
    docker.docker("run", "-d", "--name", "web", "bb", "sh", "-c", script)
    until("it counts", lambda: docker.out("logs", "web"))
    docker.docker("pause", "web")
    assert docker.out("ps", "--format", "{{.Status}}").endswith("(Paused)")
    assert docker.docker("exec", "web", "true", check=False).returncode == 1
    frozen = docker.out("logs", "web")
    assert docker.out("logs", "web") == frozen
    docker.docker("unpause", "web")
    until("it counts on", lambda: docker.out("logs", "web") != frozen)


def test_rename_frees_the_old_name(docker: Engine) -> None:
    docker.docker("create", "--name", "old", "bb", "true")
    docker.docker("rename", "old", "new")
    docker.docker("create", "--name", "old", "bb", "true")
    assert sorted(docker.out("ps", "-a", "--format", "{{.Names}}").split()) == ["new", "old"]
    assert docker.docker("rename", "old", "new", check=False).returncode == 1


def test_restart_of_a_running_container(docker: Engine) -> None:
    made = docker.out("run", "-d", "--name", "web", "bb", *POLITE)
    ready(docker, "web")
    docker.docker("restart", "web")
    assert docker.state_of("web") == "running"
    assert docker.actions(made)[-5:] == ["kill", "die", "stop", "start", "restart"]


def test_on_failure_restarts_so_many_times(docker: Engine) -> None:
    docker.docker("run", "-d", "--name", "web", "--restart", "on-failure:3", "bb", "sh", "-c",
                  "echo go; exit 1")  # fmt: skip
    until("given up", lambda: docker.inspect("web")["RestartCount"] == 3)
    docker.in_state("web", "exited")
    assert docker.out("logs", "web").split() == ["go"] * 4


def test_always_restarts_until_it_is_stopped(docker: Engine) -> None:
    docker.docker("run", "-d", "--name", "web", "--restart", "always", "bb", "sh", "-c", "exit 0")
    until("it restarted", lambda: docker.inspect("web")["RestartCount"] >= 2)
    docker.docker("stop", "web")
    docker.in_state("web", "exited")
    count = docker.inspect("web")["RestartCount"]
    docker.docker("start", "web")
    until("again after a start", lambda: docker.inspect("web")["RestartCount"] != count)


def test_unless_stopped_comes_back_after_a_kill_from_inside(docker: Engine) -> None:
    docker.docker("run", "-d", "--name", "web", "--restart", "unless-stopped", "bb", *RUDE)
    ready(docker, "web")
    pid = docker.inspect("web")["State"]["Pid"]
    docker.docker("exec", "web", "sh", "-c", "kill -9 -1", check=False)
    import os
    import signal

    os.kill(pid, signal.SIGKILL)
    until("restarted", lambda: docker.inspect("web")["State"]["Pid"] not in (0, pid))


def test_wait_for_the_next_exit_and_for_removal(docker: Engine) -> None:
    docker.docker("run", "-d", "--rm", "--name", "web", "bb", *POLITE)
    ready(docker, "web")
    waiting = docker.popen("wait", "web")
    docker.docker("stop", "web")
    out, _ = waiting.communicate(timeout=20)
    assert out.strip() == "3"
    until("removed", lambda: docker.out("ps", "-aq") == "")


def test_prune_removes_what_is_stopped(docker: Engine) -> None:
    docker.docker("run", "--name", "done", "bb", "true")
    docker.docker("run", "-d", "--name", "web", "bb", "sleep", "100")
    assert "Deleted Containers" in docker.out("container", "prune", "-f")
    assert docker.out("ps", "-a", "--format", "{{.Names}}") == "web"


def test_top_lists_the_containers_processes_only(docker: Engine) -> None:
    docker.docker("run", "-d", "--name", "web", "bb", "sleep", "1234")
    lines = docker.out("top", "web").splitlines()
    assert len(lines) == 2
    assert "sleep 1234" in lines[1]


def test_remove_force_of_a_running_container(docker: Engine) -> None:
    made = docker.out("run", "-d", "--name", "web", "bb", *RUDE)
    docker.docker("rm", "-f", "web")
    assert docker.actions(made)[-3:] == ["kill", "die", "destroy"]
    until("nothing is left of it", lambda: not docker.leftovers())


def test_a_network_that_is_not_there_is_refused_and_leaves_nothing(docker: Engine) -> None:
    done = docker.docker("run", "--rm", "--network", "nowhere", "bb", "true", check=False)
    assert done.returncode == 125
    assert "network nowhere not found" in done.stderr

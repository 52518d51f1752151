"""`docker update`: limits of what runs, and of what will."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .harness import Engine, engine, until

pytestmark = pytest.mark.kernel

MB = 1 << 20


@pytest.fixture(scope="module")
def engine_() -> Iterator[Engine]:
    with engine() as made:
        yield made


@pytest.fixture
def docker(engine_: Engine) -> Iterator[Engine]:
    yield engine_
    engine_.remove_all()


def limits(docker: Engine, name: str) -> dict[str, str]:
    """What the kernel holds a container to; both layouts of cgroups."""
    script = (
        "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; echo pids;"
        "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max; echo cpu;"
        "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us"
    )
    out = docker.docker("exec", name, "sh", "-c", script, check=False).stdout
    memory, _, rest = out.partition("pids")
    pids, _, cpu = rest.partition("cpu")
    return {"memory": memory.strip(), "pids": pids.strip(), "cpu": cpu.split()[0]}


def test_limits_of_what_runs_change_at_once_and_stay(docker: Engine) -> None:
    docker.docker("run", "-d", "--name", "web", "-m", "64m", "bb", "sleep", "1000")
    docker.docker("update", "-m", "100m", "--cpus", "0.5", "--pids-limit", "30", "web")
    wanted = {"memory": str(100 * MB), "pids": "30", "cpu": "50000"}
    assert limits(docker, "web") == wanted
    host = docker.inspect("web")["HostConfig"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (100 * MB, 500_000_000, 30)
    docker.docker("restart", "-t", "0", "web")
    assert limits(docker, "web") == wanted
    docker.docker("update", "--pids-limit", "-1", "web")
    assert limits(docker, "web")["pids"] == "max"
    assert docker.actions("web").count("update") == 2


def test_a_restart_policy_that_is_given_later_restarts(docker: Engine) -> None:
    script = "trap 'exit 3' USR1; echo set; while :; do sleep 0.1; done"
    docker.docker("run", "-d", "--name", "web", "bb", "sh", "-c", script)
    docker.docker("update", "--restart", "always", "-m", "80m", "web")
    until("it can be told to end", lambda: docker.out("logs", "web") == "set")
    pid = docker.inspect("web")["State"]["Pid"]
    docker.api("POST", "/containers/web/kill?signal=SIGUSR1")
    until("it runs again", lambda: docker.inspect("web")["RestartCount"] == 1)
    docker.in_state("web", "running")
    assert docker.inspect("web")["State"]["Pid"] != pid
    assert limits(docker, "web")["memory"] == str(80 * MB)
    docker.docker("update", "--restart", "no", "web")
    until("it can be told to end", lambda: docker.out("logs", "web") == "set\nset")
    docker.api("POST", "/containers/web/kill?signal=SIGUSR1")
    docker.in_state("web", "exited")


def test_a_policy_is_not_for_containers_that_remove_themselves(docker: Engine) -> None:
    docker.docker("run", "-d", "--rm", "--name", "web", "bb", "sleep", "1000")
    done = docker.docker("update", "--restart", "always", "web", check=False)
    assert "Restart policy cannot be updated because AutoRemove is enabled" in done.stderr


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"Memory": 1 << 20}, 400, "Minimum memory limit allowed is 6MB"),
        ({"Memory": "much"}, 400, "Memory"),
        ({"NanoCpus": 10**15}, 400, "Range of CPUs is from 0.01 to"),
        ({"Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 1}]}, 501, "Ulimits"),
    ],
)
def test_what_is_refused_changes_nothing(
    docker: Engine, body: dict[str, object], status: int, words: str
) -> None:
    docker.docker("run", "-d", "--name", "web", "-m", "64m", "bb", "sleep", "1000")
    answer = docker.api("POST", "/containers/web/update", body)
    assert (answer.status, words in answer.message) == (status, True), answer.message
    assert docker.inspect("web")["HostConfig"]["Memory"] == 64 * MB
    assert limits(docker, "web")["memory"] == str(64 * MB)


def test_nobody_is_not_updated(docker: Engine) -> None:
    assert docker.api("POST", "/containers/nobody/update", {"CpuShares": 5}).status == 404

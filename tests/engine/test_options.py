"""What the options of `docker run` change inside the container."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .harness import Engine, until

pytestmark = pytest.mark.kernel


def test_a_container_sees_its_own_system(docker: Engine) -> None:
    script = (
        "hostname; cat /proc/1/comm; id -u; pwd; ls -d /dev/null /dev/pts /dev/shm /sys/fs/cgroup"
    )
    out = docker.out("run", "--rm", "--hostname", "box", "bb", "sh", "-c", script).split()
    assert out[:4] == ["box", "sh", "0", "/"]


@pytest.mark.parametrize(
    ("options", "script", "expected"),
    [
        (["-e", "A=1", "-e", "B=two words"], "echo $A-$B", "1-two words"),
        (["-w", "/tmp/made"], "pwd", "/tmp/made"),
        (["--user", "app"], "id -u; id -g; echo $HOME", "1000\n1000\n/home/app"),
        (["--user", "1234:55"], "id -u; id -g", "1234\n55"),
        (["--user", "app", "--group-add", "33"], "id -G", "1000 33 2000"),
        (
            ["--read-only"],
            "touch /x 2>&1 || echo refused",
            "touch: /x: Read-only file system\nrefused",
        ),
        (
            ["--tmpfs", "/scratch:size=1m,mode=700"],
            "stat -c %a /scratch; df -k /scratch | awk 'END {print $2}'",
            "700\n1024",
        ),
        (["--tmpfs", "/new/scratch", "--user", "app"], "stat -c %a /new/scratch", "1777"),
        (["--tmpfs", "/var"], "stat -c %a /var", "755"),
        (["--shm-size", "8m"], "df -k /dev/shm | tail -1 | awk '{print $2}'", "8192"),
        (["--cap-drop", "ALL"], "grep CapEff /proc/self/status | cut -f2", "0000000000000000"),
        ([], "grep CapEff /proc/self/status | cut -f2", "00000000a80425fb"),
        (["--cap-add", "NET_ADMIN"], "grep CapEff /proc/self/status | cut -f2", "00000000a80435fb"),
        (
            ["--security-opt", "no-new-privileges"],
            "grep NoNewPrivs /proc/self/status | cut -f2",
            "1",
        ),
        ([], "grep ^Seccomp: /proc/self/status | cut -f2", "2"),
        (
            ["--security-opt", "seccomp=unconfined"],
            "grep ^Seccomp: /proc/self/status | cut -f2",
            "0",
        ),
        (["--privileged"], "grep ^Seccomp: /proc/self/status | cut -f2", "0"),
        (["--ulimit", "nofile=100:200"], "ulimit -Sn; ulimit -Hn", "100\n200"),
        (["--sysctl", "kernel.shmmax=12345678"], "cat /proc/sys/kernel/shmmax", "12345678"),
        (["--oom-score-adj", "500"], "cat /proc/self/oom_score_adj", "500"),
        (
            ["--device", "/dev/null:/dev/nothing"],
            "echo x > /dev/nothing; stat -c %t:%T /dev/nothing",
            "1:3",
        ),
        (["--entrypoint", "echo"], None, "argument"),
        (["--network", "none"], "ls /sys/class/net", "lo"),
        (["--init"], "readlink /proc/1/exe | grep -o init", "init"),
    ],
)
def test_an_option_changes_what_it_says(
    docker: Engine, options: list[str], script: str | None, expected: str
) -> None:
    command = ["sh", "-c", script] if script else ["argument"]
    assert docker.out("run", "--rm", *options, "bb", *command) == expected


@pytest.mark.parametrize("user", ["app", "root", "app:33", "4321"])
def test_an_exec_as_a_user_is_in_the_groups_that_the_container_would_be_in(
    docker: Engine, user: str
) -> None:
    groups = ("--group-add", "33", "--group-add", "77")
    docker.docker("run", "-d", "--name", "web", *groups, "bb", "sleep", "1000")
    own = docker.out(
        "run", "--rm", *groups, "-u", user, "bb", "grep", "^Groups", "/proc/self/status"
    )
    entered = docker.out("exec", "-u", user, "web", "grep", "^Groups", "/proc/self/status")
    assert entered == own
    assert "77" in own.split()


@pytest.mark.usefixtures("controllers")
def test_limits_reach_the_cgroup(docker: Engine) -> None:
    docker.docker("run", "-d", "--name", "web", "--memory", "64m", "--cpus", "0.5",
                  "--pids-limit", "50", "--cpuset-cpus", "0", "bb", "sleep", "1000")  # fmt: skip
    script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max "
    script += "/sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpuset/cpuset.cpus"
    if not Path("/sys/fs/cgroup/memory").exists():
        script = (
            "cd /sys/fs/cgroup; cat memory.max pids.max; cut -d' ' -f1 cpu.max; cat cpuset.cpus"
        )
    out = docker.out("exec", "web", "sh", "-c", script)
    assert out.split() == ["67108864", "50", "50000", "0"]


def test_masked_and_read_only_paths(docker: Engine) -> None:
    script = (
        "cat /proc/kcore | wc -c; ls /proc/acpi | wc -l; echo 1 > /proc/sys/kernel/panic || echo ro"
    )
    out = docker.out("run", "--rm", "bb", "sh", "-c", f"{script} 2>/dev/null")
    assert out.split() == ["0", "0", "ro"]


@pytest.mark.usefixtures("controllers")
def test_running_out_of_memory_is_seen_and_said(docker: Engine) -> None:
    script = "x=a; while true; do x=$x$x; done"
    docker.docker("run", "-d", "--name", "fat", "--memory", "16m", "bb", "sh", "-c", script)
    docker.docker("wait", "fat")
    state = docker.inspect("fat")["State"]
    assert (state["OOMKilled"], state["ExitCode"]) == (True, 137)
    events = docker.actions("fat")
    assert "oom" in events
    assert events.index("oom") < events.index("die")


@pytest.mark.usefixtures("controllers")
def test_a_kill_for_want_of_memory_is_told_while_the_container_goes_on(docker: Engine) -> None:
    script = "tail /dev/zero; sleep 1000"
    made = docker.out("run", "-d", "--name", "fat", "--memory", "16m", "bb", "sh", "-c", script)
    until("it is told", lambda: docker.actions(made) == ["create", "start", "oom"])
    state = docker.inspect("fat")["State"]
    assert (state["Status"], state["OOMKilled"]) == ("running", True)


@pytest.mark.usefixtures("controllers")
def test_a_memory_limit_that_is_given_later_is_watched(docker: Engine) -> None:
    made = docker.out("run", "-d", "--name", "fat", "bb", "sh", "-c",
                      "trap 'tail /dev/zero' USR1; while :; do sleep 0.05; done")  # fmt: skip
    docker.docker("update", "--memory", "16m", "fat")
    docker.docker("kill", "-s", "USR1", "fat")
    until("it is told", lambda: "oom" in docker.actions(made))


@pytest.mark.usefixtures("controllers")
def test_a_fork_bomb_stays_inside_its_pids_limit(docker: Engine) -> None:
    # busybox sh ends when it cannot fork: the inner one does
    script = "(for i in $(seq 100); do sleep 1000 & done); echo bombed; exec sleep 1000"
    docker.docker("run", "-d", "--name", "bomb", "--pids-limit", "30", "bb", "sh", "-c", script)
    until("it forked", lambda: "bombed" in docker.out("logs", "bomb"))
    assert 20 < len(docker.api("GET", "/containers/bomb/top").json["Processes"]) <= 30
    docker.docker("rm", "-f", "bomb")


def test_bind_mounts(docker: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host\n")
    script = "cat /data/file; echo back > /data/new; echo no > /ro/new || echo refused"
    out = docker.out("run", "--rm", "-v", f"{tmp_path}:/data", "-v", f"{tmp_path}:/ro:ro",
                     "bb", "sh", "-c", f"{script} 2>/dev/null")  # fmt: skip
    assert out.splitlines() == ["from the host", "refused"]
    assert (tmp_path / "new").read_text() == "back\n"


def test_the_default_bridge_has_an_address_and_a_way_out(docker: Engine) -> None:
    docker.docker("run", "-d", "--name", "web", "bb", "sleep", "1000")
    network = docker.inspect("web")["NetworkSettings"]["Networks"]["bridge"]
    script = "ip -4 addr show eth0; ip route; cat /etc/hosts"
    out = docker.out("exec", "web", "sh", "-c", script)
    assert f"inet {network['IPAddress']}/" in out
    assert f"default via {network['Gateway']}" in out
    assert docker.inspect("web")["Config"]["Hostname"] in out
    gateway = ("ping", "-c", "1", "-W", "2", network["Gateway"])
    assert "1 packets received" in docker.out("exec", "web", *gateway)


def test_the_host_network_is_the_hosts(docker: Engine) -> None:
    run = ("run", "--rm", "--network", "host", "bb")
    assert docker.out(*run, "readlink", "/proc/self/ns/net") == os.readlink("/proc/self/ns/net")
    # Links of other sandboxes come and go meanwhile.
    before = set(os.listdir("/sys/class/net"))
    inside = docker.out(*run, "ls", "/sys/class/net").split()
    assert before & set(os.listdir("/sys/class/net")) <= set(inside)


def test_an_option_that_is_not_supported_is_refused_by_name(docker: Engine) -> None:
    done = docker.docker("run", "--rm", "--gpus", "all", "bb", "true", check=False)
    assert done.returncode == 125
    assert "DeviceRequests" in done.stderr or "gpu" in done.stderr.lower()


def test_no_descriptor_but_stdio_reaches_the_container(docker: Engine) -> None:
    out = docker.out("run", "--rm", "bb", "sh", "-c", "ls /proc/self/fd")
    # ls itself has the directory open as 3
    assert out.split() == ["0", "1", "2", "3"]

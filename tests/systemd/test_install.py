"""The engine as units of a real systemd: what an operator does to it, and what kills do."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from functools import partial

import pytest

import image

from .host import REPOSITORY, SLICE, Host

SERVICES = ("nats", "lifecycle", "runtime", "shim-agent", "gateway")
COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"


SHIM_CGROUPS = re.compile(r":/mooring\.slice/mooring-(shims\.service|containers\.slice/)")


def until(what: Callable[[], bool], message: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, message
        time.sleep(0.05)


def counted(host: Host, name: str) -> int:
    """How far a counting container has come; its log must have no gap."""
    numbers = [int(line) for line in host.docker("logs", name).split()]
    assert numbers == list(range(1, len(numbers) + 1))
    return len(numbers)


def answers(host: Host) -> bool:
    return bool(host.docker("version", "--format", "{{.Server.Version}}", check=False).strip())


def test_everything_is_active_and_ready(host: Host) -> None:
    for name in SERVICES:
        assert host.show(f"mooring-{name}.service", "ActiveState") == "active"
    assert host.show("mooring.target", "ActiveState") == "active"
    assert host.run("systemctl", "is-enabled", "mooring.target").strip() == "enabled"
    assert host.run("stat", "-c", "%a %G", "/run/mooring/docker.sock").split() == ["660", "mooring"]


def test_status_tells_what_systemd_knows(host: Host) -> None:
    found = json.loads(host.run("mooring", "status", "--json"))
    assert found["manager"] == "systemd" and found["state"] == "active"
    units = {unit["name"]: unit for unit in found["units"]}
    gateway = units["mooring-gateway.service"]
    assert gateway["pid"] == int(host.show("mooring-gateway.service", "MainPID"))
    assert gateway["watchdog"] == 30.0 and gateway["restarts"] >= 0
    assert "mooring-gateway" in host.run("mooring", "status")


@pytest.mark.parametrize(
    "name,most",
    [
        # As low as the work of each allows: systemd/README.md.
        *((name, 1.2) for name in ("gateway", "lifecycle", "nats")),
        ("network", 2.3),
        *((name, 9.6) for name in ("runtime", "shim-agent", "containers", "shims")),
    ],
)
def test_a_unit_is_exposed_no_more_than_its_work_needs(host: Host, name: str, most: float) -> None:
    line = host.run("systemd-analyze", "security", "--no-pager", f"mooring-{name}.service")
    assert float(line.strip().splitlines()[-1].split(":")[1].split()[0]) <= most


@pytest.mark.parametrize("name", ["gateway", "lifecycle", "nats"])
def test_what_needs_no_root_has_a_user_of_its_own(host: Host, name: str) -> None:
    pid = host.show(f"mooring-{name}.service", "MainPID")
    assert host.run("stat", "-c", "%U", f"/proc/{pid}").strip() == f"mooring-{name}"


def test_containers_are_in_no_cgroup_of_a_service(host: Host) -> None:
    host.docker("run", "-d", "--name", "apart", "--network", "none", "bb", "sleep", "1000")
    pid = host.docker("inspect", "-f", "{{.State.Pid}}", "apart").strip()
    for line in host.run("cat", f"/proc/{pid}/cgroup").splitlines():
        path = line.split(":", 2)[2]
        assert path.startswith(
            (f"/{SLICE}/mooring-containers.service", "/mooring.slice/mooring-shims.service")
        )
    host.docker("rm", "-f", "apart")


@pytest.mark.parametrize("name", SERVICES)
def test_a_killed_service_comes_back_and_the_output_has_no_gap(host: Host, name: str) -> None:
    unit = f"mooring-{name}.service"
    container = f"count-{name}"
    host.docker("run", "-d", "--name", container, "--network", "none", "bb", "sh", "-c", COUNT)
    inode = host.run("stat", "-c", "%i", "/run/mooring/docker.sock")
    pid = host.show(unit, "MainPID")
    host.run("kill", "-9", pid)
    until(lambda: host.show(unit, "MainPID") not in ("0", pid), f"{unit} does not come back")
    until(lambda: answers(host), "the API does not answer")
    assert host.run("stat", "-c", "%i", "/run/mooring/docker.sock") == inode
    before = counted(host, container)
    until(lambda: counted(host, container) > before, f"{container} has stopped printing")
    host.docker("rm", "-f", container)


@pytest.mark.parametrize("unit", ["mooring-containers.service", "mooring-shims.service"])
def test_the_keeper_of_a_cgroup_may_be_killed(host: Host, unit: str) -> None:
    host.docker("run", "-d", "--name", "safe", "--network", "none", "bb", "sh", "-c", COUNT)
    for _ in range(7):  # more than systemd starts a unit in 10 s by default
        pid = host.show(unit, "MainPID")
        host.run("kill", "-9", pid)
        until(
            lambda: host.show(unit, "MainPID") != pid and host.show(unit, "SubState") == "running",  # noqa: B023
            f"{unit} does not come back",
        )
        if host.show(unit, "MainPID") == "0":
            break  # it is kept by the processes that are in it
        host.run("systemctl", "kill", "--signal=KILL", "mooring-runtime.service", check=False)
    until(lambda: host.show(unit, "ActiveState") == "active", f"{unit} is not active")
    host.docker("run", "--rm", "--network", "none", "bb", "true")
    before = counted(host, "safe")
    until(lambda: counted(host, "safe") > before, "safe has stopped printing")
    assert (
        host.docker("inspect", "-f", "{{.RestartCount}} {{.State.Running}}", "safe") == "0 true\n"
    )
    host.docker("rm", "-f", "safe")


def test_attached_clients_stay_connected_over_kills_and_restarts_of_the_gateway(host: Host) -> None:
    script = "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo $i; sleep 0.02; done; exit 5"
    command = host.entered(
        "docker", "run", "--name", "front", "--network", "none", "bb", "sh", "-c", script
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        first = client.stdout.readline()
        for act in (("kill", "--signal=KILL"), ("restart",), ("kill", "--signal=KILL")):
            pid = host.show("mooring-gateway.service", "MainPID")
            host.run("systemctl", *act, "mooring-gateway.service")
            until(
                lambda: host.show("mooring-gateway.service", "MainPID") not in ("0", pid),  # noqa: B023
                "the gateway does not come back",
            )
            until(lambda: answers(host), "the API does not answer")
        rest = client.stdout.read()
    assert [int(line) for line in (first + rest).split()] == list(range(1, 201))
    assert client.returncode == 5
    host.docker("rm", "-f", "front")


def test_restarting_and_stopping_services_touches_no_container(host: Host) -> None:
    host.docker("run", "-d", "--name", "on", "--network", "none", "bb", "sh", "-c", COUNT)
    pid = host.docker("inspect", "-f", "{{.State.Pid}}", "on").strip()
    for name in SERVICES:
        host.run("systemctl", "restart", f"mooring-{name}.service")
    host.run("systemctl", "stop", "mooring.target")
    until(lambda: host.show("mooring-gateway.service", "ActiveState") == "inactive", "runs on")
    assert host.run("systemctl", "list-units", "--failed", "--no-legend", "mooring*") == ""
    host.run("kill", "-0", pid)
    host.run("systemctl", "start", "mooring.target")
    until(lambda: answers(host), "the API does not answer")
    assert host.docker("inspect", "-f", "{{.State.Pid}}", "on").strip() == pid
    counted(host, "on")
    host.docker("rm", "-f", "on")


def test_an_upgrade_replaces_the_services_and_keeps_containers(host: Host) -> None:
    host.docker("run", "-d", "--name", "kept", "--network", "none", "bb", "sh", "-c", COUNT)
    before = {name: host.show(f"mooring-{name}.service", "MainPID") for name in SERVICES}
    host.run("mooring", "upgrade")
    after = {name: host.show(f"mooring-{name}.service", "MainPID") for name in SERVICES}
    assert {name for name in SERVICES if before[name] == after[name]} == {"nats"}
    now = counted(host, "kept")
    until(lambda: counted(host, "kept") > now, "kept has stopped printing")
    host.docker("rm", "-f", "kept")


def test_an_upgrade_replaces_the_shims_of_an_earlier_version_under_attached_clients(
    host: Host,
) -> None:
    part = REPOSITORY / "shim-agent/mooring/shim/packets.py"
    (host.root / "root/older.py").write_text(part.read_text() + "# An earlier version.\n")
    host.run("mount", "--bind", "/root/older.py", str(part))
    host.run("systemctl", "restart", "mooring-runtime.service")
    count = "i=0; while [ ! -e /end ]; do i=$((i+1)); echo $i; sleep 0.02; done"
    plain = ("--network", "none", "bb")
    popen = partial(subprocess.Popen, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    front = popen(host.entered("docker", "run", "--name", "front", *plain, "sh", "-c", count))
    typed = popen(host.entered("docker", "run", "-i", "--name", "typed", *plain, "cat"))
    until(lambda: len(host.docker("ps", "-q").split()) == 2, "they do not run")
    inside = popen(
        host.entered("docker", "exec", "-i", "typed", "sh", "-c", f"{count}; cat; exit 9")
    )
    assert typed.stdin is not None and typed.stdout is not None and inside.stdout is not None
    typed.stdin.write("before\n")
    typed.stdin.flush()
    assert (typed.stdout.readline(), inside.stdout.readline()) == ("before\n", "1\n")
    old = shims(host)
    host.run("umount", str(part))
    said = host.run("mooring", "upgrade")
    assert "shims: 2 replaced, 0 of this version, 0 kept" in said
    host.docker("run", "-d", "--name", "new", *plain, "sleep", "1000")
    now = shims(host)
    assert {one["code"] for one in old.values()}.isdisjoint({one["code"] for one in now.values()})
    assert len({one["code"] for one in now.values()}) == 1 and len(now) == 3
    for one in now.values():
        paths = host.run("cat", f"/proc/{one['shim_pid']}/cgroup").split()
        assert all(SHIM_CGROUPS.search(path) for path in paths)
    for name in ("typed", "front"):
        host.docker("exec", name, "touch", "/end")
    with inside:
        assert inside.stdin is not None
        inside.stdin.write("within\n")
        inside.stdin.close()
        # Not communicate(): it would miss what was read ahead with the first line.
        *numbers, last = inside.stdout.read().split()
    assert (last, inside.returncode) == ("within", 9)
    assert numbers == [str(number) for number in range(2, len(numbers) + 2)]
    output, _ = typed.communicate("after\n", timeout=60)
    assert (output, typed.returncode) == ("after\n", 0)
    output, _ = front.communicate(timeout=60)
    numbers = output.split()
    assert front.returncode == 0
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    host.docker("rm", "-f", "front", "typed", "new")


def unit_of(host: Host, name: str) -> str:
    """The unit of a container."""
    return f"mooring-container-{host.docker('inspect', '-f', '{{.Id}}', name)[:12]}.service"


def test_a_container_is_a_unit_with_its_name_as_description(host: Host) -> None:
    script = "trap 'exit 3' TERM; while :; do sleep 0.1; done"
    common = ("-d", "--network", "none", "--restart", "always")
    host.docker("run", *common, "--name", "shown", "bb", "sh", "-c", script)
    unit = unit_of(host, "shown")

    def is_of(shim: str) -> bool:
        return f"/mooring-containers.slice/{unit}\n" in host.run("cat", f"/proc/{shim}/cgroup")

    def shim() -> str:
        return str(next(one for id_, one in shims(host).items() if id_[:12] in unit)["shim_pid"])

    until(lambda: host.show(unit, "ActiveState") == "active", f"no {unit}")
    assert host.show(unit, "Description") == "shown"
    first = shim()
    assert is_of(first)
    assert unit in host.run("systemd-cgls", "--no-pager", "--unit", "mooring-containers.slice")
    host.docker("rename", "shown", "named")
    until(lambda: host.show(unit, "Description") == "named", "it has its old name")
    host.run("systemctl", "daemon-reload")
    host.run("kill", "-9", first)
    until(lambda: shim() != first and is_of(shim()), "another shim has no unit")
    assert host.show(unit, "Description") == "named"
    for name in SERVICES:
        host.run("systemctl", "kill", "--signal=KILL", f"mooring-{name}.service")
    host.run("systemctl", "stop", "mooring.target")
    assert host.show(unit, "ActiveState") == "active"
    host.run("systemctl", "start", "mooring.target")
    until(lambda: answers(host), "the API does not answer")
    assert is_of(shim())
    host.run("systemctl", "stop", unit)
    state = json.loads(host.docker("inspect", "named"))[0]["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 3)
    until(lambda: host.show(unit, "LoadState") == "not-found", f"{unit} is still there")
    host.docker("start", "named")
    until(lambda: host.show(unit, "ActiveState") == "active", f"no {unit} after a start")
    host.docker("rm", "-f", "named")
    until(lambda: host.show(unit, "LoadState") == "not-found", f"{unit} is still there")


def shims(host: Host) -> dict[str, dict[str, str]]:
    """shim.json of every run, by container."""
    text = host.run("sh", "-c", "cat /run/mooring/shims/*/shim.json")
    found: dict[str, dict[str, str]] = {}
    decoder = json.JSONDecoder()
    while text:
        record, end = decoder.raw_decode(text)
        found[record["id"]], text = record, text[end:].lstrip()
    return found


def test_after_a_reboot_containers_come_back_by_their_policy(host: Host) -> None:
    common = ("-d", "--network", "none")
    host.docker("run", *common, "--name", "always", "--restart", "always", "bb", "sleep", "1000")
    host.docker("run", *common, "--name", "never", "bb", "sleep", "1000")
    unit = unit_of(host, "always")
    until(lambda: host.show(unit, "ActiveState") == "active", f"no {unit}")
    host.reboot()
    until(lambda: answers(host), "the API does not answer after a reboot")
    until(lambda: state(host, "always")["Running"] is True, "always has not come back")
    until(lambda: state(host, "never")["Running"] is False, "never is still said to run")
    assert state(host, "never")["Status"] == "exited"
    assert host.docker("ps", "-q", "--filter", "name=never").strip() == ""
    host.docker("rm", "-f", "always", "never")


def test_a_shutdown_lets_containers_end_and_stops_none_for_good(host: Host) -> None:
    """With the host its units end; that is no `docker stop`, from which nothing comes back."""
    script = "trap 'echo over; exit 4' TERM; echo begun; while :; do sleep 0.1; done"
    common = ("-d", "--network", "none", "bb", "sh", "-c", script)
    policies = {"stays": "unless-stopped", "fails": "on-failure", "ends": "no"}
    for name, policy in policies.items():
        host.docker("run", "--name", name, "--restart", policy, *common)
        unit = unit_of(host, name)
        until(lambda: host.show(unit, "ActiveState") == "active", f"no {unit}")  # noqa: B023
    host.reboot()
    until(lambda: answers(host), "the API does not answer after a reboot")
    until(lambda: state(host, "stays")["Running"] is True, "stays has not come back")
    until(lambda: state(host, "ends")["Running"] is False, "ends is still said to run")
    for name in policies:
        assert host.docker("logs", name).split()[:2] == ["begun", "over"]
    assert state(host, "ends")["Status"] == "exited"
    host.docker("rm", "-f", *policies)


def state(host: Host, name: str) -> dict[str, object]:
    """What inspect says of a container's state."""
    found: dict[str, object] = json.loads(host.docker("inspect", name))[0]["State"]
    return found


def test_uninstalling_leaves_containers_until_they_are_purged(host: Host) -> None:
    host.docker("run", "-d", "--name", "last", "--network", "none", "bb", "sleep", "1000")
    pid = host.docker("inspect", "-f", "{{.State.Pid}}", "last").strip()
    unit = unit_of(host, "last")
    until(lambda: host.show(unit, "ActiveState") == "active", f"no {unit}")
    host.run("mooring", "uninstall")
    host.run("kill", "-0", pid)
    units = host.run("systemctl", "list-units", "--all", "--no-legend", "mooring*")
    assert "not-found" not in units and "gateway" not in units
    host.install()
    assert host.docker("inspect", "-f", "{{.State.Pid}}", "last").strip() == pid
    host.docker("network", "create", "front")
    published = ("-d", "--network", "front", "-p", "8098:80", "-v", "kept:/kept")
    host.docker("run", *published, "--restart", "always", "bb", "sleep", "1000")
    host.docker("run", "-d", "bb", "sh", "-c", "exit 3")
    host.run("mooring", "uninstall", "--purge")
    assert not host.run("sh", "-c", f"kill -0 {pid} 2>/dev/null && echo on", check=False)
    until_purged(host)


def until_purged(host: Host) -> None:
    """Nothing of an engine is left; systemd forgets units a moment later."""
    deadline = time.monotonic() + 10
    while left := traces(host):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def traces(host: Host) -> list[str]:
    """What is left of an engine on a host, but for the lines of its log in the journal."""
    # Its state is on a mount of the test's. Of cgroups those of the slice: there are other
    # engines' on version 1. The repository that is mounted may be called mooring.
    script = f"""
        find /usr/local/lib /etc /run/systemd -path '*mooring*' ! -name mooring-test-root
        ls -d /run/mooring
        ls -A /var/lib/mooring
        grep -E '^mooring' /etc/passwd /etc/group /etc/shadow /etc/gshadow /etc/subuid
        systemctl list-units --all --plain --no-legend '*mooring*' | grep -v ^var-lib-
        systemctl list-unit-files --no-legend 'mooring*'
        cut -d ' ' -f 5 /proc/self/mountinfo | grep -E '^(/run|/var/lib)/mooring/'
        ls /sys/class/net | grep -E '^(mooring|mrv|br-)'
        nft list tables | grep mooring
        ps -eo pid,args | grep -E 'bin/(mooring|nats-server)|mooring-|sleep 1000' | grep -v grep
        find /sys/fs/cgroup -type d -path '*/{SLICE}*'
        ls -d /tmp/*mooring* /var/tmp/*mooring*
    """
    return host.run("sh", "-c", script, check=False).splitlines()


def test_names_and_published_ports_come_with_the_first_container_that_needs_them(
    bare: Host,
) -> None:
    """Last, on a host that has been purged."""
    bare.install()
    bare.run("docker", "load", data=image.busybox_archive("bb:latest"))
    unit = "mooring-network.service"
    assert bare.show(unit, "ActiveState") == "inactive"
    bare.docker("network", "create", "front")
    publish = ("-p", "8099:80", "--network", "front")
    serve = "echo hello > /index.html; httpd -f -p 80 -h /"
    bare.docker("run", "-d", "--name", "web", *publish, "bb", "sh", "-c", serve)
    client = ("run", "--rm", "--network", "front", "bb", "wget", "-q", "-O-", "http://web/")
    assert "hello" in bare.docker(*client)
    before = bare.show(unit, "MainPID")
    bare.run("systemctl", "kill", "--signal=KILL", unit)
    until(lambda: bare.show(unit, "MainPID") not in ("0", before), "it has not come back")
    assert "hello" in bare.docker(*client)
    assert int(bare.show(unit, "NFileDescriptorStore")) >= 3
    # Purged without an engine that could stop its containers.
    bare.run("systemctl", "stop", "mooring.target", "mooring-gateway.socket")
    bare.run("mooring", "uninstall", "--purge")
    until_purged(bare)
    bare.run("mooring", "uninstall", "--purge", check=False)
    until_purged(bare)

"""Version 2 for real: on the unified hierarchy, which a hybrid host has as well.

There it may have no controllers, so limits are tested as values (test_values.py) and in a directory
that stands for a cgroup; membership, the freezer, killing and the device program need none. With
`--cgroup2` all other tests see this version as well.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mooring.runtime.oci import ahead, cgroup2, cgroups, devicefilter, machine
from mooring.runtime.oci.cgroup2 import CgroupV2
from mooring.runtime.oci.container import OciError
from mooring.runtime.oci.job import Job
from mooring.runtime.oci.mountapi import clone_tree
from mooring.runtime.oci.namespaces import Namespaces
from mooring.runtime.oci.starting import make_cgroup

from .conftest import Box, Result, default_spec

pytestmark = pytest.mark.kernel

UNIFIED = "/sys/fs/cgroup/unified"


@pytest.fixture
def unified(monkeypatch: pytest.MonkeyPatch, box: Box) -> Box:
    """A box whose containers live on the unified hierarchy."""
    if cgroups.version() == 1:
        if not os.path.exists(f"{UNIFIED}/cgroup.controllers"):
            pytest.skip("no unified hierarchy here")
        monkeypatch.setattr(cgroup2, "ROOT", UNIFIED)
        monkeypatch.setattr(cgroups, "_version", 2)
    return box


def test_a_container_is_in_its_cgroup_with_everything_it_forks(unified: Box) -> None:
    reader, writer = os.pipe()
    running = unified.start(default_spec("sh", "-c", "sleep 9 & echo x; wait"), stdout=writer)
    os.close(writer)
    os.read(reader, 2)
    assert len(running.cgroup.pids()) == 2
    with open(f"/proc/{running.pid}/cgroup") as file:
        assert f"0::{running.cgroup.path}\n" in file.read()
    unified.clean(running)
    os.close(reader)


def test_only_allowed_devices_can_be_opened(unified: Box) -> None:
    spec = default_spec("sh", "-c", "head -c 1 /dev/zero | wc -c; mknod /x c 1 11; cat /x")
    result = unified.run(spec)
    assert result.output.startswith("1\n")
    assert "Operation not permitted" in result.output


def test_the_rules_can_be_changed_while_it_runs(unified: Box) -> None:
    reader, writer = os.pipe()
    running = unified.start(default_spec("cat"), stdin=(pipe := os.pipe())[0], stdout=writer)
    os.close(writer)
    running.cgroup.apply({"devices": [{"allow": False, "access": "rwm"}]})
    result = unified.exec(running, default_spec(), "sh", "-c", "head -c 1 /dev/zero")
    assert "Operation not permitted" in result.output
    unified.clean(running)
    for fd in (reader, *pipe):
        os.close(fd)


def test_an_exec_joins_freezes_and_dies_with_the_rest(unified: Box) -> None:
    reader, writer = os.pipe()
    spec = default_spec("sleep", "100")
    running = unified.start(spec, stdout=writer)
    os.close(writer)
    output = unified.exec(running, spec, "cat", "/proc/self/cgroup").output
    assert f"0::{running.cgroup.path}\n" in output
    running.cgroup.freeze()
    assert running.cgroup.frozen()
    running.cgroup.kill()
    assert os.waitstatus_to_exitcode(os.waitpid(running.pid, 0)[1]) == -9
    unified.clean(running)
    os.close(reader)


def test_its_own_cgroup_is_what_it_sees(unified: Box) -> None:
    spec = default_spec("cat", "/sys/fs/cgroup/cgroup.procs", "/proc/self/cgroup")
    spec["linux"]["namespaces"].append({"type": "cgroup"})
    lines = unified.run(spec).output.splitlines()
    assert lines[0] == "1"
    assert "0::/" in lines


# --- by the machine ---


class Parent:
    """A prepared parent, and the container that it has in a cgroup."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self.cgroup = cgroups.attach(f"{box.parent}/born")
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.channel.settimeout(10)
        executable = machine.executable()
        path = f"/proc/self/fd/{os.dup2(executable, 60, inheritable=False)}"
        os.close(executable)
        actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)]
        self.pid = os.posix_spawn(path, ["m"], {}, file_actions=actions)
        os.close(60)
        theirs.close()
        self.channel.send(ahead.prepare_parent().build())
        assert self.heard() == ahead.PREPARED

    def heard(self) -> bytes:
        """What its process says; its number is in `init`."""
        message, ancillary, _, _ = self.channel.recvmsg(64, 64)
        for _, _, data in ancillary:
            self.init = int.from_bytes(data[:4], "little")
        return message

    def bear(self, spec: dict[str, Any]) -> Result:
        """Run a container; everything it prints."""
        make_cgroup(self.cgroup)
        reader, writer = os.pipe()
        root = clone_tree(str(self._box.rootfs), recursive=False)
        job = Job(spec, (writer, writer, writer), root)
        assert not Namespaces(spec).joined
        packet = job.build([], {}, None, (1 << 38) - 1, self.cgroup.directories()[0])
        socket.send_fds(self.channel, [packet], job.fds)
        os.close(writer)
        os.close(root)
        assert self.heard() == ahead.READY
        assert os.waitpid(self.pid, 0)[1] == 0
        assert self.cgroup.pids() == [self.init]
        self.channel.send(ahead.GO)
        assert self.heard() == b""
        output = b""
        while part := os.read(reader, 65536):
            output += part
        os.close(reader)
        return Result(os.waitpid(self.init, 0)[1], output.decode())


@pytest.fixture
def parent(unified: Box) -> Iterator[Parent]:
    if not machine.available() or unified.warm:
        pytest.skip("once, where there is a machine")
    made = Parent(unified)
    yield made
    made.channel.close()
    made.cgroup.remove()
    # What a worker keeps until its end.
    os.close(devicefilter._usual)
    devicefilter._usual = -1


def test_the_machine_is_born_in_its_cgroup_and_sees_it_as_the_root(parent: Parent) -> None:
    script = "cat /sys/fs/cgroup/cgroup.procs; grep 0:: /proc/self/cgroup; echo $$; mount; exit 3"
    spec = default_spec("sh", "-c", script)
    spec["linux"]["namespaces"].append({"type": "cgroup"})
    result = parent.bear(spec)
    lines = result.output.splitlines()
    assert lines[0] == "1"
    assert "0::/" in lines
    assert any(" /sys/fs/cgroup type cgroup2 (ro,nosuid,nodev,noexec" in line for line in lines)
    assert result.code == 3


def test_the_machines_cgroup_has_the_usual_device_rules(parent: Parent) -> None:
    result = parent.bear(
        default_spec("sh", "-c", "head -c 1 /dev/zero | wc -c; mknod /tmp/x c 1 11; cat /tmp/x")
    )
    assert result.output.startswith("1\n")
    assert "Operation not permitted" in result.output


def test_a_cgroup_with_processes_is_nobody_elses(unified: Box) -> None:
    reader, writer = os.pipe()
    running = unified.start(default_spec("sleep", "100"), stdout=writer)
    with pytest.raises(OciError, match="in use by another container"):
        make_cgroup(running.cgroup)
    assert running.cgroup.pids() == [running.pid]
    unified.clean(running)
    os.close(reader)
    os.close(writer)


def test_an_exec_by_machine_is_born_in_the_containers_cgroup(unified: Box) -> None:
    unified.by_machine = True
    reader, writer = os.pipe()
    spec = default_spec("sleep", "100")
    running = unified.start(spec, stdout=writer)
    os.close(writer)
    result = unified.exec(running, spec, "sh", "-c", "cat /proc/self/cgroup; exit 4")
    assert f"0::{running.cgroup.path}\n" in result.output
    assert (result.code, unified.entered) == (4, int(machine.available()))
    unified.clean(running)
    os.close(reader)


def _children() -> set[str]:
    """Of this process, also those that wait to be buried."""
    threads = Path("/proc/self/task").iterdir()
    return {pid for thread in threads for pid in (thread / "children").read_text().split()}


def test_an_exec_that_can_not_be_born_is_done_otherwise(unified: Box) -> None:
    """The cgroup is not there: whoever is asked next has the words for it, and no child is left."""
    unified.by_machine = True
    reader, writer = os.pipe()
    spec = default_spec("sleep", "100")
    # Other tests of this process may have children of their own.
    before = _children()
    running = unified.start(spec, stdout=writer)
    os.close(writer)
    there, running.cgroup = running.cgroup, cgroups.attach("/mooring-test-nothing")
    with pytest.raises(OciError, match="cannot enter the container"):
        unified.exec(running, spec, "true")
    running.cgroup = there
    os.kill(running.pid, signal.SIGKILL)
    assert os.waitpid(running.pid, 0)[0] == running.pid
    assert _children() <= before
    unified.clean(running)
    os.close(reader)


# --- limits, in a directory that stands for a hierarchy ---


@pytest.fixture
def hierarchy(tmp_path: Path) -> Path:
    """The hierarchy's root, with a cgroup `parent` that somebody else has made."""
    for directory in (tmp_path, tmp_path / "parent"):
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.controllers").write_text("cpu memory\n")
        (directory / "cgroup.subtree_control").write_text("")
    return tmp_path


def test_controllers_are_handed_down_below_a_parent_that_was_there(hierarchy: Path) -> None:
    CgroupV2("/parent/c", str(hierarchy)).create()
    for directory in (hierarchy, hierarchy / "parent"):
        # Each write overwrites the one before it in a plain file.
        assert "memory" in (directory / "cgroup.subtree_control").read_text()
    assert (hierarchy / "parent/c").is_dir()


def test_a_parent_that_lost_its_controllers_gets_them_again(
    hierarchy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroup = CgroupV2("/parent/c", str(hierarchy))
    cgroup.create()

    def hand_down(directory: str) -> None:
        if directory.endswith("/parent"):
            (hierarchy / "parent/c/memory.max").touch()

    monkeypatch.setattr(cgroup2, "enable_controllers", hand_down)
    cgroup.apply({"memory": {"limit": 7 << 20}})
    assert (hierarchy / "parent/c/memory.max").read_text() == str(7 << 20)


def test_a_limit_that_this_kernel_does_not_have_is_named(hierarchy: Path) -> None:
    cgroup = CgroupV2("/parent/c", str(hierarchy))
    cgroup.create()
    with pytest.raises(OciError, match=r"cannot set pids.max: this kernel has no such"):
        cgroup.apply({"pids": {"limit": 5}})


def test_every_limit_is_in_its_file(hierarchy: Path) -> None:
    cgroup = CgroupV2("/parent/c", str(hierarchy))
    cgroup.create()
    files = {
        "memory.max": "8388608", "memory.swap.max": "4194304", "memory.low": "1048576",
        "cpu.max": "50000 100000", "cpu.weight": "39", "pids.max": "9", "cpuset.cpus": "0-1",
        "cpuset.mems": "0", "io.max": "8:0 wbps=5",
    }  # fmt: skip
    for name in files:
        (hierarchy / "parent/c" / name).touch()
    throttled = [{"major": 8, "minor": 0, "rate": 5}]
    cgroup.apply(
        {
            "memory": {"limit": 8 << 20, "swap": 12 << 20, "reservation": 1 << 20},
            "cpu": {"quota": 50000, "period": 100000, "shares": 1024, "cpus": "0-1", "mems": "0"},
            "pids": {"limit": 9},
            "blockIO": {"throttleWriteBpsDevice": throttled},
        }
    )
    assert {name: (hierarchy / "parent/c" / name).read_text() for name in files} == files


def test_kills_for_want_of_memory_are_counted(hierarchy: Path) -> None:
    cgroup = CgroupV2("/parent/c", str(hierarchy))
    cgroup.create()
    (hierarchy / "parent/c/memory.events").write_text("low 0\nmax 5\noom 2\noom_kill 3\n")
    (hierarchy / "parent/c/memory.max").write_text("max\n")
    assert cgroup.oom_kills() == 3
    assert cgroup.watch_oom() == -1

"""Version 2 for real: on the unified hierarchy, which a hybrid host has as well.

There it may have no controllers, so limits are tested as values (test_values.py); membership, the
freezer, killing and the device program need none.
"""

from __future__ import annotations

import os

import pytest

from mooring.runtime.oci import cgroup2, cgroups

from .conftest import Box, default_spec

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

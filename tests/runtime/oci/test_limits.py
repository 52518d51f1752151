"""Limits, counters and the freezer, on whichever version of cgroups this host has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mooring.runtime.oci import cgroups
from mooring.runtime.oci.container import OciError

from .conftest import Box, default_spec

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("controllers")]


def limited(command: str, **resources: Any) -> dict[str, Any]:
    spec = default_spec("sh", "-c", command)
    spec["linux"]["resources"].update(resources)
    return spec


def started(box: Box, spec: dict[str, Any]) -> tuple[Any, int]:
    reader, writer = os.pipe()
    running = box.start(spec, stdout=writer)
    os.close(writer)
    return running, reader


def test_every_process_is_in_the_cgroup(box: Box) -> None:
    spec = limited("sleep 100 & echo started; wait")
    running, reader = started(box, spec)
    assert os.read(reader, 100) == b"started\n"
    assert running.pid in running.cgroup.pids()
    assert len(running.cgroup.pids()) == 2
    told = Path(f"/proc/{running.pid}/cgroup").read_text()
    assert f":{running.cgroup.path}\n" in told
    box.clean(running)
    os.close(reader)


def test_a_fork_over_the_pids_limit_fails(box: Box) -> None:
    spec = limited("for i in 1 2 3 4 5 6 7 8; do sleep 100 & done; echo all", pids={"limit": 5})
    result = box.run(spec)
    assert "can't fork" in result.output


def test_memory_over_the_limit_is_seen_as_an_oom_kill(box: Box) -> None:
    # Pages of a tmpfs are charged too, and dd's buffer of 64 MiB at once.
    spec = limited("dd if=/dev/zero of=/dev/null bs=64M count=1", memory={"limit": 16 << 20})
    running, reader = started(box, spec)
    assert os.waitstatus_to_exitcode(os.waitpid(running.pid, 0)[1]) == -9
    assert running.cgroup.oom_kills() >= 1
    box.clean(running)
    os.close(reader)


def test_the_smallest_memory_docker_allows_is_enough_to_start(box: Box) -> None:
    assert box.run(limited("true", memory={"limit": 6 << 20})).code == 0


def test_a_container_that_was_not_short_of_memory_counts_no_oom_kill(box: Box) -> None:
    running, reader = started(box, limited("true", memory={"limit": 64 << 20}))
    os.waitpid(running.pid, 0)
    assert running.cgroup.oom_kills() == 0
    box.clean(running)
    os.close(reader)


def test_a_frozen_container_does_nothing_until_it_is_thawed(box: Box) -> None:
    running, reader = started(box, limited("while read line; do echo $line; done < /dev/zero"))
    running.cgroup.freeze()
    assert running.cgroup.frozen()
    before = running.cgroup.stats()["cpu"]["usage"]
    assert running.cgroup.stats()["cpu"]["usage"] == before
    running.cgroup.thaw()
    assert not running.cgroup.frozen()
    box.clean(running)
    os.close(reader)


def test_a_frozen_container_can_be_killed(box: Box) -> None:
    running, reader = started(box, limited("sleep 100"))
    running.cgroup.freeze()
    running.cgroup.kill()
    assert os.waitstatus_to_exitcode(os.waitpid(running.pid, 0)[1]) == -9
    box.clean(running)
    os.close(reader)


def test_counters_are_those_of_the_container(box: Box) -> None:
    spec = limited("echo ready; sleep 100", pids={"limit": 9}, memory={"limit": 32 << 20})
    running, reader = started(box, spec)
    os.read(reader, 10)
    stats = running.cgroup.stats()
    assert stats["cpu"]["usage"] > 0
    assert 0 < stats["memory"]["usage"] <= stats["memory"]["limit"] == 32 << 20
    assert stats["pids"]["limit"] == 9
    assert 1 <= stats["pids"]["current"] <= 2
    box.clean(running)
    os.close(reader)


def test_limits_can_be_changed_while_it_runs(box: Box) -> None:
    running, reader = started(box, limited("sleep 100", memory={"limit": 32 << 20}))
    running.cgroup.apply({"memory": {"limit": 64 << 20}, "cpu": {"quota": 20000, "period": 50000}})
    assert running.cgroup.stats()["memory"]["limit"] == 64 << 20
    box.clean(running)
    os.close(reader)


def test_an_attached_cgroup_is_the_same_one(box: Box) -> None:
    running, reader = started(box, limited("sleep 100"))
    assert cgroups.attach(running.cgroup.path).pids() == [running.pid]
    box.clean(running)
    os.close(reader)


def test_a_cgroup_in_use_is_refused(box: Box) -> None:
    running, reader = started(box, limited("sleep 100"))
    with pytest.raises(OciError, match="in use"):
        box.run(limited("true"), cgroup_path=running.cgroup.path)
    assert running.cgroup.pids() == [running.pid]
    box.clean(running)
    os.close(reader)


def test_a_cgroup_left_behind_is_taken_over(box: Box) -> None:
    path = f"{box.parent}/left"
    cgroups.attach(path).create()
    assert box.run(limited("true"), cgroup_path=path).code == 0


def test_a_cpuset_is_applied(box: Box) -> None:
    spec = limited("grep Cpus_allowed_list /proc/self/status", cpu={"cpus": "0"})
    assert box.run(spec).output.split()[1] == "0"


def test_an_impossible_limit_is_an_error_that_names_the_file(box: Box) -> None:
    with pytest.raises(OciError, match="cpuset"):
        box.run(limited("true", cpu={"cpus": "4000"}))


def test_cgroups_made_by_the_container_itself_go_with_it(box: Box) -> None:
    running, reader = started(box, limited("sleep 100"))
    for directory in running.cgroup.directories():
        (Path(directory) / "inner/deeper").mkdir(parents=True)
    box.clean(running)
    os.close(reader)


def test_cheap_moves_are_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hierarchy that is made for it is seen by all: a worker that is killed often makes one."""
    done = tmp_path / "done"
    if not cgroups.favor_dynamic_modifications(str(done)):
        pytest.skip("this kernel does not know how")
    monkeypatch.setattr(cgroups, "NewFilesystem", None)
    assert done.exists() and cgroups.favor_dynamic_modifications(str(done))

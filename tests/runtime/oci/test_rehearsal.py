"""The rehearsal of a start: it must succeed, where it fails nobody is told, and change nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import os, signal, sys
sys.path[:0] = {paths!r}
from mooring.runtime.oci.rehearsal import Rehearsal
from mooring.shim.rehearsal import rehearse
from mooring.runtime.oci import cgroup2, cgroups

root = "/sys/fs/cgroup"
if {version} == 2 and cgroups.version() == 1:
    root = cgroup2.ROOT = "/sys/fs/cgroup/unified"
    cgroups._version = 2

def known():
    spaces = [os.readlink(f"/proc/self/ns/{{name}}") for name in os.listdir("/proc/self/ns")]
    status = open("/proc/self/status").read()
    status = [line for line in status.splitlines() if line[:5] in ("CapPr", "CapIn", "SigIg")]
    mounts = [line for line in open("/proc/self/mountinfo") if {directory!r} in line]
    # Others come and go: engines of other tests, and systemd hosts.
    groups = [name for name in os.listdir(root) if name.startswith("rehears")]
    member = [line for line in open("/proc/self/cgroup") if "name=mooring" not in line]
    return [
        spaces, status, os.getcwd(), os.readlink("/proc/self/root"), groups,
        mounts, member, sys.meta_path[:],
        [os.readlink(f"/proc/self/fd/{{number}}") for number in range(3)], os.uname().nodename,
    ]

class Watched(Rehearsal):
    def run(self, *args, **fields):
        where = os.getcwd()
        running = super().run(*args, **fields)
        assert os.getcwd() == where, "what is written to the run directory is elsewhere"
        return running

before = known()
rehearse({directory!r}, "rehearsed-", Watched)
after = known()
assert after == before, (before, after)
"""


@pytest.mark.kernel
@pytest.mark.parametrize("version", [1, 2])
def test_a_rehearsed_start_leaves_its_process_and_the_host_as_they_were(version: int) -> None:
    directory = f"/dev/shm/rehearsal-test-{os.getpid()}"
    os.mkdir(directory)
    paths = [str(ROOT / "runtime-worker"), str(ROOT / "shim-agent")]
    program = PROGRAM.format(paths=paths, directory=directory, version=version)
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert os.listdir(directory) == []
    finally:
        os.rmdir(directory)

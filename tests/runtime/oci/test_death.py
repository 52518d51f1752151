"""The caller is killed: what it had half made must not become a container."""

from __future__ import annotations

import os
import select
import signal

import pytest

from mooring.runtime.oci import cgroups, container

from .conftest import Box, default_spec

pytestmark = [pytest.mark.kernel, pytest.mark.fault]


def gone(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([pidfd], [], [], 10)[0], f"process {pid} outlives its caller"
    os.close(pidfd)


def test_a_program_is_not_executed_when_the_caller_dies_before_it_said_so(box: Box) -> None:
    reader, writer = os.pipe()
    caller = os.fork()
    if caller == 0:

        def before_exec(pid: int) -> None:
            os.write(writer, str(pid).encode())
            os.kill(os.getpid(), signal.SIGKILL)

        try:
            box.start(default_spec("touch", "/ran"), stdout=writer, before_exec=before_exec)
        finally:
            os._exit(1)
    os.close(writer)
    pid = int(os.read(reader, 20))
    os.close(reader)
    assert os.waitstatus_to_exitcode(os.waitpid(caller, 0)[1]) == -signal.SIGKILL
    gone(pid)
    assert not (box.rootfs / "ran").exists()
    for path in cgroups.children(box.parent):
        cgroups.attach(path).remove()


def test_a_prepared_process_ends_with_its_caller(box: Box) -> None:
    reader, writer = os.pipe()
    caller = os.fork()
    if caller == 0:
        try:
            stub = container.prepare(f"{box.parent}/pool")
            os.write(writer, str(stub.pid).encode())
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.close(writer)
    pid = int(os.read(reader, 20))
    os.close(reader)
    os.waitpid(caller, 0)
    gone(pid)
    cgroups.attach(f"{box.parent}/pool").remove()


def test_a_prepared_process_that_was_killed_is_an_error_and_leaves_nothing(box: Box) -> None:
    box.warm = False
    stub = container.prepare(f"{box.parent}/pool")
    os.kill(stub.pid, signal.SIGKILL)
    os.waitid(os.P_PID, stub.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(container.OciError, match="first process"):
        box.run(default_spec("true"), stub=stub)

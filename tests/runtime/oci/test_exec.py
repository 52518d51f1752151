"""Further programs in a running container."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from typing import Any

import pytest

from mooring.runtime.oci import container, machine
from mooring.runtime.oci.container import UNEXECUTED, OciError, Running
from mooring.runtime.oci.entering import Entering
from tests.shim.harness import eventually

from .conftest import Box, default_spec

pytestmark = pytest.mark.kernel


@pytest.fixture
def spec() -> dict[str, Any]:
    return default_spec("sleep", "100")


WAYS = {"forked": (False, False), "by machine": (True, False), "early": (True, True)}


@pytest.fixture(params=list(WAYS.values()), ids=list(WAYS))
def running(box: Box, spec: dict[str, Any], request: pytest.FixtureRequest) -> Iterator[Running]:
    box.by_machine, box.early = request.param
    reader, writer = os.pipe()
    started = box.start(spec, stdout=writer)
    os.close(writer)
    yield started
    if started in box.running:
        box.clean(started)
    os.close(reader)


def test_it_joins_every_namespace_of_init(box: Box, running: Running, spec: dict[str, Any]) -> None:
    command = "for n in mnt uts ipc pid net cgroup; do readlink /proc/self/ns/$n; done"
    theirs = [
        os.readlink(f"/proc/{running.pid}/ns/{name}")
        for name in ("mnt", "uts", "ipc", "pid", "net", "cgroup")
    ]
    assert box.exec(running, spec, "sh", "-c", command).output.split() == theirs


def test_it_joins_the_cgroup_of_init(box: Box, running: Running, spec: dict[str, Any]) -> None:
    output = box.exec(running, spec, "cat", "/proc/self/cgroup").output
    with open(f"/proc/{running.pid}/cgroup") as file:
        assert output == file.read()


def test_its_exit_code_arrives(box: Box, running: Running, spec: dict[str, Any]) -> None:
    assert box.exec(running, spec, "sh", "-c", "exit 5").code == 5


def test_it_has_the_user_and_directory_asked_for(
    box: Box, running: Running, spec: dict[str, Any]
) -> None:
    user = {"uid": 12, "gid": 13}
    result = box.exec(running, spec, "sh", "-c", "id -u; id -g; pwd", user=user, cwd="/tmp")
    assert result.output == "12\n13\n/tmp\n"


def test_it_has_a_terminal_if_asked(box: Box, running: Running, spec: dict[str, Any]) -> None:
    result = box.exec(running, spec, "sh", "-c", "tty; stty size", terminal=True)
    assert result.output.split() == ["/dev/pts/0", "24", "80"]


def test_it_has_no_descriptor_but_stdio(box: Box, running: Running, spec: dict[str, Any]) -> None:
    result = box.exec(running, spec, "sh", "-c", "echo /proc/self/fd/*")
    assert len(result.output.split()) <= 4


@pytest.mark.parametrize(
    ("program", "code"), [("nope", 127), ("/nope", 127), ("/etc", 126), ("/bin", 126)]
)
def test_what_can_not_run_has_the_code_of_a_shell(
    box: Box, running: Running, spec: dict[str, Any], program: str, code: int
) -> None:
    with pytest.raises(OciError) as e:
        box.exec(running, spec, program)
    assert e.value.exit_code == code


def test_a_missing_directory_is_an_error(box: Box, running: Running, spec: dict[str, Any]) -> None:
    with pytest.raises(OciError, match="chdir to cwd"):
        box.exec(running, spec, "true", cwd="/nowhere")


def test_a_paused_container_refuses(box: Box, running: Running, spec: dict[str, Any]) -> None:
    running.cgroup.freeze()
    with pytest.raises(OciError, match="paused"):
        box.exec(running, spec, "true")
    running.cgroup.thaw()


def test_a_container_that_has_exited_refuses(
    box: Box, running: Running, spec: dict[str, Any]
) -> None:
    running.cgroup.kill()
    os.waitpid(running.pid, 0)
    with pytest.raises(OciError):
        box.exec(running, spec, "true")


def test_the_caller_stays_where_it_was(box: Box, running: Running, spec: dict[str, Any]) -> None:
    before = os.readlink("/proc/self/ns/pid_for_children")
    box.exec(running, spec, "true")
    assert os.readlink("/proc/self/ns/pid_for_children") == before


def test_the_usual_exec_is_done_by_the_machine(
    box: Box, running: Running, spec: dict[str, Any]
) -> None:
    if not machine.available():
        pytest.skip("not on this host")
    box.exec(running, spec, "true")
    assert box.entered == box.by_machine


def _come(box: Box, running: Running, spec: dict[str, Any], command: str) -> Entering:
    """An exec that is in the container, and waits before its program."""
    null = os.open("/dev/null", os.O_RDWR)
    description = {**spec["process"], "args": ["sh", "-c", command]}
    entering = container.enter(running, description, (null, null, null), None, early=True)
    os.close(null)
    if entering is None:
        pytest.skip("not on this host")
    joined = os.readlink(f"/proc/{running.pid}/ns/mnt")
    eventually(lambda: os.readlink(f"/proc/{entering.pid}/ns/mnt") == joined)
    return entering


def test_one_that_came_early_executes_nothing_before_it_is_told_to(
    box: Box, running: Running, spec: dict[str, Any]
) -> None:
    entering = _come(box, running, spec, "exit 3")
    assert not select.select([entering.channel], [], [], 0)[0]
    assert os.readlink(f"/proc/{entering.pid}/exe") == UNEXECUTED
    entering.go()
    select.select([entering.channel], [], [])
    assert entering.executed()
    assert os.waitstatus_to_exitcode(os.waitpid(entering.pid, 0)[1]) == 3
    os.close(entering.pidfd)


def test_one_that_came_early_is_taken_back_whole(
    box: Box, running: Running, spec: dict[str, Any]
) -> None:
    entering = _come(box, running, spec, "touch /tmp/executed")
    entering.abandon()
    assert running.cgroup.pids() == [running.pid]
    assert not os.path.exists(f"/proc/{running.pid}/root/tmp/executed")


def test_a_container_ends_while_one_waits_in_it(
    box: Box, running: Running, spec: dict[str, Any]
) -> None:
    entering = _come(box, running, spec, "touch /tmp/executed")
    os.kill(running.pid, 9)
    select.select([entering.channel], [], [])
    entering.abandon()
    assert os.waitpid(running.pid, 0)[1] == 9


def test_it_is_the_same_process_either_way(
    box: Box, running: Running, spec: dict[str, Any]
) -> None:
    user = {"uid": 12, "gid": 13, "additionalGids": [13, 14], "umask": 0o27}
    limits = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]
    command = (
        "grep -E '^(Cap|Uid|Gid|Groups|NoNewPrivs|SigBlk|SigIgn|Seccomp|Umask)' /proc/self/status;"
        "cat /proc/self/oom_score_adj; ulimit -n; ulimit -Hn; env; pwd; ls /proc/self/fd | wc -l"
    )
    outputs = set()
    for box.by_machine, box.early in WAYS.values():
        values = {"user": user, "rlimits": limits, "oomScoreAdj": 77, "env": ["A=b c", "PATH=/bin"]}
        outputs.add(box.exec(running, spec, "sh", "-c", command, cwd="/tmp", **values).output)
        values |= {"noNewPrivileges": True, "user": {"uid": 0, "gid": 0}}
        outputs.add(box.exec(running, spec, "sh", "-c", command, cwd="/tmp", **values).output)
    assert len(outputs) == 2

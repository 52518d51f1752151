"""Running a container from its configuration, and further programs in it.

`prepare` forks ahead of time what `run` needs first: a process in new namespaces. See channel.py
for how the two sides talk.
"""

from __future__ import annotations

import os

from . import cgroups, machine
from .channel import END, GO, READY, TERMINAL, Channel, pair
from .entering import Entering, enter
from .errors import OciError, because
from .exec import Exec
from .init import become_child
from .linux import clone3
from .process import check
from .rootsource import Overlay
from .starting import Start
from .stub import PidNamespace, Stub, bury, prepare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .cgroup import Cgroup

__all__ = [
    "UNEXECUTED", "Entering", "OciError", "Overlay", "Process", "Running", "Stub", "cgroups",
    "enter", "exec_process", "prepare", "run",
]  # fmt: skip

UNEXECUTED = machine.LINK
"""/proc/<pid>/exe of what `enter` makes, until it has executed its program."""


class Process:
    """A process of ours in a container: a child of the caller, with the host's number for it."""

    __slots__ = ("master", "pid", "pidfd")

    def __init__(self, pid: int, pidfd: int, master: int | None) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.master = master


class Running(Process):
    """A container's init. root keeps the root filesystem mounted after the last process is gone.

    The last to let go of an overlay waits for its upper directory to be synced to disk: close
    `root` when nobody is waiting any more.
    """

    __slots__ = ("cgroup", "root")

    def __init__(
        self, pid: int, pidfd: int, master: int | None, cgroup: Cgroup, root: int | None = None
    ) -> None:
        super().__init__(pid, pidfd, master)
        self.cgroup = cgroup
        self.root = root


def run(
    spec: dict[str, Any],
    *,
    bundle: str,
    rootfs: Overlay | None,
    cgroup_path: str,
    seccomp: bytes | None,
    stub: Stub | None,
    stdin: int,
    stdout: int,
    stderr: int,
    console_size: tuple[int, int] | None,
    before_exec: Callable[[int], None] | None,
    meanwhile: Callable[[], None] | None = None,
    timings: list[tuple[str, float]] | None = None,
    state: str = "",
    fifo: int | None = None,
    keep: int = 0,
) -> Running:
    """Make a container and execute its program; OciError, with everything undone, if that fails.

    before_exec is called with init's pid when all is set up and nothing was executed yet.
    meanwhile is called while init sets itself up: what it does costs the start no time.
    timings: collects (step, seconds), the steps of the child as `init.<step>`.
    state: the OCI state as JSON, for hooks. fifo: execute only after a byte was read from it.
    keep: pass descriptors 3 to 3+keep-1 on to the program (not with a stub).
    """
    try:
        start = Start(spec, bundle, cgroup_path, stub, keep, timings, state)
    except BaseException:
        if stub is not None:
            stub.abandon()
        raise
    try:
        start.send_job((stdin, stdout, stderr), console_size, seccomp)
        start.send_mounts(rootfs)
        start.set_up()
        if meanwhile is not None:
            meanwhile()
        start.execute(before_exec, fifo)
    except BaseException:
        start.undo()
        raise
    finally:
        start.close_descriptors()
    return Running(*start.result())


def exec_process(
    running: Running,
    spec: dict[str, Any],
    process: dict[str, Any],
    *,
    stdin: int,
    stdout: int,
    stderr: int,
    console_size: tuple[int, int] | None,
    seccomp: bytes | None,
    keep: int = 0,
    before_exec: Callable[[int, int, int | None], None] | None = None,
) -> Process:
    """Run a further program in a container: in its namespaces and cgroup, a child of the caller.

    before_exec is called with its pid, its pidfd and the master of its terminal when nothing is
    left but to execute the program, which it does not if that raises, or if the caller dies.
    OciError with exit code 126 or 127 if there is no such program. Only running.pidfd and
    running.cgroup are used.
    """
    check(process)
    if running.cgroup.frozen():
        raise OciError("cannot execute in a paused container")
    work = Exec(running, spec, process, (stdin, stdout, stderr), console_size, seccomp, keep)
    ours, theirs = pair()
    v2 = cgroups.version() == 2
    directory = -1
    try:
        if v2:
            directory = os.open(running.cgroup.directories()[0], os.O_PATH | os.O_CLOEXEC)
        with PidNamespace(running.pidfd):
            pid, pidfd = clone3(0, directory)
            if pid == 0:
                become_child(theirs, work.run)
    except OSError as error:
        ours.close()
        raise because("cannot enter the container", error) from error
    except OciError:
        ours.close()
        raise
    finally:
        theirs.close()
        if directory >= 0:
            os.close(directory)
    return _executed(ours, pid, pidfd, before_exec)


def _executed(
    channel: Channel,
    pid: int,
    pidfd: int,
    before_exec: Callable[[int, int, int | None], None] | None,
) -> Process:
    """Wait until the child has executed its program; its terminal arrives first."""
    master = None
    while True:
        letter, value, fds = channel.receive(most_fds=1)
        if letter == TERMINAL:
            master = fds[0]
            continue
        if letter == READY:
            try:
                if before_exec is not None:
                    before_exec(pid, pidfd, master)
            except BaseException:
                # It ends by itself, with the code of what has executed nothing.
                channel.close()
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
                os.close(pidfd)
                raise
            channel.send(GO)
            continue
        channel.close()
        if letter == END:
            return Process(pid, pidfd, master)
        bury(pid, pidfd)
        if master is not None:
            os.close(master)
        raise OciError(value[1], value[0])

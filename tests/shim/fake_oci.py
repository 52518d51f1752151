"""A small runtime for tests of the shim: processes on the host, no namespaces, no cgroups.

Standard library only: the launcher of a test imports it in place of the built-in runtime.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import Any


class OciError(Exception):
    def __init__(self, message: str, exit_code: int = 128) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


class Overlay:
    def __init__(self, lowers: list[str], upper: str, work: str) -> None:
        self.lowers, self.upper, self.work = lowers, upper, work


class Stub:
    def abandon(self) -> None:
        pass


class Cgroup:
    """The processes of one session stand for those of a cgroup."""

    def __init__(self) -> None:
        self._leaders: list[int] = []
        self._frozen = False

    def join(self, pid: int) -> None:
        self._leaders.append(pid)

    def pids(self) -> list[int]:
        found = []
        for name in os.listdir("/proc"):
            if name.isdecimal():
                try:
                    if os.getsid(int(name)) in self._leaders:
                        found.append(int(name))
                except ProcessLookupError:
                    continue
        return found

    def _signal(self, number: int) -> None:
        for pid in self.pids():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)
        self._frozen = True

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)
        self._frozen = False

    def frozen(self) -> bool:
        return self._frozen

    def apply(self, resources: dict[str, Any]) -> None:
        if resources.get("refuse"):
            raise OSError(errno.EINVAL, "no such resource")

    def stats(self) -> dict[str, Any]:
        return {"pids": len(self.pids())}

    def oom_kills(self) -> int:
        return 0

    def remove(self) -> None:
        pass


class Running:
    root = None

    def __init__(self, pid: int, pidfd: int, master: int | None, cgroup: Cgroup) -> None:
        self.pid, self.pidfd, self.master, self.cgroup = pid, pidfd, master, cgroup
        cgroup.join(pid)


def prepare(cgroup_path: str | None) -> Stub:
    return Stub()


class cgroups:
    @staticmethod
    def attach(path: str) -> Cgroup:
        return Cgroup()


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
    before_exec: Any,
    meanwhile: Any = None,
    timings: list[tuple[str, float]] | None = None,
) -> Running:
    if timings is not None:
        timings.append(("fake", 0.001))
    if meanwhile is not None:
        meanwhile()
    process = _begin(
        spec["process"], stdin, stdout, stderr, console_size, lambda pid, _: before_exec(pid)
    )
    return Running(process.pid, process.pidfd, process.master, Cgroup())


class Process:
    def __init__(self, pid: int, pidfd: int, master: int | None) -> None:
        self.pid, self.pidfd, self.master = pid, pidfd, master


def enter(*_: object, early: bool = False) -> None:
    """There is no machine here."""


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
    before_exec: Any,
) -> Process:
    assert spec["process"]

    def before(pid: int, master: int | None) -> None:
        before_exec(pid, os.pidfd_open(pid), master)

    begun = _begin(process, stdin, stdout, stderr, console_size, before)
    running.cgroup.join(begun.pid)
    return begun


def _begin(
    process: dict[str, Any],
    stdin: int,
    stdout: int,
    stderr: int,
    console_size: tuple[int, int] | None,
    before_exec: Any,
) -> Process:
    master = slave = None
    if process.get("terminal"):
        master, slave = os.openpty()
        stdin = stdout = stderr = slave
        if console_size:
            import fcntl
            import struct

            fcntl.ioctl(master, 0x5414, struct.pack("<HHHH", *console_size, 0, 0))
    go_r, go_w = os.pipe()
    err_r, err_w = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(go_w)
            os.setsid()
            if slave is not None:
                import fcntl

                fcntl.ioctl(slave, 0x540E, 0)
            high = [os.dup(fd) for fd in (stdin, stdout, stderr)]
            if not os.read(go_r, 1):
                os._exit(249)
            for target, fd in enumerate(high):
                os.dup2(fd, target)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            os.chdir(process.get("cwd", "/"))
            environment = dict(e.split("=", 1) for e in process.get("env", ["PATH=/usr/bin:/bin"]))
            os.execvpe(process["args"][0], process["args"], environment)
        except OSError as error:
            os.write(err_w, str(error.errno).encode())
        finally:
            os._exit(127)
    os.close(go_r)
    os.close(err_w)
    if slave is not None:
        os.close(slave)
    try:
        before_exec(pid, master)
    except BaseException:
        os.close(go_w)
        raise
    os.write(go_w, b"g")
    os.close(go_w)
    failed = os.read(err_r, 16)
    os.close(err_r)
    if failed:
        os.waitpid(pid, 0)
        code = 127 if int(failed) == errno.ENOENT else 126
        raise OciError(f'exec: "{process["args"][0]}": {os.strerror(int(failed))}', code)
    return Process(pid, os.pidfd_open(pid), master)

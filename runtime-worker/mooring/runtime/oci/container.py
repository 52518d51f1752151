"""Running a container from its configuration, and further programs in it.

`prepare` forks ahead of time what `run` needs first: a process in new namespaces. See channel.py
for how the two sides talk.
"""

from __future__ import annotations

import itertools
import os
import time

from . import cgroups, mountapi, seccomp, template
from .channel import END, ERROR, GO, HOOKS, JOB, MOUNTS, PREPARED, READY, TERMINAL, Channel, pair
from .errors import OciError, because
from .exec import Exec
from .hooks import run_hooks
from .init import become_child, main
from .linux import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    SIGKILL,
    clone3,
    send_signal,
    setns,
)
from .mountspec import is_bind
from .namespaces import Namespaces
from .process import check
from .rootsource import Overlay, open_root
from .staging import open_cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .cgroup import Cgroup

__all__ = [
    "OciError", "Overlay", "Process", "Running", "Stub", "exec_process", "prepare", "run",
]  # fmt: skip

_PREPARED = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID


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


class Stub:
    """A process in new namespaces that waits to become a container."""

    __slots__ = ("ahead", "cgroup", "channel", "device_rules", "namespaces", "pid", "pidfd")

    def __init__(
        self, pid: int, pidfd: int, channel: Channel, namespaces: int, cgroup: Cgroup | None
    ) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.channel = channel
        self.namespaces = namespaces
        self.cgroup = cgroup
        self.ahead = False
        self.device_rules: list[dict[str, Any]] | None = None

    @property
    def shows_cgroup(self) -> bool:
        """Whether its /sys/fs/cgroup has been made ahead."""
        return self.ahead and self.cgroup is not None

    def fits(self, spaces: Namespaces, cgroup: str) -> bool:
        """Whether it was born with exactly the namespaces a configuration asks for."""
        if self.namespaces & ~spaces.new or spaces.new & CLONE_NEWUSER:
            return False
        # On v1 its cgroup will be renamed, which can't move it elsewhere.
        here = self.cgroup.path if self.cgroup else ""
        return not here or here.rpartition("/")[0] == cgroup.rstrip("/").rpartition("/")[0]

    def abandon(self) -> None:
        """End it, bury it and remove its cgroup."""
        self.channel.close()
        _bury(self.pid, self.pidfd)
        if self.cgroup is not None:
            self.cgroup.remove()


def prepare(cgroup_path: str | None) -> Stub:
    """Fork ahead of time a process with the namespaces that a container usually has.

    cgroup_path: a cgroup to make for it on v1, a sibling of the one the container will have.
    """
    cgroup = None
    rules = None
    if cgroup_path and cgroups.version() == 1:
        cgroup = cgroups.attach(cgroup_path)
        cgroup.create()
        rules = template.DEVICE_RULES
        cgroup.apply({"devices": rules})
    return _fork(_PREPARED, cgroup, rules, ahead=True)


def _fork(
    flags: int,
    cgroup: Cgroup | None,
    device_rules: list[dict[str, Any]] | None = None,
    *,
    ahead: bool = False,
    born_in: Cgroup | None = None,
    keep: int = 0,
) -> Stub:
    """cgroup: v1, the child enters it. born_in: v2."""
    ours, theirs = pair()
    directory = -1
    try:
        if born_in is not None:
            directory = os.open(born_in.directories()[0], os.O_PATH | os.O_CLOEXEC)
        pid, pidfd = clone3(flags, directory)
        if pid == 0:
            become_child(theirs, keep, lambda channel: main(channel, cgroup, ahead))
    except OSError as error:
        ours.close()
        if cgroup is not None:
            cgroup.remove()
        raise because("cannot create the container's namespaces", error) from error
    finally:
        theirs.close()
        if directory >= 0:
            os.close(directory)
    stub = Stub(pid, pidfd, ours, flags, cgroup)
    stub.ahead, stub.device_rules = ahead, device_rules
    return stub


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
    timings: list[tuple[str, float]] | None = None,
    state: str = "",
    fifo: int | None = None,
    keep: int = 0,
) -> Running:
    """Make a container and execute its program; OciError, with everything undone, if that fails.

    before_exec is called with init's pid when all is set up and nothing was executed yet.
    timings: collects (step, seconds), the steps of the child as `init.<step>`.
    state: the OCI state as JSON, for hooks. fifo: execute only after a byte was read from it.
    keep: pass descriptors 3 to 3+keep-1 on to the program (not with a stub).
    """
    try:
        start = _Start(spec, bundle, cgroup_path, stub, keep, timings, state)
    except BaseException:
        if stub is not None:
            stub.abandon()
        raise
    try:
        start.send_job((stdin, stdout, stderr), console_size, seccomp)
        start.send_mounts(rootfs)
        start.set_up()
        start.execute(before_exec, fifo)
    except BaseException:
        start.undo()
        raise
    finally:
        start.close_descriptors()
    return start.running()


class _Start:
    """The caller's side of one `run`, step by step."""

    __slots__ = (
        "_bundle", "_cgroup", "_cgroup_fds", "_clock", "_fds", "_keep", "_master",
        "_root", "_spaces", "_spec", "_state", "_stub", "_timings",
    )  # fmt: skip

    def __init__(
        self,
        spec: dict[str, Any],
        bundle: str,
        cgroup_path: str,
        stub: Stub | None,
        keep: int,
        timings: list[tuple[str, float]] | None,
        state: str,
    ) -> None:
        self._spec, self._bundle, self._keep, self._state = spec, bundle, keep, state
        self._timings, self._clock = timings, time.monotonic()
        self._fds: list[int] = []
        self._root = -1
        self._master: int | None = None
        _check_supported(spec.get("linux") or {})
        self._spaces = Namespaces(spec)
        self._cgroup = cgroups.attach(cgroup_path)
        if stub is not None and (keep or not stub.fits(self._spaces, cgroup_path)):
            stub.abandon()
            stub = None
        self._stub = stub or self._cold_stub()
        self._step("stub")

    def _cold_stub(self) -> Stub:
        self._create_cgroup()
        flags = self._spaces.new & ~(CLONE_NEWNET | CLONE_NEWCGROUP)
        v1 = cgroups.version() == 1
        pid_path = self._spaces.joined.get(CLONE_NEWPID)
        pid_namespace = None if pid_path is None else _open_namespace(pid_path)
        try:
            with _PidNamespace(pid_namespace):
                return _fork(
                    flags,
                    self._cgroup if v1 else None,
                    born_in=None if v1 else self._cgroup,
                    keep=self._keep,
                )
        except BaseException:
            self._cgroup.remove()
            raise
        finally:
            if pid_namespace is not None:
                os.close(pid_namespace)

    def _create_cgroup(self) -> None:
        if self._cgroup.exists() and self._cgroup.pids():
            raise OciError(f"cgroup {self._cgroup.path} is in use by another container")
        try:
            self._cgroup.create()
        except OSError as error:
            raise because(f"cannot create cgroup {self._cgroup.path}", error) from error

    def send_job(
        self, stdio: tuple[int, int, int], size: tuple[int, int] | None, filter_: bytes | None
    ) -> None:
        """Everything the child needs to know, as early as can be: it works while we do."""
        self._expect(PREPARED)
        stub = self._stub
        if stub.cgroup is None and cgroups.version() == 2 and stub.ahead:
            self._create_cgroup()
            self._cgroup.join(stub.pid)
        fds = list(stdio)
        joined = []
        for flag, path in self._spaces.joined.items():
            if flag != CLONE_NEWPID:
                joined.append((flag, len(fds)))
                fds.append(self._own(_open_namespace(path)))
        job = {
            "spec": self._spec,
            "joined": joined,
            "late": self._spaces.new & ~stub.namespaces,
            "seccomp": filter_,
            "seccomp_flags": seccomp.filter_flags(self._spec),
            "console_size": size,
            "timings": self._timings is not None,
            "hooks": self._has_hooks("prestart", "createRuntime", "createContainer"),
            "state": self._state,
            "keep": self._keep,
        }
        self._send(JOB, job, fds)
        self._step("job")

    def send_mounts(self, rootfs: Overlay | None) -> None:
        """Open what the child will mount: it may have been forked before these were mounted."""
        self._root = open_root(self._spec, self._bundle, rootfs)
        self._step("root")
        self._name_cgroup()
        fds = [self._root]
        binds: dict[int, int] = {}
        hierarchies: list[tuple[str, int]] = []
        for number, mount in enumerate(self._spec.get("mounts") or ()):
            if is_bind(mount):
                binds[number] = len(fds)
                fds.append(self._own(self._open_source(mount)))
            elif mount.get("type") in ("cgroup", "cgroup2") and not (
                hierarchies or (self._stub.shows_cgroup and template.same(mount, template.CGROUP))
            ):
                for name, tree in open_cgroups(self._cgroup):
                    hierarchies.append((name, len(fds)))
                    fds.append(self._own(tree))
        self._send(MOUNTS, {"binds": binds, "cgroups": hierarchies}, fds)
        self._step("mounts")

    def _name_cgroup(self) -> None:
        stub = self._stub
        if stub.cgroup is not None and stub.cgroup.path != self._cgroup.path:
            try:
                stub.cgroup.rename(self._cgroup.path)
            except OSError as error:
                raise because(f"cannot rename cgroup to {self._cgroup.path}", error) from error
        self._step("cgroup")

    def _send(self, letter: bytes, value: object, fds: Sequence[int] = ()) -> None:
        try:
            self._stub.channel.send(letter, value, fds)
        except OSError as error:
            # It may have said why before it went.
            self._expect(END)
            raise because("the container's first process is gone", error) from error

    def _own(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def _open_source(self, mount: dict[str, Any]) -> int:
        source = mount.get("source") or ""
        if not source.startswith("/"):
            source = f"{self._bundle}/{source}"
        try:
            return mountapi.clone_tree(source, recursive="rbind" in (mount.get("options") or ()))
        except OSError as error:
            raise because(f"cannot bind {source} to {mount.get('destination')}", error) from error

    def _has_hooks(self, *names: str) -> bool:
        hooks = self._spec.get("hooks") or {}
        return any(hooks.get(name) for name in names)

    def set_up(self) -> None:
        """What this side does while the child builds the root: limits and hooks."""
        resources = (self._spec.get("linux") or {}).get("resources")
        if resources:
            self._cgroup.apply({**resources, "devices": None})
        self._step("resources")
        if self._has_hooks("prestart", "createRuntime", "createContainer"):
            self._expect(HOOKS)
            hooks = self._spec["hooks"]
            state = self._state.replace('"pid": 0', f'"pid": {self._stub.pid}', 1)
            for name in ("prestart", "createRuntime"):
                run_hooks(name, hooks.get(name) or [], state)
            self._send(GO, None)

    def _limit_devices(self) -> None:
        # Only now: the rules may forbid the very nodes that the container is to find in its /dev.
        rules = ((self._spec.get("linux") or {}).get("resources") or {}).get("devices")
        if rules and rules != self._stub.device_rules:
            self._cgroup.apply({"devices": rules})

    def execute(self, before_exec: Callable[[int], None] | None, fifo: int | None) -> None:
        """Wait until all is ready, let the caller know, execute."""
        steps = self._expect(READY)
        self._step("init")
        self._limit_devices()
        self._note_steps(steps)
        if before_exec is not None:
            before_exec(self._stub.pid)
            self._step("before_exec")
        self._send(GO, None, () if fifo is None else (fifo,))
        if fifo is None:
            self._expect(END)
        self._stub.channel.close()
        self._step("execve")

    def _expect(self, letter: bytes) -> Any:
        received, value, fds = self._stub.channel.receive(most_fds=1)
        if received == TERMINAL:
            self._master = fds[0]
            received, value, _ = self._stub.channel.receive()
        if received == letter:
            return value
        if received == ERROR:
            code, message = value
            raise OciError(message, code)
        raise OciError("the container's first process died while it was being set up")

    def _step(self, name: str) -> None:
        if self._timings is not None:
            now = time.monotonic()
            self._timings.append((name, now - self._clock))
            self._clock = now

    def _note_steps(self, steps: list[tuple[str, float]] | None) -> None:
        if self._timings is not None and steps:
            for (_, before), (name, after) in itertools.pairwise(steps):
                self._timings.append((f"init.{name}", after - before))

    def undo(self) -> None:
        """Leave nothing of it: process, cgroup, terminal."""
        self._stub.channel.close()
        _bury(self._stub.pid, self._stub.pidfd)
        for cgroup in (self._stub.cgroup, self._cgroup):
            if cgroup is not None:
                cgroup.remove()
        for fd in (self._master, self._root):
            if fd is not None and fd >= 0:
                os.close(fd)

    def close_descriptors(self) -> None:
        """Close what was only for the child."""
        for fd in self._fds:
            os.close(fd)

    def running(self) -> Running:
        """The result."""
        stub = self._stub
        return Running(stub.pid, stub.pidfd, self._master, self._cgroup, self._root)


class _PidNamespace:
    """Children forked inside this context are born in another pid namespace."""

    __slots__ = ("_own", "_target")

    def __init__(self, target: int | None) -> None:
        """target: a namespace or a pidfd; None changes nothing."""
        self._target = target
        self._own = -1

    def __enter__(self) -> None:
        if self._target is not None:
            self._own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            try:
                setns(self._target, CLONE_NEWPID)
            except OSError as error:
                os.close(self._own)
                raise because("cannot join the pid namespace", error) from error

    def __exit__(self, *_: object) -> None:
        if self._target is not None:
            setns(self._own, CLONE_NEWPID)
            os.close(self._own)


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
) -> Process:
    """Run a further program in a container: in its namespaces and cgroup, a child of the caller.

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
        with _PidNamespace(running.pidfd):
            pid, pidfd = clone3(0, directory)
            if pid == 0:
                become_child(theirs, keep, work.run)
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
    return _executed(ours, pid, pidfd)


def _executed(channel: Channel, pid: int, pidfd: int) -> Process:
    """Wait until the child has executed its program; its terminal arrives first."""
    master = None
    while True:
        letter, value, fds = channel.receive(most_fds=1)
        if letter == TERMINAL:
            master = fds[0]
            continue
        channel.close()
        if letter == END:
            return Process(pid, pidfd, master)
        _bury(pid, pidfd)
        if master is not None:
            os.close(master)
        raise OciError(value[1], value[0])


def _bury(pid: int, pidfd: int) -> None:
    try:
        send_signal(pidfd, SIGKILL)
    except ProcessLookupError:
        pass
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass
    os.close(pidfd)


def _open_namespace(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise because(f"cannot open namespace {path}", error) from error


def _check_supported(linux: dict[str, Any]) -> None:
    for key in ("uidMappings", "gidMappings", "timeOffsets", "intelRdt", "netDevices"):
        if linux.get(key):
            raise OciError(f"linux.{key} is not supported")
    if linux.get("mountLabel"):
        raise OciError("linux.mountLabel is not supported")

"""Both sides of a start in one process, for its caller to be practised in them before it forks.

What the interpreter does once only (calls of libc are looked up, bytecode is specialised in place,
types are made ready) it then has done in memory that every process forked later shares. The
kernel's part is real, in namespaces that are left again; no program is executed, and nothing of
the caller's identity (user, capabilities, signals) changes.
"""

from __future__ import annotations

import os
import sys

from . import cgroups, container, linux, process, template
from .channel import GO, PREPARED, pair
from .container import Running
from .init import Init
from .linux import CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUTS
from .rootfs import detach_from_host
from .rootsource import Overlay
from .staging import Stage
from .stub import Stub

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .cgroup import Cgroup


_ENTERED = {"mnt": CLONE_NEWNS, "uts": CLONE_NEWUTS, "ipc": CLONE_NEWIPC, "net": CLONE_NEWNET}
_PREPARED = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID
_CHANNEL = 250
"""Init closes every descriptor above its channel: ours are below."""
_CGROUP = "/rehearsal"
_FILES = (
    "tasks", "devices.allow", "devices.deny", "cpuset.cpus", "cpuset.mems",
    "cgroup.clone_children", "cgroup.procs", "freezer.state", "memory.oom_control",
)  # fmt: skip
_FILES_OF_V2 = ("cgroup.procs", "cgroup.freeze", "memory.events")


def configuration(file: str) -> dict[str, Any]:
    """What most containers ask for; file: the source of a bind mount."""
    options = ["rbind", "rprivate"]
    bind = {"destination": "/etc/hosts", "type": "bind", "source": file, "options": options}
    sys_ = {"destination": "/sys", "type": "sysfs", "options": ["nosuid", "ro"], "source": "sysfs"}
    known = [template.PROC, template.DEV, template.DEVPTS, sys_, template.MQUEUE, template.SHM]
    if cgroups.version() == 1:
        known.append(template.CGROUP)
    return {
        "process": {"args": ["program"], "cwd": "/", "env": ["PATH=/usr/bin:/bin"], "user": {}},
        "root": {"path": "root"},
        "hostname": "rehearsal",
        "mounts": [*known, bind],
        "linux": {
            "namespaces": [{"type": t} for t in ("mount", "network", "uts", "pid", "ipc")],
            "resources": {"devices": template.DEVICE_RULES},
            "maskedPaths": [*template.MASKED_IN_PROC, "/sys/firmware", "/sys/none"],
            "readonlyPaths": [*template.READONLY_IN_PROC],
        },
    }


class Rehearsal:
    """A stage for it in a new directory, which has to be on a tmpfs; `Overlay` and `run` are as in
    container.py, but what is run is never executed."""

    Overlay = Overlay

    def __init__(self, directory: str) -> None:
        for name in ("low/bin", "low/dev", "low/etc", "low/proc", "low/sys", "upper", "work"):
            os.makedirs(f"{directory}/{name}")
        for name in ("hosts", "low/etc/hosts", "low/bin/program"):
            _touch(f"{directory}/{name}")
        self._hierarchies = f"{directory}/cgroup"
        self.configuration = configuration(f"{directory}/hosts")
        self.cgroup = f"{_CGROUP}/b"
        self.rootfs: dict[str, Any] = {"lowers": [f"{directory}/low"]}
        self.rootfs |= {"upper": f"{directory}/upper", "work": f"{directory}/work"}

    def run(self, spec: dict[str, Any], *, meanwhile: Callable[[], None], **fields: Any) -> Running:
        """container.run, with the caller in the place of init as well."""
        with _Cgroups(self._hierarchies) as cgroup:
            ours, theirs = pair()
            pid, pidfd = linux.clone3(0)
            if not pid:
                os._exit(0)
            theirs.move(_CHANNEL)
            child = _Init()
            try:
                if cgroup is not None:
                    cgroup.create()
                    cgroup.apply({"devices": template.DEVICE_RULES})
                    cgroup.enter()
                with child:
                    detach_from_host()
                    stage = Stage(cgroup)
                theirs.send(PREPARED)
                stub = Stub(pid, pidfd, ours, _PREPARED, cgroup)
                stub.ahead, stub.device_rules = True, template.DEVICE_RULES

                def both() -> None:
                    meanwhile()
                    ours.send(GO)
                    with child:
                        _, job, fds = theirs.receive(most_fds=16)
                        Init(theirs, job, fds, stage).run()
                    theirs.end()

                fields |= {"stub": stub, "meanwhile": both}
                running = container.run(spec, **fields)
                for fd in (running.root, running.pidfd):
                    if fd is not None:
                        os.close(fd)
                return Running(pid, -1, None, running.cgroup)
            finally:
                child.close()
                ours.close()
                theirs.close()
                try:
                    os.waitpid(pid, 0)
                except ChildProcessError:
                    pass


class _Init:
    """Being in the place of an init, in namespaces of its own, inside a `with`; all that an init
    changes of itself is put back at its end."""

    def __init__(self) -> None:
        self._own = _namespaces()
        directory = os.getcwd()
        linux.unshare(sum(_ENTERED.values()) - CLONE_NEWNET)
        try:
            self._new = _namespaces()
        finally:
            _enter(self._own)
            # Who enters a mount namespace is at its root: what a start writes would be left there.
            os.chdir(directory)

    def __enter__(self) -> None:
        self._before = os.getcwd(), os.umask(0), sys.meta_path[:]
        self._changed = process.become_user, process.execute
        self._streams = [os.dup(number) for number in range(3)]
        setattr(process, "become_user", _stay_user)  # noqa: B010
        setattr(process, "execute", _execute_nothing)  # noqa: B010
        _enter(self._new)

    def __exit__(self, *_: object) -> None:
        try:
            _enter(self._own)
        except OSError:
            # Nothing may be forked that is somewhere else than it believes.
            os._exit(1)
        process.become_user, process.execute = self._changed
        for number, fd in enumerate(self._streams):
            os.dup2(fd, number)
            os.close(fd)
        directory, umask, sys.meta_path[:] = self._before
        os.chdir(directory)
        os.umask(umask)

    def close(self) -> None:
        """Let go of the namespaces."""
        for fd in (*self._own.values(), *self._new.values()):
            os.close(fd)


def _namespaces() -> dict[int, int]:
    return {
        flag: os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        for name, flag in _ENTERED.items()
    }


def _enter(namespaces: dict[int, int]) -> None:
    for flag, fd in namespaces.items():
        linux.setns(fd, flag)


class _Cgroups:
    """Plain files in the place of cgroups; what is made ahead is there on v1 only."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._known: tuple[dict[str, str], list[str]] = ({}, [])
        self._root = ""

    def __enter__(self) -> Cgroup | None:
        if cgroups.version() == 2:
            from . import cgroup2

            self._root, cgroup2.ROOT = cgroup2.ROOT, self._directory
            os.makedirs(f"{self._directory}{_CGROUP}/b")
            for file in _FILES_OF_V2:
                _touch(f"{self._directory}{_CGROUP}/b/{file}", b"")
            return None
        from . import cgroup1

        cgroup1.hierarchies()
        self._known = dict(cgroup1._hierarchies), cgroup1._mount_points[:]
        names = {each: f"{self._directory}/{each.rpartition('/')[2]}" for each in self._known[1]}
        cgroup1._mount_points[:] = names.values()
        for controller, each in self._known[0].items():
            cgroup1._hierarchies[controller] = names[each]
        for each in names.values():
            os.makedirs(f"{each}{_CGROUP}/a")
            for file in _FILES:
                _touch(f"{each}{_CGROUP}/a/{file}")
        return cgroups.attach(f"{_CGROUP}/a")

    def __exit__(self, *_: object) -> None:
        cgroup = cgroups.attach(f"{_CGROUP}/b")
        try:
            cgroup.frozen()
            cgroup.oom_kills()
            for each in cgroup.directories():
                for file in os.listdir(each):
                    os.unlink(f"{each}/{file}")
            cgroup.remove(0.0)
        finally:
            if self._root:
                from . import cgroup2

                cgroup2.ROOT = self._root
            else:
                from . import cgroup1

                cgroup1._mount_points[:] = self._known[1]
                cgroup1._hierarchies.update(self._known[0])


def _touch(path: str, content: bytes = b"0") -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o755)
    os.write(fd, content)
    os.close(fd)


def _stay_user(*_: object) -> None:
    linux.prctl(linux.PR_CAPBSET_READ, 0)
    linux.permitted_capabilities()


def _execute_nothing(values: dict[str, Any], *_: object) -> None:
    linux.execve("/nothing", values["args"], values["env"])

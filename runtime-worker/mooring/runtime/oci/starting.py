"""The caller's side of starting a container, step by step; see channel.py for the other."""

from __future__ import annotations

import itertools
import os
import time

from . import cgroups, mountapi, seccomp, template
from .channel import END, ERROR, GO, HOOKS, JOB, MOUNTS, PREPARED, READY, TERMINAL
from .errors import OciError, because
from .hooks import run_hooks
from .linux import CLONE_NEWCGROUP, CLONE_NEWNET, CLONE_NEWPID
from .mountspec import is_bind
from .namespaces import Namespaces
from .rootsource import Overlay, open_root
from .staging import open_cgroups
from .stub import PidNamespace, Stub, bury, fork

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .cgroup import Cgroup


class Start:
    """The caller's side of one `run`, step by step."""

    __slots__ = (
        "_bundle", "_cgroup", "_clock", "_fds", "_keep", "_made", "_master", "_root", "_spaces",
        "_spec", "_state", "_stub", "_timings",
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
        self._made = False
        check_supported(spec.get("linux") or {})
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
        pid_namespace = None if pid_path is None else open_namespace(pid_path)
        try:
            with PidNamespace(pid_namespace):
                return fork(
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
        self._made = True
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
                fds.append(self._own(open_namespace(path)))
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
                fds.append(self._own(open_source(mount, self._bundle)))
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
                name_cgroup(stub.cgroup, self._cgroup)
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
        bury(self._stub.pid, self._stub.pidfd)
        # Only what we made: the name may be that of another container, which runs.
        if self._stub.cgroup is not None:
            self._stub.cgroup.remove()
        elif self._made:
            self._cgroup.remove()
        for fd in (self._master, self._root):
            if fd is not None and fd >= 0:
                os.close(fd)

    def close_descriptors(self) -> None:
        """Close what was only for the child."""
        for fd in self._fds:
            os.close(fd)

    def result(self) -> tuple[int, int, int | None, Cgroup, int]:
        """pid, pidfd, master of the terminal, cgroup, descriptor of the root."""
        stub = self._stub
        return stub.pid, stub.pidfd, self._master, self._cgroup, self._root


def name_cgroup(prepared: Cgroup, wanted: Cgroup) -> None:
    """Give a prepared cgroup its container's name; OciError if that is in use."""
    try:
        prepared.rename(wanted.path)
    except FileExistsError:
        if wanted.pids():
            text = f"cgroup {wanted.path} is in use by another container"
            raise OciError(text) from None
        # Left by a run whose shim was killed.
        wanted.remove()
        prepared.rename(wanted.path)


def make_cgroup(wanted: Cgroup) -> None:
    """Make a container's cgroup (v2), with the device rules of most; OciError if it is in use."""
    from .devicefilter import limit_usual_devices

    if wanted.exists():
        if wanted.pids():
            raise OciError(f"cgroup {wanted.path} is in use by another container")
        # Left by a run whose shim was killed.
        wanted.remove()
    try:
        wanted.create()
    except OSError as error:
        raise because(f"cannot create cgroup {wanted.path}", error) from error
    try:
        limit_usual_devices(wanted.directories()[0])
    except OciError:
        wanted.remove()
        raise


def open_source(mount: dict[str, Any], bundle: str) -> int:
    """What a bind mount shows, as a detached mount."""
    source = mount.get("source") or ""
    if not source.startswith("/"):
        source = f"{bundle}/{source}"
    recursive = "rbind" in (mount.get("options") or ())
    try:
        if subpath := mount.get("subpath"):
            return _below(source, subpath, recursive)
        return mountapi.clone_tree(source, recursive=recursive)
    except OSError as error:
        raise because(f"cannot bind {source} to {mount.get('destination')}", error) from error


def open_namespace(path: str) -> int:
    """A namespace to join."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise because(f"cannot open namespace {path}", error) from error


def check_supported(linux: dict[str, Any]) -> None:
    """Refuse what this runtime does not know."""
    for key in ("uidMappings", "gidMappings", "timeOffsets", "intelRdt", "netDevices"):
        if linux.get(key):
            raise OciError(f"linux.{key} is not supported")
    if linux.get("mountLabel"):
        raise OciError("linux.mountLabel is not supported")


def _below(source: str, subpath: str, recursive: bool) -> int:
    """A part of a volume: a container may have put links there, which must not lead out of it."""
    from .linux import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, openat2

    top = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = openat2(top, subpath, os.O_PATH, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
    finally:
        os.close(top)
    try:
        return mountapi.clone_tree("", recursive=recursive, directory=found)
    finally:
        os.close(found)

"""What a prepared process does to become one container: init.py's work as a program.

Only what the usual container asks for; `refuse` says what it is that must be done by init.py
instead. Where a step fails the caller starts over with init.py, which knows the words for it.
"""

from __future__ import annotations

import os

from . import ahead, paths, process, seccomp
from .ahead import A, B, attach, locate, set_attributes
from .capabilities import CapabilitySets
from .linux import (
    AT_FDCWD,
    CLONE_NEWCGROUP,
    CLONE_NEWNET,
    CLOSE_RANGE_CLOEXEC,
    KEYCTL_JOIN_SESSION_KEYRING,
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAP_AMBIENT_RAISE,
    PR_CAPBSET_DROP,
    PR_SET_KEEPCAPS,
    PR_SET_NO_NEW_PRIVS,
    SECCOMP_SET_MODE_FILTER,
)
from .mountapi import MNT_DETACH, MOUNT_ATTR_RDONLY, MS_PRIVATE
from .mountspec import Mount, parse, propagation_of_root
from .namespaces import Namespaces
from .program import TRY, WAIT, Array, Cell, Program, received
from .staging import fitting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_AF_INET, _SOCK_DGRAM, _SIOCSIFFLAGS, _UP_LOOPBACK = 2, 2 | os.O_CLOEXEC, 0x8914, 0x1 | 0x8
_CAPABILITY_VERSION = (0x20080522).to_bytes(4, "little") + bytes(4)
_AHEAD = {
    "/proc": ahead.PROC, "/dev": ahead.DEV, "/dev/shm": ahead.SHM, "/sys/fs/cgroup": ahead.CGROUP
}  # fmt: skip
_NOT_HERE = ("apparmorProfile", "selinuxLabel")
STDIO = 3
"""The first descriptors that come with the program: stdin, stdout, stderr; then the root."""


def refuse(spec: dict[str, Any]) -> str:
    """Why a container can't be started by a program; empty if it can."""
    linux, own = spec.get("linux") or {}, spec.get("process") or {}
    if spec.get("hooks") or own.get("terminal") or linux.get("personality"):
        return "hooks, terminal or personality"
    if any(own.get(key) for key in _NOT_HERE) or linux.get("devices"):
        return "labels or devices"
    there = fitting(spec, cgroup=True)
    if not {"/proc", "/dev"} <= there:
        return "/proc or /dev"
    if ahead.NAMESPACES & ~Namespaces(spec).new:
        return "joined namespaces"
    for mount in map(parse, spec.get("mounts") or ()):
        path = os.path.normpath(mount.destination)
        if path != mount.destination or path.startswith("/proc/"):
            return f"mount {path}"
        unusual = mount.copy_up or mount.fstype in ("cgroup", "cgroup2", "overlay")
        plain_tmpfs = mount.fstype != "tmpfs" or any(key == "mode" for key, _ in mount.options)
        if path not in there and not mount.bind and (unusual or not plain_tmpfs):
            return f"mount {path}"
    for key in ("maskedPaths", "readonlyPaths"):
        for path in linux.get(key) or ():
            if not path.startswith(("/proc/", "/sys/")):
                return f"{key} {path}"
    return ""


class Job:
    """The program of one container, and the descriptors that go with it (the caller's own)."""

    __slots__ = ("_mounts", "_process", "_spec", "fds", "program")

    def __init__(self, spec: dict[str, Any], stdio: Sequence[int], root: int) -> None:
        """root: the root filesystem, detached; missing mount points in it are made here."""
        self.program = Program()
        self.fds = [*stdio, root]
        self._spec = spec
        self._process: dict[str, Any] = spec.get("process") or {}
        self._mounts = [parse(mount) for mount in spec.get("mounts") or ()]

    def build(
        self,
        joined: Sequence[tuple[int, int]],
        binds: dict[int, int],
        filter_: bytes | None,
        permitted: int,
        born_in: str = "",
    ) -> bytes:
        """The packet. joined: namespace flags and descriptors; binds: number of a mount to its
        detached source; permitted: the capabilities that the process will have till the end;
        born_in: the directory of its cgroup on v2, where the packet is for a parent."""
        capabilities = process.check(self._process)
        if born_in:
            ahead.be_born(self.program, born_in)
        self._enter_namespaces(joined)
        self._build_root(binds)
        self._become_user(capabilities)
        self.program.call("write", 3, ahead.READY, 1)
        self.program.call("read", 3, bytes(8), 1, flags=WAIT)
        self._execute(capabilities, filter_, permitted)
        return self.program.build()

    def _send(self, fd: int) -> Cell:
        self.fds.append(fd)
        return received(len(self.fds) - 1)

    def _enter_namespaces(self, joined: Sequence[tuple[int, int]]) -> None:
        call = self.program.call
        for flag, fd in joined:
            call("setns", self._send(fd), flag)
        spaces = Namespaces(self._spec)
        late = spaces.new & (CLONE_NEWNET | CLONE_NEWCGROUP)
        if late:
            call("unshare", late)
        if late & CLONE_NEWNET:
            call("socket", _AF_INET, _SOCK_DGRAM, 0, result=A)
            request = b"lo".ljust(16, b"\0") + _UP_LOOPBACK.to_bytes(24, "little")
            call("ioctl", A, _SIOCSIFFLAGS, request)
            call("close", A)
        call("keyctl", KEYCTL_JOIN_SESSION_KEYRING, b"mooring", flags=TRY)
        set_host_side(self.program, self._process)
        for name, key in (("sethostname", "hostname"), ("setdomainname", "domainname")):
            if value := os.fsencode(self._spec.get(key) or ""):
                call(name, value, len(value))
        for key, value in ((self._spec.get("linux") or {}).get("sysctl") or {}).items():
            # Both a.b.c and a/b/c are in use; a name with a dot inside needs the latter.
            name = key if "/" in key else key.replace(".", "/")
            if ".." in name.split("/"):
                raise ValueError(f"invalid sysctl {key}")
            _write(self.program, ahead.PLAIN_PROC, f"sys/{name}", str(value))

    def _build_root(self, binds: dict[int, int]) -> None:
        call, root = self.program.call, received(STDIO)
        call("openat", AT_FDCWD, b"/", os.O_PATH | os.O_CLOEXEC, result=A)
        attach(self.program, root, A)
        there = fitting(self._spec, cgroup=True)
        for number, mount in enumerate(self._mounts):
            if mount.destination not in there:
                self._mount(mount, root, binds.get(number))
            elif part := _AHEAD.get(mount.destination):
                self._make(mount, directory=True)
                locate(self.program, root, mount.destination, B)
                attach(self.program, part, B)
        linux = self._spec.get("linux") or {}
        for path in linux.get("readonlyPaths") or ():
            if not path.startswith("/proc/"):
                ahead.make_readonly(self.program, root, path)
        for path in linux.get("maskedPaths") or ():
            if not path.startswith("/proc/"):
                ahead.mask(self.program, root, path)
        call("fchdir", root)
        call("pivot_root", b".", b".")
        # The host's root now lies on top of the container's, and is "." still.
        call("umount2", b".", MNT_DETACH)
        call("chdir", b"/")
        if (self._spec.get("root") or {}).get("readonly"):
            set_attributes(self.program, root, MOUNT_ATTR_RDONLY)
        if word := linux.get("rootfsPropagation"):
            flag, recursive = propagation_of_root(word), word.startswith("r")
            set_attributes(self.program, root, propagation=flag, recursive=recursive)

    def _make(self, mount: Mount, *, directory: bool) -> None:
        """Make the mount point if it is missing, unless it lies on another mount."""
        if not self._covered(mount.destination):
            os.close(paths.make(self.fds[STDIO], mount.destination, directory=directory))

    def _covered(self, path: str) -> bool:
        """Whether a path lies on another mount than the root."""
        return any(
            path.startswith(each.destination.rstrip("/") + "/")
            for each in self._mounts
            if each.destination != path
        )

    def _mount(self, mount: Mount, root: Cell, source: int | None) -> None:
        program = self.program
        self._make(mount, directory=source is None or paths.is_directory(source))
        if source is None:
            ahead.attach_new(program, mount, root, mount.destination)
            return
        tree = self._send(source)
        # Without a word on propagation a container neither sees nor makes mounts of the host.
        for flag, recursive in mount.propagation or [(MS_PRIVATE, True)]:
            set_attributes(program, tree, propagation=flag, recursive=recursive)
        if mount.recursive_set or mount.recursive_clear:
            both = mount.recursive_set, mount.recursive_clear
            set_attributes(program, tree, *both, recursive=True)
        if mount.set or mount.clear:
            set_attributes(program, tree, mount.set, mount.clear)
        locate(program, root, mount.destination, B)
        attach(program, tree, B)

    def _become_user(self, capabilities: CapabilitySets) -> None:
        call, cwd = self.program.call, self._process["cwd"]
        for number in range(STDIO):
            call("dup3", received(number), number, 0)
        # Whatever is open now was for us: nothing of the host may be reachable from here on.
        call("close_range", 4, 0xFFFFFFFF, 0)
        if cwd != "/":
            make_working_directory(self.fds[STDIO], cwd, self._covered(cwd))
            call("chdir", os.fsencode(cwd))
        become_user(self.program, self._process, capabilities)

    def _execute(self, capabilities: CapabilitySets, filter_: bytes | None, permitted: int) -> None:
        flags = seccomp.filter_flags(self._spec)
        execute(self.program, self._process, capabilities, filter_, flags, permitted)


def set_host_side(program: Program, values: dict[str, Any]) -> None:
    """What needs the host's /proc and privileges; see process.set_host_side."""
    if (adjustment := values.get("oomScoreAdj")) is not None:
        _write(program, AT_FDCWD, "/proc/self/oom_score_adj", str(adjustment))
    for limit in values.get("rlimits") or ():
        both = (limit["soft"], limit["hard"])
        value = b"".join((n & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little") for n in both)
        program.call("prlimit64", 0, process.RLIMITS[limit["type"]], value, 0)


def _write(program: Program, directory: int | Cell, path: str, value: str) -> None:
    flags = os.O_WRONLY | os.O_CLOEXEC
    program.call("openat", directory, os.fsencode(path), flags, result=A)
    program.call("write", A, value.encode(), len(value.encode()))
    program.call("close", A)


def make_working_directory(root: int, path: str, covered: bool) -> None:
    """Docker's WORKDIR need not exist in the image. Where it can't be made, chdir fails."""
    if not covered:
        try:
            os.close(paths.make(root, path, directory=True))
        except OSError:
            pass


def become_user(program: Program, values: dict[str, Any], capabilities: CapabilitySets) -> None:
    """Bounding set, groups and user; see process.become_user."""
    call, user = program.call, values.get("user") or {}
    uid, gid = user.get("uid") or 0, user.get("gid") or 0
    for number in range(last_capability() + 1):
        if not capabilities.bounding & (1 << number):
            call("prctl", PR_CAPBSET_DROP, number, 0, 0, 0)
    call("prctl", PR_SET_KEEPCAPS, 1, 0, 0, 0)
    groups = user.get("additionalGids") or ()
    call("setgroups", len(groups), b"".join(each.to_bytes(4, "little") for each in groups))
    call("setresgid", gid, gid, gid)
    call("setresuid", uid, uid, uid)
    umask = user.get("umask")
    call("umask", 0o022 if umask is None else umask)


def execute(
    program: Program,
    values: dict[str, Any],
    capabilities: CapabilitySets,
    filter_: bytes | None,
    flags: int,
    permitted: int,
) -> None:
    """Give up what is left of our privileges and execute the program; see process.execute."""
    call = program.call
    call("close_range", 3, 0xFFFFFFFF, CLOSE_RANGE_CLOEXEC)
    no_new_privileges = bool(values.get("noNewPrivileges"))
    if no_new_privileges:
        call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _take(program, capabilities, permitted)
    elif filter_:
        _set_capabilities(program, permitted, permitted, 0)
    if filter_:
        pointer = Array([len(filter_) // 8, filter_])
        call("seccomp", SECCOMP_SET_MODE_FILTER, flags, pointer)
    if not no_new_privileges:
        _take(program, capabilities, permitted)
    arguments = Array([*map(os.fsencode, values["args"]), 0])
    environment = Array([*map(os.fsencode, values.get("env") or ()), 0])
    places = process.candidates(values)
    if not places:
        raise ValueError("there is no PATH to look in")
    *others, last = places
    for path in others:
        # The first that can be executed; of the others init.py tells why they can't.
        call("execve", os.fsencode(path), arguments, environment, flags=TRY)
    call("execve", os.fsencode(last), arguments, environment)


def _take(program: Program, capabilities: CapabilitySets, own: int) -> None:
    sets = (capabilities.effective & own, capabilities.permitted & own)
    _set_capabilities(program, *sets, capabilities.inheritable & own)
    program.call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for number in range(last_capability() + 1):
        if capabilities.ambient & own & (1 << number):
            program.call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0)


def _set_capabilities(program: Program, effective: int, permitted: int, inheritable: int) -> None:
    sets = (effective, permitted, inheritable)
    words = [each >> shift & 0xFFFFFFFF for shift in (0, 32) for each in sets]
    data = b"".join(word.to_bytes(4, "little") for word in words)
    program.call("capset", _CAPABILITY_VERSION, data)


_last_capability = -1


def last_capability() -> int:
    """The highest capability that this kernel knows."""
    global _last_capability
    if _last_capability < 0:
        with open("/proc/sys/kernel/cap_last_cap") as file:
            _last_capability = int(file.read())
    return _last_capability

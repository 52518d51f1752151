"""One thin function for each system call that Python does not have; they decide nothing.

The numbers of calls newer than Linux 5.0 are the same on every architecture; the older ones
that libc does not wrap are looked up by machine. A failure is an OSError whose text names the call.
"""

from __future__ import annotations

import ctypes
import os
from _signal import SIG_DFL, getsignal  # type: ignore[import-not-found]

# PyDLL keeps the interpreter's lock: clone3 returns twice, and nobody may run in between.
_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

_machine = os.uname().machine
_PIVOT_ROOT, _SECCOMP, _BPF, _KEYCTL, _RT_SIGACTION = {
    "x86_64": (155, 317, 321, 250, 13),
    "aarch64": (41, 277, 280, 219, 134),
}.get(_machine, (-1, -1, -1, -1, -1))
_CLONE3, _CLOSE_RANGE, _OPENAT2, _PIDFD_SEND_SIGNAL = 435, 436, 437, 424

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PIDFD = 0x00001000
CLONE_CLEAR_SIGHAND = 0x100000000
CLONE_INTO_CGROUP = 0x200000000
SIGCHLD = 17
_OF_LIBC = (32, 33)
"""SIGCANCEL and SIGSETXID."""
SIGKILL = 9

CLOSE_RANGE_CLOEXEC = 4

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

O_CLOEXEC = os.O_CLOEXEC
O_PATH = os.O_PATH
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000

PR_SET_KEEPCAPS = 8
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

SECCOMP_SET_MODE_FILTER = 1
KEYCTL_JOIN_SESSION_KEYRING = 1

PROC_SUPER_MAGIC = 0x9FA0
DEVPTS_SUPER_MAGIC = 0x1CD1


def failed(call: str, path: str | bytes = "", number: int = 0) -> OSError:
    """The errno of the call that just failed (or `number`), as an OSError that names the call."""
    number = number or ctypes.get_errno()
    where = f" {os.fsdecode(path)}" if path else ""
    return OSError(number, f"{call}{where}: {os.strerror(number)}")


def syscall(name: str, number: int, *arguments: object) -> int:
    """Any system call; its result, or OSError naming it."""
    result: int = _syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise failed(name)
    return result


class _CloneArgs(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    ]


def clone3(flags: int, cgroup: int = -1) -> tuple[int, int]:
    """Fork with new namespaces: (pid, pidfd) in the parent, (0, -1) in the child.

    None of Python's or libc's fork handlers run, so the caller must be single-threaded and the
    child may only set itself up and execute. cgroup: a descriptor of a v2 cgroup to be born in.
    """
    pidfd = ctypes.c_int(-1)
    arguments = _CloneArgs(
        flags=flags | CLONE_PIDFD | CLONE_CLEAR_SIGHAND,
        pidfd=ctypes.addressof(pidfd),
        exit_signal=SIGCHLD,
    )
    if cgroup >= 0:
        arguments.flags |= CLONE_INTO_CGROUP
        arguments.cgroup = cgroup
    pid = syscall("clone3", _CLONE3, ctypes.byref(arguments), ctypes.c_size_t(88))
    return (pid, pidfd.value) if pid else (0, -1)


def unshare(flags: int) -> None:
    """unshare(2)."""
    if _libc.unshare(ctypes.c_int(flags)) < 0:
        raise failed("unshare")


def setns(fd: int, flags: int) -> None:
    """setns(2): fd is a namespace (flags 0 or its type) or a pidfd (flags: any number of types)."""
    if _libc.setns(fd, ctypes.c_int(flags)) < 0:
        raise failed("setns")


def pivot_root(new: bytes, old: bytes) -> None:
    """pivot_root(2)."""
    syscall("pivot_root", _PIVOT_ROOT, new, old)


def prctl(option: int, a: int = 0, b: int = 0, c: int = 0) -> int:
    """prctl(2)."""
    result: int = _libc.prctl(
        option, ctypes.c_ulong(a), ctypes.c_ulong(b), ctypes.c_ulong(c), ctypes.c_ulong(0)
    )
    if result < 0:
        raise failed("prctl")
    return result


def set_name(name: bytes) -> None:
    """What ps shows as the command's name; at most 15 bytes."""
    _libc.prctl(PR_SET_NAME, ctypes.c_char_p(name), 0, 0, 0)


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    """close_range(2): close the descriptors first..last, or mark them close-on-exec."""
    syscall(
        "close_range", _CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(last), ctypes.c_uint(flags)
    )


class _OpenHow(ctypes.Structure):
    _fields_ = [
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    ]


_EAGAIN = 11


def openat2(directory: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2), close-on-exec; tried again when a rename elsewhere disturbed the walk."""
    how = _OpenHow(flags=flags | O_CLOEXEC, mode=mode, resolve=resolve)
    name = os.fsencode(path)
    while True:
        fd: int = _syscall(
            ctypes.c_long(_OPENAT2), directory, name, ctypes.byref(how), ctypes.c_size_t(24)
        )
        if fd >= 0:
            return fd
        if ctypes.get_errno() != _EAGAIN:
            raise failed("open", name)


def filesystem_type(fd: int) -> int:
    """f_type of fstatfs(2), the file system's magic number."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, buffer) < 0:
        raise failed("fstatfs")
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF


def set_hostname(name: str) -> None:
    """sethostname(2)."""
    data = os.fsencode(name)
    if _libc.sethostname(data, ctypes.c_size_t(len(data))) < 0:
        raise failed("sethostname")


def set_domainname(name: str) -> None:
    """setdomainname(2)."""
    data = os.fsencode(name)
    if _libc.setdomainname(data, ctypes.c_size_t(len(data))) < 0:
        raise failed("setdomainname")


def set_rlimit(resource: int, soft: int, hard: int) -> None:
    """prlimit(2) on the calling process."""
    limits = (ctypes.c_uint64 * 2)(soft & 0xFFFFFFFFFFFFFFFF, hard & 0xFFFFFFFFFFFFFFFF)
    if _libc.prlimit64(0, resource, limits, None) < 0:
        raise failed("prlimit")


def default_signals() -> None:
    """Every disposition to its default, nothing blocked: an ignored signal survives execve."""
    for number in range(1, 65):
        # The interpreter knows of every one but libc's own whether it was inherited, or has been
        # set, as something else.
        if number not in (9, 19, *_OF_LIBC) and getsignal(number) != SIG_DFL:
            _libc.signal(number, None)
    default = ctypes.create_string_buffer(32)
    for number in _OF_LIBC:
        # libc refuses these, and its posix_spawn leaves them ignored in what it starts.
        _syscall(_RT_SIGACTION, number, default, None, 8)
    nothing = ctypes.create_string_buffer(128)
    _libc.sigprocmask(2, nothing, None)


def set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) with the three sets as bit masks."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)(
        effective & 0xFFFFFFFF,
        permitted & 0xFFFFFFFF,
        inheritable & 0xFFFFFFFF,
        effective >> 32,
        permitted >> 32,
        inheritable >> 32,
    )
    if _libc.capset(header, data) < 0:
        raise failed("capset")


def permitted_capabilities() -> int:
    """The calling process's permitted set, from capget(2)."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    if _libc.capget(header, data) < 0:
        raise failed("capget")
    return data[1] | data[4] << 32


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def set_seccomp(program: bytes, flags: int) -> None:
    """seccomp(2): put a filter of 8-byte BPF instructions on the calling process."""
    arguments = _FilterProgram(length=len(program) // 8, filter=program)
    syscall(
        "seccomp",
        _SECCOMP,
        ctypes.c_uint(SECCOMP_SET_MODE_FILTER),
        ctypes.c_uint(flags),
        ctypes.byref(arguments),
    )


def bpf(command: int, attributes: ctypes.Structure) -> int:
    """bpf(2)."""
    return syscall(
        "bpf",
        _BPF,
        ctypes.c_int(command),
        ctypes.byref(attributes),
        ctypes.c_uint(ctypes.sizeof(attributes)),
    )


def new_session_keyring(name: bytes) -> None:
    """Join a new session keyring, so that the container does not hold the engine's."""
    syscall("keyctl", _KEYCTL, ctypes.c_int(KEYCTL_JOIN_SESSION_KEYRING), name)


def send_signal(pidfd: int, signal: int) -> None:
    """pidfd_send_signal(2)."""
    syscall(
        "pidfd_send_signal",
        _PIDFD_SEND_SIGNAL,
        ctypes.c_int(pidfd),
        ctypes.c_int(signal),
        None,
        ctypes.c_uint(0),
    )


def set_personality(persona: int) -> None:
    """personality(2)."""
    if _libc.personality(ctypes.c_ulong(persona)) < 0:
        raise failed("personality")


def execve(path: str, arguments: list[str], environment: list[str]) -> OSError:
    """execve(2) with the environment exactly as given; returns only with the error."""
    argv = (ctypes.c_char_p * (len(arguments) + 1))(*map(os.fsencode, arguments), None)
    envp = (ctypes.c_char_p * (len(environment) + 1))(*map(os.fsencode, environment), None)
    _libc.execve(os.fsencode(path), argv, envp)
    return failed("execve", path)

"""What turns a process that is in the container's namespaces into the program it shall run."""

from __future__ import annotations

import os

from .capabilities import CapabilitySets, make_effective
from .errors import FAILED, NOT_EXECUTABLE, NOT_FOUND, OciError, because
from .linux import (
    CLOSE_RANGE_CLOEXEC,
    PR_SET_KEEPCAPS,
    PR_SET_NO_NEW_PRIVS,
    close_range,
    execve,
    prctl,
    set_rlimit,
    set_seccomp,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

RLIMITS = {
    f"RLIMIT_{name}": number
    for number, name in enumerate(
        (
            "CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS",
            "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME",
        )
    )
}  # fmt: skip
"""Their numbers, by OCI's names."""
_UNSUPPORTED = ("scheduler", "ioPriority", "execCPUAffinity")
_ENOENT, _EACCES, _ENOEXEC, _ENOTDIR, _EISDIR, _ELOOP = 2, 13, 8, 20, 21, 40


def check(process: dict[str, Any]) -> CapabilitySets:
    """Refuse what can be seen to be impossible before anything is done."""
    if not process.get("args"):
        raise OciError("process.args is empty: there is no program to run")
    if not (process.get("cwd") or "").startswith("/"):
        raise OciError(f"process.cwd {process.get('cwd')!r} is not an absolute path")
    for key in _UNSUPPORTED:
        if process.get(key):
            raise OciError(f"process.{key} is not supported")
    for limit in process.get("rlimits") or ():
        if limit.get("type") not in RLIMITS:
            raise OciError(f"unknown resource limit {limit.get('type')}")
    return CapabilitySets(process.get("capabilities") or {})


def set_host_side(process: dict[str, Any]) -> None:
    """What is set through the host's /proc and with the host's privileges."""
    if (adjustment := process.get("oomScoreAdj")) is not None:
        _write_self("oom_score_adj", str(adjustment), f"the OOM score adjustment {adjustment}")
    if profile := process.get("apparmorProfile"):
        _write_self("attr/apparmor/exec", f"exec {profile}", f"the AppArmor profile {profile}")
    if label := process.get("selinuxLabel"):
        _write_self("attr/exec", label, f"the SELinux label {label}")
    for limit in process.get("rlimits") or ():
        try:
            set_rlimit(RLIMITS[limit["type"]], limit["soft"], limit["hard"])
        except OSError as error:
            raise because(
                f"cannot set {limit['type']} to {limit['soft']}:{limit['hard']}", error
            ) from error


def _write_self(name: str, value: str, what: str) -> None:
    try:
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise because(f"cannot set {what}", error) from error


def become_user(process: dict[str, Any], capabilities: CapabilitySets) -> None:
    """Working directory, bounding set, groups and user; effective capabilities are kept."""
    cwd = process["cwd"]
    inside = _change_directory(cwd)
    capabilities.bound()
    user = process.get("user") or {}
    uid, gid = user.get("uid") or 0, user.get("gid") or 0
    try:
        prctl(PR_SET_KEEPCAPS, 1)
        os.setgroups(user.get("additionalGids") or [])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise because(f"cannot become user {uid} and group {gid}", error) from error
    # Root may have been refused where the user is not: on NFS, on FUSE.
    if inside is not None and (still := _change_directory(cwd)) is not None:
        code = NOT_FOUND if still.errno in (_ENOENT, _ENOTDIR) else NOT_EXECUTABLE
        raise because(f'chdir to cwd ("{cwd}") set in config.json failed', still, code)
    umask = user.get("umask")
    os.umask(0o022 if umask is None else umask)


def _change_directory(path: str) -> OSError | None:
    try:
        os.chdir(path)
        # A working directory outside of the root (through a leaked descriptor) has no name.
        os.getcwd()
    except OSError as error:
        return error
    return None


def find_program(process: dict[str, Any]) -> str:
    """args[0] as execve needs it: as it is when it has a slash, else from the process's PATH.

    Looked for as the process's own user. What is there but can't be executed is exit code 126,
    what is not there 127; the words are those that Docker's clients look for.
    """
    name = process["args"][0]
    if "/" in name:
        _check_executable(name, name)
        return str(name)
    refused: OciError | None = None
    for directory in _search_path(process.get("env") or []):
        path = f"{directory or '.'}/{name}"
        try:
            _check_executable(path, name)
            return path
        except OciError as error:
            if error.exit_code != NOT_FOUND:
                refused = refused or error
    raise refused or OciError(f'exec: "{name}": executable file not found in $PATH', NOT_FOUND)


def candidates(process: dict[str, Any]) -> list[str]:
    """What args[0] may be, in the order in which it is looked for."""
    name = process["args"][0]
    if "/" in name:
        return [name]
    path = _search_path(process.get("env") or [])
    return [f"{directory or '.'}/{name}" for directory in path]


def _search_path(environment: list[str]) -> list[str]:
    for entry in reversed(environment):
        if entry.startswith("PATH="):
            return entry[5:].split(":")
    return []


def _check_executable(path: str, name: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        missing = error.errno in (_ENOENT, _ENOTDIR, _ELOOP)
        what = f'exec: "{name}"' if error.errno == _EACCES else f'exec: "{name}": stat {path}'
        raise because(what, error, NOT_FOUND if missing else NOT_EXECUTABLE) from error
    if mode & 0o170000 == 0o040000:
        raise OciError(f'exec: "{name}": is a directory', NOT_EXECUTABLE)
    if not mode & 0o111 or not os.access(path, os.X_OK):
        raise OciError(f'exec: "{name}": permission denied', NOT_EXECUTABLE)


def execute(
    process: dict[str, Any],
    program: str,
    capabilities: CapabilitySets,
    seccomp: bytes | None,
    seccomp_flags: int,
    keep: int = 0,
) -> NoReturn:
    """Give up what is left of our privileges and execute the program; OciError if that fails.

    keep: how many descriptors after stderr the program gets as well.
    """
    no_new_privileges = bool(process.get("noNewPrivileges"))
    close_range(3 + keep, flags=CLOSE_RANGE_CLOEXEC)
    try:
        if no_new_privileges:
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            capabilities.take()
        elif seccomp:
            make_effective()
        if seccomp:
            # Without no_new_privs a filter needs CAP_SYS_ADMIN, so it comes before the
            # capabilities go, and must let capset and prctl through.
            set_seccomp(seccomp, seccomp_flags)
    except OSError as error:
        raise because("cannot set the seccomp filter", error) from error
    if not no_new_privileges:
        capabilities.take()
    failure = execve(program, process["args"], process.get("env") or [])
    number = failure.errno or 0
    # As Go words it, which is what clients look for: "exec /x: exec format error".
    raise OciError(f"exec {program}: {os.strerror(number).lower()}", _exit_code(number))


def _exit_code(number: int) -> int:
    if number in (_ENOENT, _ENOTDIR):
        return NOT_FOUND
    return NOT_EXECUTABLE if number in (_EACCES, _ENOEXEC, _EISDIR) else FAILED

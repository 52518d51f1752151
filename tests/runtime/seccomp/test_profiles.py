"""The default profile, profiles in Docker's form, and filters that a kernel takes."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mooring.kit.errors import EngineError, NotSupported
from mooring.runtime.oci.linux import set_seccomp
from mooring.runtime.seccomp import Seccomp, bpf, compiler, default, docker, numbers
from mooring.runtime.seccomp.model import ALLOW, ENOSYS, EPERM, LOG, Profile, errno

from .simulator import run

NONE: frozenset[str] = frozenset()
ABIS = ("x86_64", "x86", "x32")
DENIED = errno(EPERM)
CLONE_NEWUSER = 0x10000000


def _default(*capabilities: str, kernel: tuple[int, int] = (6, 1)) -> Callable[..., int]:
    profile = default.profile(frozenset(capabilities), "x86_64", ABIS, kernel)
    return _runner(profile)


def _runner(profile: Profile) -> Callable[..., int]:
    program = bpf.program(profile, numbers.resolve)

    def result(name: str, *arguments: int) -> int:
        number = numbers.resolve("x86_64", name)
        assert number is not None
        return run(program, number, arguments)

    return result


def _docker(value: dict[str, Any], *capabilities: str) -> Callable[..., int]:
    return _runner(docker.decode(json.dumps(value), frozenset(capabilities), "x86_64", (6, 1)))


def test_the_default_allows_what_programs_need_and_no_more() -> None:
    result = _default()
    for name in ("read", "execve", "mmap", "futex_waitv", "statx", "ptrace", "fchmodat2", "mseal"):
        assert result(name) == ALLOW, name
    for name in ("mount", "bpf", "kexec_load", "init_module", "io_uring_setup", "keyctl", "reboot"):
        assert result(name) == DENIED, name


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ("CAP_SYS_ADMIN", "mount"),
        ("CAP_SYS_CHROOT", "chroot"),
        ("CAP_SYS_TIME", "clock_settime"),
        ("CAP_SYS_NICE", "mbind"),
        ("CAP_BPF", "bpf"),
        ("CAP_SYSLOG", "syslog"),
    ],
)
def test_a_capability_brings_its_calls(capability: str, name: str) -> None:
    assert _default()(name) == DENIED
    assert _default(capability)(name) == ALLOW


def test_new_user_namespaces_need_cap_sys_admin() -> None:
    result = _default()
    assert result("clone", 17) == ALLOW
    assert result("clone", CLONE_NEWUSER | 17) == DENIED
    assert result("clone3") == errno(ENOSYS)
    assert result("unshare", CLONE_NEWUSER) == DENIED
    assert _default("CAP_SYS_ADMIN")("clone", CLONE_NEWUSER) == ALLOW
    assert _default("CAP_SYS_ADMIN")("clone3") == ALLOW


def test_sockets_of_two_families_are_refused() -> None:
    result = _default()
    assert [result("socket", family) for family in (1, 2, 38, 39, 40, 41)] == [
        ALLOW,
        ALLOW,
        DENIED,
        ALLOW,
        DENIED,
        ALLOW,
    ]


def test_personality_can_be_asked_for_but_not_freely_set() -> None:
    result = _default()
    assert result("personality", 0xFFFFFFFF) == ALLOW
    assert result("personality", 0x0040000) == DENIED


def test_ptrace_needs_a_kernel_where_it_cannot_change_a_filtered_call() -> None:
    assert _default(kernel=(4, 7))("ptrace") == DENIED
    assert _default("CAP_SYS_PTRACE", kernel=(4, 7))("ptrace") == ALLOW


def test_dockers_form_knows_lists_conditions_and_capabilities() -> None:
    result = _docker(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 13,
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [
                {"names": ["read", "write", "seccomp", "no such call"], "action": "SCMP_ACT_ALLOW"},
                {"name": "close", "action": "SCMP_ACT_LOG", "args": None},
                {
                    "names": ["socket"],
                    "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}],
                },
                {
                    "names": ["mount"],
                    "action": "SCMP_ACT_ALLOW",
                    "includes": {"caps": ["CAP_SYS_ADMIN"]},
                },
                {
                    "names": ["mkdir"],
                    "action": "SCMP_ACT_ALLOW",
                    "excludes": {"arches": ["amd64"]},
                },
                {
                    "names": ["rmdir"],
                    "action": "SCMP_ACT_ALLOW",
                    "includes": {"minKernel": "7.0"},
                },
            ],
        },
        "CAP_CHOWN",
    )
    assert result("read") == result("write") == ALLOW
    assert result("close") == LOG
    assert (result("socket", 1), result("socket", 2)) == (ALLOW, errno(13))
    assert result("mount") == result("mkdir") == result("rmdir") == errno(13)


def test_several_tests_of_one_argument_are_alternatives() -> None:
    values = [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"} for value in (1, 2)]
    call = {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": values}
    result = _docker({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [call]})
    assert [result("socket", family) for family in (1, 2, 3)] == [ALLOW, ALLOW, DENIED]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Decoding seccomp profile failed: "),
        ("[]", "Decoding seccomp profile failed: the profile is no JSON object"),
        ("{}", "invalid seccomp action None"),
        ('{"defaultAction":"SCMP_ACT_MAYBE"}', "invalid seccomp action 'SCMP_ACT_MAYBE'"),
        ('{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[1]}', "syscalls is no list of objects"),
        (
            '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":'
            '[{"name":"read","names":["write"],"action":"SCMP_ACT_ERRNO"}]}',
            "use either 'name' or 'names'",
        ),
        (
            '{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],'
            '"archMap":[{"architecture":"SCMP_ARCH_X86_64"}]}',
            "use either 'architectures' or 'archMap'",
        ),
        (
            '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],'
            '"action":"SCMP_ACT_ERRNO","args":[{"index":6,"op":"SCMP_CMP_EQ"}]}]}',
            "invalid number 6",
        ),
    ],
)
def test_a_bad_profile_is_refused(text: str, words: str) -> None:
    with pytest.raises(EngineError, match="Decoding seccomp profile failed: ") as raised:
        docker.decode(text, NONE, "x86_64", (6, 1))
    assert words in raised.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {"flags": ["SECCOMP_FILTER_FLAG_LOG"]},
        {"listenerPath": "/run/x"},
        {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]},
    ],
)
def test_what_is_not_supported_is_named(fields: dict[str, Any]) -> None:
    with pytest.raises(NotSupported, match="seccomp: "):
        _docker({"defaultAction": "SCMP_ACT_ALLOW"} | fields)


async def test_a_filter_is_compiled_once_and_found_again(tmp_path: Path) -> None:
    seccomp = Seccomp(tmp_path)
    path = await seccomp.compiled(None, NONE)
    assert path is not None and os.stat(path).st_size % 8 == 0
    written = os.stat(path).st_ino
    assert await seccomp.compiled(None, NONE) == path
    assert await Seccomp(tmp_path).compiled(None, NONE) == path
    assert os.stat(path).st_ino == written
    assert await seccomp.compiled(None, frozenset({"CAP_SYS_ADMIN"})) != path
    assert len(list((tmp_path / "seccomp").iterdir())) == 2


async def test_unconfined_has_no_filter(tmp_path: Path) -> None:
    assert await Seccomp(tmp_path).compiled("unconfined", NONE) is None


async def test_the_compilers_error_arrives_whole_and_leaves_nothing(tmp_path: Path) -> None:
    seccomp = Seccomp(tmp_path)
    with pytest.raises(EngineError, match="Decoding seccomp profile failed: "):
        await seccomp.compiled("{", NONE)
    with pytest.raises(NotSupported, match="SCMP_ACT_NOTIFY"):
        await seccomp.compiled('{"defaultAction":"SCMP_ACT_NOTIFY"}', NONE)
    assert not list((tmp_path / "seccomp").iterdir())


@pytest.mark.kernel
def test_the_kernel_takes_the_default_filter_and_it_holds() -> None:
    profile = compiler.select(None, NONE, os.uname().machine)
    program = bpf.program(profile, numbers.resolve)
    receiver, sender = os.pipe()
    pid = os.fork()
    if pid == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        set_seccomp(program, 0)
        answers = []
        for number, argument in ((39, 0), (165, 0), (435, 0), (41, 40), (999, 0)):
            answers.append(ctypes.get_errno() if libc.syscall(number, argument, 0) < 0 else 0)
        os.write(sender, json.dumps(answers).encode())
        os._exit(0)
    os.close(sender)
    with open(receiver, "rb") as pipe:
        answers = json.load(pipe)
    os.waitpid(pid, 0)
    # getpid, mount, clone3, socket(AF_VSOCK), a call that no kernel has
    assert answers == [0, EPERM, ENOSYS, EPERM, ENOSYS]

"""The machine makes the system calls of a program, and says which one failed."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mooring.runtime.oci import job, machine, template
from mooring.runtime.oci import program as program_module
from mooring.runtime.oci.program import (
    CHILD,
    NUMBERS,
    TRY,
    WAIT,
    Array,
    Block,
    Field,
    Program,
    received,
    slot,
)

pytestmark = pytest.mark.skipif(not machine.available(), reason="another processor")

SOURCES = {"x86_64": "machine.S", "aarch64": "machine-aarch64.S"}


@pytest.fixture(params=["own", "aarch64 emulated"])
def channel(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """The other end of descriptor 3 of a machine: of this processor's, and of another one's."""
    command = ["m"]
    if request.param == "own":
        path = f"/proc/self/fd/{(executable := machine.executable())}"
    else:
        emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
        if emulator is None:
            pytest.skip("no emulator here")
        if "fork" in request.node.name:
            pytest.skip("the emulator knows no clone3")
        monkeypatch.setattr(program_module, "CALLS", NUMBERS["aarch64"])
        image = tmp_path / "machine"
        image.write_bytes(machine.image("aarch64"))
        image.chmod(0o755)
        path, executable = emulator, os.open(image, os.O_RDONLY)
        command = [emulator, str(image)]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)]
    pid = os.posix_spawn(path, command, {}, file_actions=actions)
    os.close(executable)
    theirs.close()
    yield ours
    ours.close()
    os.waitpid(pid, 0)


@pytest.mark.parametrize("architecture", SOURCES)
def test_the_code_is_what_its_source_says(tmp_path: Path, architecture: str) -> None:
    prefix = "" if architecture == os.uname().machine else f"{architecture}-linux-gnu-"
    if not shutil.which(f"{prefix}as") or not shutil.which(f"{prefix}objcopy"):
        pytest.skip("no assembler here")
    source = Path(machine.__file__).with_name(SOURCES[architecture])
    subprocess.run([f"{prefix}as", str(source), "-o", f"{tmp_path}/o"], check=True)
    command = ["-O", "binary", "-j", ".text", f"{tmp_path}/o", f"{tmp_path}/code"]
    subprocess.run([f"{prefix}objcopy", *command], check=True)
    assert (tmp_path / "code").read_bytes() == machine.code(architecture)


def test_results_are_arguments_of_later_programs(channel: socket.socket, tmp_path: Path) -> None:
    first = Program()
    path = os.fsencode(tmp_path / "file")
    first.call("openat", -100, path, os.O_CREAT | os.O_WRONLY, 0o600, result=slot(3))
    first.call("write", 3, b"1", 1)
    channel.send(first.build())
    assert channel.recv(16) == b"1"
    second = Program()
    second.call("write", slot(3), b"words", 5)
    second.call("write", 3, b"2", 1)
    channel.send(second.build())
    assert channel.recv(16) == b"2"
    assert (tmp_path / "file").read_bytes() == b"words"


def test_descriptors_come_with_a_program(channel: socket.socket) -> None:
    reading, writing = os.pipe()
    program = Program()
    program.call("write", received(0), b"hello", 5)
    socket.send_fds(channel, [program.build()], [writing])
    os.close(writing)
    assert os.read(reading, 16) == b"hello"
    os.close(reading)


def test_a_result_can_be_put_into_a_structure(channel: socket.socket) -> None:
    program = Program()
    block = Block(b"\xff" * 8)
    program.call("openat", -100, b"/", os.O_RDONLY, result=Field(block, 4))
    program.call("write", 3, block, 8)
    channel.send(program.build())
    answer = channel.recv(16)
    assert answer[:4] == b"\xff" * 4
    assert int.from_bytes(answer[4:], "little") > 3


def test_it_executes_with_arguments_and_environment(channel: socket.socket) -> None:
    reading, writing = os.pipe()
    program = Program()
    program.call("dup3", received(0), 1, 0)
    program.call("close_range", 3, 0xFFFFFFFF, 0)
    words = Array([b"sh", b"-c", b'echo "$A $#" "$@"', b"x", b"1", b"2", 0])
    program.call("execve", b"/nothing/sh", words, Array([0]), flags=TRY)
    program.call("execve", b"/bin/sh", words, Array([b"A=b", 0]))
    socket.send_fds(channel, [program.build()], [writing])
    os.close(writing)
    with open(reading, "rb") as file:
        assert file.read() == b"b 2 1 2\n"


def test_a_failure_names_the_call_and_ends_it(channel: socket.socket) -> None:
    program = Program()
    program.call("openat", -100, b"/nothing", 0, flags=TRY)
    program.call("chdir", b"/nowhere")
    program.call("write", 3, b"no", 2)
    channel.send(program.build())
    error = program.explain(channel.recv(64))
    assert error.errno == errno.ENOENT
    assert "chdir /nowhere" in str(error)
    assert channel.recv(64) == b""


def test_only_the_child_of_a_fork_goes_on(channel: socket.socket) -> None:
    program = Program()
    parent = 0x8000
    program.call("clone3", parent.to_bytes(8, "little") + bytes(80), 88, flags=CHILD)
    program.call("write", 3, b"child", 5)
    channel.send(program.build())
    assert channel.recv(64) == b"child"


def test_it_ends_when_nobody_gives_leave(channel: socket.socket) -> None:
    program = Program()
    program.call("write", 3, b"R", 1)
    program.call("read", 3, bytes(8), 1, flags=WAIT)
    program.call("write", 3, b"went on", 7)
    channel.send(program.build())
    assert channel.recv(64) == b"R"
    channel.shutdown(socket.SHUT_WR)
    assert channel.recv(64) == b""


def test_a_program_that_is_too_long_is_refused() -> None:
    program = Program()
    program.call("write", 3, bytes(machine.PROGRAM_BYTES), 1)
    with pytest.raises(ValueError, match="too long"):
        program.build()


def usual(**changes: Any) -> dict[str, Any]:
    """A configuration as nearly every container has it."""
    names = ("mount", "network", "uts", "pid", "ipc")
    parts = (template.PROC, template.DEV, template.DEVPTS, template.MQUEUE, template.SHM)
    linux = {
        "namespaces": [{"type": name} for name in names],
        "maskedPaths": sorted(template.MASKED_IN_PROC),
        "readonlyPaths": sorted(template.READONLY_IN_PROC),
    }
    process = {"args": ["true"], "cwd": "/", "env": ["PATH=/bin"]}
    spec: dict[str, Any] = {"process": process, "mounts": list(parts), "linux": linux}
    for key, value in changes.items():
        if isinstance(value, dict):
            spec[key] = {**spec.get(key, {}), **value}
        else:
            spec[key] = value if key not in spec else [*spec[key], *value]
    return spec


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"mounts": [{"destination": "/data", "type": "bind", "source": "/srv"}]}, ""),
        ({"mounts": [{"destination": "/t", "type": "tmpfs", "options": ["mode=700"]}]}, ""),
        ({"mounts": [{"destination": "/t", "type": "tmpfs", "options": []}]}, "mount /t"),
        ({"mounts": [{"destination": "/a/../b", "type": "bind", "source": "/"}]}, "mount /b"),
        ({"mounts": [{"destination": "/proc/x", "type": "bind", "source": "/"}]}, "mount /proc/x"),
        ({"hooks": {"prestart": [{"path": "/x"}]}}, "hooks"),
        ({"linux": {"devices": [{"path": "/dev/x"}]}}, "devices"),
        ({"linux": {"maskedPaths": []}}, "/proc or /dev"),
        ({"linux": {"namespaces": [{"type": "mount"}]}}, "joined namespaces"),
    ],
)
def test_what_a_program_can_do(changes: dict[str, Any], reason: str) -> None:
    refused = job.refuse(usual(**changes))
    assert bool(refused) == bool(reason)
    assert reason in refused

"""A container must never be able to write to the interpreter of the engine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mooring.runtime.oci import interpreter

pytestmark = pytest.mark.kernel

# To open it would say nothing: as long as it runs, the kernel's answer is ETXTBSY first.
CODE = "import os; print(bool(os.statvfs('/proc/self/exe').f_flag & os.ST_RDONLY))"


def run(executable: str, *fds: int) -> str:
    result = subprocess.run(
        [sys.executable, "-c", CODE],
        executable=executable,
        pass_fds=fds,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout


def test_an_interpreter_executed_as_it_is_could_be_written() -> None:
    assert run(sys.executable) == "False\n"


def test_one_executed_through_its_own_mount_can_not() -> None:
    fd = interpreter.read_only(sys.executable)
    try:
        assert run(f"/proc/self/fd/{fd}", fd) == "True\n"
    finally:
        os.close(fd)


def test_a_descriptor_kept_by_an_attacker_can_not_be_reopened_for_writing() -> None:
    fd = interpreter.read_only("/bin/true")
    try:
        with pytest.raises(OSError, match="Read-only file system"):
            os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
    finally:
        os.close(fd)

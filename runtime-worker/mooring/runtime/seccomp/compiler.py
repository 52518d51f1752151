"""The compiler: a process of its own, so that libseccomp does not stay in the worker's memory.

stdin: {"profile": null or JSON text, "capabilities": […], "target": PATH}
stdout: nothing if the filter is at PATH, else {"kind", "message"} of the error.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from pathlib import Path

from mooring.kit.errors import EngineError

from . import default, docker
from .bpf import NO_X32, program
from .model import Profile
from .numbers import resolve

_DEFAULT_ABIS = {
    "x86_64": ("x86_64", "x86", "x32"),
    "aarch64": ("aarch64", "arm"),
}
_X32_GETPID = 0x40000000 + 39
_LIMIT = 4096
"""Instructions of one filter, BPF_MAXINSNS."""


def select(text: str | None, capabilities: frozenset[str], machine: str) -> Profile:
    """The profile of a container: the default one, or the user's; EngineError."""
    if machine not in _DEFAULT_ABIS:
        raise EngineError(f"seccomp filters for {machine} are not supported")
    if text is None:
        chosen = default.profile(capabilities, machine, _DEFAULT_ABIS[machine], _kernel())
    else:
        chosen = docker.decode(text, capabilities, machine, _kernel())
    return chosen._replace(abis=_of_this_kernel(chosen.abis))


def compile_to(target: Path, profile: Profile) -> None:
    """Write the filter in one step; EngineError if the kernel would not take it."""
    code = program(profile, resolve)
    if len(code) // 8 > _LIMIT:
        raise EngineError(
            f"the seccomp profile needs {len(code) // 8} instructions, {_LIMIT} are allowed"
        )
    part = target.with_suffix(f".{os.getpid()}")
    part.write_bytes(code)
    part.rename(target)


def _of_this_kernel(abis: tuple[str, ...]) -> tuple[str, ...]:
    """Most kernels are built without x32, or have it switched off."""
    if "x32" not in abis or ctypes.CDLL(None).syscall(ctypes.c_long(_X32_GETPID)) > 0:
        return abis
    return tuple(NO_X32 if abi == "x32" else abi for abi in abis)


def _kernel() -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def main() -> None:
    """Compile one filter."""
    job = json.load(sys.stdin)
    try:
        profile = select(job["profile"], frozenset(job["capabilities"]), os.uname().machine)
        compile_to(Path(job["target"]), profile)
    except EngineError as exc:
        json.dump({"kind": exc.kind, "message": exc.message}, sys.stdout)


if __name__ == "__main__":
    main()

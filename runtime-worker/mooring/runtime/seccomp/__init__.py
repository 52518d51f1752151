"""Seccomp filters: compiled once, kept in the run directory by what they are made of."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

from mooring.kit.errors import KINDS, EngineError

UNCONFINED = "unconfined"

_FORMAT = "1"
"""To be raised when the same profile compiles to another filter."""


class Seccomp:
    """The filters of one host."""

    def __init__(self, run_dir: Path) -> None:
        self._directory = run_dir / "seccomp"
        self._known: dict[tuple[str | None, frozenset[str]], str] = {}
        self._compiling = asyncio.Lock()

    async def compiled(self, profile: str | None, capabilities: frozenset[str]) -> str | None:
        """The path of a filter: None for the default profile, `unconfined`, or Docker's JSON.

        The answer is None for `unconfined`. EngineError in Docker's words for a bad profile.
        """
        if profile == UNCONFINED:
            return None
        key = (profile, capabilities)
        path = self._known.get(key)
        if path is None:
            async with self._compiling:
                path = self._known.get(key) or await self._compile(profile, capabilities)
            if profile is None:
                # Users' profiles may be many and long; the file system remembers them.
                self._known[key] = path
        return path

    async def _compile(self, profile: str | None, capabilities: frozenset[str]) -> str:
        names = sorted(capabilities)
        system = os.uname()
        made_of = json.dumps([_FORMAT, system.release, system.machine, profile, names])
        digest = hashlib.sha256(made_of.encode()).hexdigest()
        target = self._directory / f"{digest}.bpf"
        if not target.exists():
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            job: dict[str, object] = {
                "profile": profile,
                "capabilities": names,
                "target": str(target),
            }
            await _run_compiler(job)
        return str(target)


async def _run_compiler(job: dict[str, object]) -> None:
    compiler = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mooring.runtime.seccomp.compiler", stdin=PIPE, stdout=PIPE, cwd="/"
    )
    answer, _ = await compiler.communicate(json.dumps(job).encode())
    if answer:
        error = json.loads(answer)
        raise KINDS.get(error["kind"], EngineError)(error["message"])
    if compiler.returncode:
        raise EngineError(f"the seccomp compiler ended with status {compiler.returncode}")

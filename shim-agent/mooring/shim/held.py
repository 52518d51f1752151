"""What the agent holds of a container in case its shim is killed, and its successor."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import Any

import mooring

from .runs import Run

logger = logging.getLogger(__name__)

ADOPTION_SECONDS = 20.0
_NAMES = frozenset({"pidfd", "listener", "stdin", "stdout", "stderr", "outlet", "inlet", "master"})


def take(run: Run, fields: dict[str, Any], descriptors: list[int]) -> None:
    """Keep what came with a hello or an answer, in place of what was kept before."""
    named = dict(zip(fields.get("names") or (), descriptors, strict=False))
    for descriptor in descriptors[len(named) :]:
        os.close(descriptor)
    for name in [name for name in named if name not in _NAMES]:
        os.close(named.pop(name))
    if not named:
        return
    drop(run)
    run.held = named
    if run.stdin_closed:
        drop(run, "stdin")
    if "pidfd" in named:
        if run.pidfd >= 0:
            os.close(run.pidfd)
        run.pidfd = named.pop("pidfd")


def stdin_closed(run: Run) -> None:
    """The container is to see the end of its stdin: nobody may hold its write end any more."""
    run.stdin_closed = True
    drop(run, "stdin")


def drop(run: Run, name: str = "") -> None:
    """Close what is held of a run (or one of it)."""
    for held in [name] if name else list(run.held):
        if (descriptor := run.held.pop(held, None)) is not None:
            os.close(descriptor)


async def adopt(run: Run) -> bool:
    """Start a shim in place of one that was killed; whether it serves the container."""
    if "listener" not in run.held or run.pidfd < 0:
        return False
    named = {**run.held, "pidfd": run.pidfd}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        "-c",
        f"import sys; sys.path[:0] = {_roots()!r}; from mooring.shim.adopt import main; main()",
        run.directory,
        *(f"{name}={descriptor}" for name, descriptor in named.items()),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        # Its last words, should it fail, belong into this agent's log.
        stderr=None,
        pass_fds=tuple(named.values()),
    )
    try:
        async with asyncio.timeout(ADOPTION_SECONDS):
            status = await process.wait()
    except TimeoutError:
        process.kill()
        status = await process.wait()
    if status == 0:
        logger.warning("container %s has a new shim, the first one was killed", run.container.id)
        return True
    logger.error("no new shim for container %s", run.container.id)
    return False


def _roots() -> list[str]:
    """The directories that `mooring.shim` and `mooring.runtime` are imported from."""
    found = []
    for path in mooring.__path__:
        if any(os.path.isdir(f"{path}/{part}") for part in ("shim", "runtime")):
            found.append(os.path.dirname(path))
    return found

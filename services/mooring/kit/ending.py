"""Ending an engine with its containers: from the moment that it is said, none is started.

`<run>/ending` is locked by whoever does it, for as long as that takes; one that is killed at it has
said nothing. A host looks twice at a start: when it comes, and when its run directory is there and
nothing is left but to execute the program. So who says it first and then finds no run directory
without an exit record knows that nothing runs, and that nothing will.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_FILE = "ending"


@contextlib.contextmanager
def ending(run_dir: str | Path) -> Iterator[None]:
    """No container is started meanwhile."""
    path = Path(run_dir) / _FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # A host that looks holds it for a moment, another one who does the same until its end.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        os.close(descriptor)


def is_ending(run_dir: str | Path) -> bool:
    """Whether somebody is at it."""
    try:
        descriptor = os.open(f"{run_dir}/{_FILE}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def unended(run_dir: str | Path) -> list[str]:
    """The runs on this host that have not ended, or are being made: `<container id>.<run>`."""
    shims = Path(run_dir) / "shims"
    found = []
    with contextlib.suppress(FileNotFoundError):
        for directory in shims.glob("[!.]*"):
            over = any((directory / f"exit.{kind}").exists() for kind in ("json", "acked"))
            if not over and directory.exists():
                found.append(directory.name)
    return found

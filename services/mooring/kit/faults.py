"""Fault points: places where a test may kill the process, to see what is left of its work."""

from __future__ import annotations

import os
import signal

_directory = ""


def enable(directory: str) -> None:
    """Make `point(name)` look for the file `directory`/name (Settings.faults)."""
    global _directory
    _directory = directory


def point(name: str) -> None:
    """SIGKILL this process if a test has armed this point; otherwise nothing."""
    if _directory:
        _die_if_armed(name)


def _die_if_armed(name: str) -> None:
    try:
        # The unlink decides who dies: of two processes at this point only one finds the file.
        os.unlink(f"{_directory}/{name}")
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)

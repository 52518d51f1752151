"""Shims whose launcher is gone: they become the supervisor's children, who buries them.

Not every PID 1 does (that of many a container and test machine does not), and systemd has no
supervisor of ours between itself and them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Container

_PR_SET_CHILD_SUBREAPER = 36


def adopt() -> None:
    """What our descendants leave behind becomes our child, not PID 1's."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def bury(own: Container[int]) -> list[int]:
    """Take the exit statuses of children that nobody waits for: all but `own`; their pids."""
    buried = []
    for pid in _children():
        if pid in own:
            continue
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0]:
                buried.append(pid)
    return buried


def _children() -> list[int]:
    pid = os.getpid()
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            return [int(child) for child in file.read().split()]
    except FileNotFoundError:
        return []  # A kernel without it: they wait for PID 1, as ever.

"""One engine to a directory, and the end of what a killed supervisor has left running."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import time
from pathlib import Path

from .child import start_time

TIMEOUT = 10.0
"""Seconds that a leftover service may take to end by itself."""


class AlreadyRunning(Exception):
    """Another supervisor uses this directory; the message names it."""


def lock(directory: Path) -> int:
    """A lock that ends with this process, as a descriptor; AlreadyRunning."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "supervisor.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise AlreadyRunning(f"an engine already runs in {directory}") from None
    return descriptor


def end(record: Path) -> list[str]:
    """End the services that `record` (supervisor.json) names and that still run; their names.

    The bus last, so that the others can finish what they do.
    """
    try:
        listed = json.loads(record.read_text())["services"]
    except (FileNotFoundError, ValueError, KeyError):
        return []
    alive = [item for item in listed if item["pid"] and start_time(item["pid"]) == item["start"]]
    services = [item for item in alive if item["name"] != "nats"]
    _end([item["pid"] for item in services])
    _end([item["pid"] for item in alive if item not in services])
    return [item["name"] for item in alive]


def _end(pids: list[int]) -> None:
    with contextlib.ExitStack() as opened:
        poll = select.poll()
        waiting = {}
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                opened.callback(os.close, pidfd)
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)
                poll.register(pidfd, select.POLLIN)
                waiting[pidfd] = pid
        deadline = time.monotonic() + TIMEOUT
        while waiting:
            left = deadline - time.monotonic()
            if left <= 0:
                for pidfd in waiting:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                deadline = time.monotonic() + TIMEOUT
                continue
            for pidfd, _ in poll.poll(left * 1000):
                poll.unregister(pidfd)
                del waiting[pidfd]

"""One engine to a directory, and the end of what a killed supervisor has left running."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def recorded(record: Path) -> dict[int, str]:
    """The services that `record` (supervisor.json) names, by pid, whether they still run or not."""
    return {item["pid"]: item["name"] for item in _services(record)}


def living(record: Path) -> list[tuple[str, int]]:
    """Name and pid of those that still run."""
    return [
        (item["name"], item["pid"])
        for item in _services(record)
        if start_time(item["pid"]) == item["start"]
    ]


def _services(record: Path) -> list[dict[str, Any]]:
    try:
        listed = json.loads(record.read_text())["services"]
    except (FileNotFoundError, ValueError, KeyError):
        return []
    return [item for item in listed if item["pid"]]


def end(
    alive: list[tuple[str, int]], heard: socket.socket | None, hear: Callable[[], None]
) -> None:
    """End these services (see `living`); `hear` what they say until then at the socket `heard`.

    The bus last, so that the others can finish what they do.
    """
    for group in (
        [pid for name, pid in alive if name != "nats"],
        [pid for name, pid in alive if name == "nats"],
    ):
        _end(group, heard, hear)


def _end(pids: list[int], heard: socket.socket | None, hear: Callable[[], None]) -> None:
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
        if heard is not None:
            poll.register(heard, select.POLLIN)
        deadline = time.monotonic() + TIMEOUT
        while waiting:
            left = deadline - time.monotonic()
            if left <= 0:
                for pidfd in waiting:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                deadline = time.monotonic() + TIMEOUT
                continue
            ready = [number for number, _ in poll.poll(left * 1000)]
            if heard is not None and heard.fileno() in ready:
                hear()
            for pidfd in waiting.keys() & set(ready):
                poll.unregister(pidfd)
                del waiting[pidfd]

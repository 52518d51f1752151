"""Hooks: programs of the configuration that are run around the container's life."""

from __future__ import annotations

import os
import time

from .errors import OciError, because
from .linux import SIGKILL, close_range, default_signals, execve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def run_hooks(name: str, hooks: list[dict[str, Any]], state: str) -> None:
    """Run every hook of one point in order, `state` (JSON) on its stdin; OciError if one fails."""
    for hook in hooks:
        _run(name, hook, state.encode())


def _run(name: str, hook: dict[str, Any], state: bytes) -> None:
    path = hook.get("path") or ""
    if not path.startswith("/"):
        raise OciError(f"the path of {name} hook {path!r} is not absolute")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become(hook, reader)
    pidfd = os.pidfd_open(pid)
    try:
        os.close(reader)
        _feed(writer, state)
        status = _wait(pid, pidfd, hook.get("timeout"))
    except OSError as error:
        raise because(f"cannot run {name} hook {path}", error) from error
    finally:
        os.close(pidfd)
    if status:
        code = os.waitstatus_to_exitcode(status)
        reason = f"exit status {code}" if code >= 0 else f"killed by signal {-code}"
        raise OciError(f"{name} hook {path} failed: {reason}")


def _become(hook: dict[str, Any], stdin: int) -> None:
    try:
        os.dup2(stdin, 0)
        close_range(3)
        default_signals()
        path = hook["path"]
        execve(path, hook.get("args") or [path], hook.get("env") or [])
    finally:
        os._exit(127)


def _feed(writer: int, state: bytes) -> None:
    # A pipe holds it whole (64 KiB): a hook that does not read can't hold us up.
    os.set_blocking(writer, False)
    try:
        os.write(writer, state)
    except (BrokenPipeError, BlockingIOError):
        pass
    finally:
        os.close(writer)


def _wait(pid: int, pidfd: int, timeout: int | None) -> int:
    if timeout:
        import select

        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
            os.kill(pid, SIGKILL)
    return os.waitpid(pid, 0)[1]

"""The client of a supervisor: start one in the background, ask how it goes, stop it."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from mooring.kit.config import Settings

_POLL = 0.02


class NotRunning(Exception):
    """No engine runs with this run directory; the message names it."""


class StartFailed(Exception):
    """The engine did not come up; the message is what it said last."""


def status(run_dir: Path) -> dict[str, Any]:
    """See Supervisor.describe; NotRunning."""
    return _ask(run_dir, "status")


def abandoned(run_dir: Path) -> dict[str, Any] | None:
    """The last words of an engine whose supervisor did not end by itself (see Supervisor.describe):
    its services go on, or what they had stored is kept."""
    try:
        found: dict[str, Any] = json.loads((run_dir / "supervisor.json").read_text())
    except (OSError, ValueError):
        return None
    return found


def stop(run_dir: Path, timeout: float = 60.0) -> None:
    """Stop the services and wait until the supervisor has ended; NotRunning, TimeoutError."""
    pid = int(_ask(run_dir, "stop")["pid"])
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(timeout * 1000):
            raise TimeoutError(f"the engine in {run_dir} has not stopped after {timeout:.0f} s")
    finally:
        os.close(pidfd)


def log_file(settings: Settings) -> Path:
    """Where an engine in the background logs to."""
    return settings.run_dir / "mooring.log"


def start(settings: Settings, timeout: float = 60.0) -> dict[str, Any]:
    """Start an engine in the background; its status when all services are ready. StartFailed."""
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    path = log_file(settings)
    with path.open("ab") as log:
        begin = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "mooring.supervisor"],
            env={**os.environ, **settings.environment()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StartFailed(_last_line(path, begin))
        try:
            found = status(settings.run_dir)
        except NotRunning:
            pass
        else:
            if found["pid"] == process.pid and found["state"] == "ready":
                # It goes on without us; nobody will wait for it.
                process.returncode = 0
                return found
        time.sleep(_POLL)
    process.terminate()
    process.wait()
    raise StartFailed(f"not ready after {timeout:.0f} s, see {path}")


def run(settings: Settings) -> NoReturn:
    """Become the engine's supervisor, in the foreground."""
    environment = {**os.environ, **settings.environment()}
    os.execve(sys.executable, [sys.executable, "-m", "mooring.supervisor"], environment)


def _ask(run_dir: Path, operation: str) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        try:
            client.connect(str(run_dir / "supervisor.sock"))
            client.sendall(json.dumps({"op": operation}).encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n"):
                data = client.recv(65536)
                if not data:
                    raise NotRunning(f"the engine in {run_dir} has just ended")
                answer += data
        except OSError as exc:
            if abandoned(run_dir) is None:
                raise NotRunning(f"no engine runs in {run_dir}") from exc
            raise NotRunning(
                f"the engine in {run_dir} has lost its supervisor: "
                "`mooring up` starts another one, which goes on"
            ) from exc
    found: dict[str, Any] = json.loads(answer)
    if not found.pop("ok"):
        raise NotRunning(str(found["error"]))
    return found


def _last_line(path: Path, begin: int) -> str:
    with path.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("mooring: ") if lines else f"it ended at once, see {path}"

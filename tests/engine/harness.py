"""A real engine in folders of its own, and the real docker CLI in front of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from image import busybox_archive
from mooring.kit.config import Settings, load
from mooring.supervisor import control

SERVICES = ("gateway", "lifecycle", "runtime", "shim-agent", "nats")
IMAGE = "bb"


class UnixHTTP(http.client.HTTPConnection):
    """http.client over a unix socket."""

    def __init__(self, path: str, timeout: float = 30) -> None:
        super().__init__("engine", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return str(self.json["message"])


def until(what: str, condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Poll until the condition holds; its value. AssertionError naming `what` if it never does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


class Engine:
    """One engine; everything it has is below `folder` and `run`."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder = folder
        self.state, self.run = folder / "state", folder / "run"
        self.socket = str(folder / "docker.sock")
        self.host = f"unix://{self.socket}"
        self.env = {**os.environ, "DOCKER_HOST": self.host, "DOCKER_CLI_HINTS": "false", **env}
        self.env |= {"MOORING_HOST": self.host, "DOCKER_CONFIG": str(folder / "docker")}

    # the engine

    def mooring(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mooring.cli", *args]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise AssertionError(f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def dirs(self) -> list[str]:
        return ["--state-dir", str(self.state), "--run-dir", str(self.run)]

    def up(self, *args: str) -> None:
        self.mooring("up", "--detach", "--host", self.host, *self.dirs(), *args)

    def down(self, *args: str) -> None:
        self.mooring("down", *self.dirs(), *args)

    def status(self) -> Any:
        return json.loads(self.mooring("status", "--json", *self.dirs()).stdout)

    def pids(self) -> dict[str, int]:
        """The pid of each service, read from the supervisor's own file: cheap."""
        listed = json.loads((self.run / "supervisor.json").read_text())
        return {item["name"]: item["pid"] for item in listed["services"] if item["pid"]}

    def supervisor(self) -> int:
        """The pid of the supervisor itself."""
        pid: int = json.loads((self.run / "supervisor.json").read_text())["pid"]
        return pid

    def keeper(self) -> int:
        """The pid of the supervisor's keeper."""
        pid: int = json.loads((self.run / "supervisor.json").read_text())["keeper"]
        return pid

    def stored(self, service: str) -> int:
        """How many descriptors the supervisor keeps for a service."""
        services = control.status(self.run)["services"]
        found: int = next(s["stored"] for s in services if s["name"] == service)
        return found

    def kill(self, service: str) -> int:
        """kill -9 of a service; the pid it had."""
        pid = self.pids()[service]
        os.kill(pid, signal.SIGKILL)
        return pid

    def back(self, service: str, old: int) -> None:
        """Until the service runs under another pid and the API answers."""
        until(f"{service} is back", lambda: self.pids().get(service) not in (None, old))
        until("the API answers", self.answers)

    def answers(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.api("GET", "/containers/json").status == 200
        return False

    def load(self, reference: str = IMAGE, config: dict[str, object] | None = None) -> None:
        archive = self.folder / "image.tar"
        archive.write_bytes(busybox_archive(f"{reference}:latest", config))
        self.docker("load", "-i", str(archive))

    def logs(self) -> str:
        """What the services said, for the report of a failed test."""
        return "".join(path.read_text() for path in sorted(self.run.glob("*.log*")))

    # its clients

    def docker(
        self,
        *args: str,
        check: bool = True,
        stdin: str | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """The docker CLI; AssertionError with its output if it fails and check is set."""
        done = subprocess.run(
            ["docker", *args], env=self.env, input=stdin, capture_output=True, text=True,
            timeout=timeout,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"docker {args}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def retried(self, *args: str) -> subprocess.CompletedProcess[str]:
        """A command sent until the engine took it: what a user does when it was killed under it."""

        def once() -> subprocess.CompletedProcess[str] | None:
            done = self.docker(*args, check=False)
            return done if done.returncode == 0 else None

        return until(" ".join(args), once)  # type: ignore[no-any-return]

    def out(self, *args: str, stdin: str | None = None) -> str:
        """What a docker command printed on stdout, without the last newline."""
        return self.docker(*args, stdin=stdin).stdout.rstrip("\n")

    def popen(self, *args: str, **options: Any) -> subprocess.Popen[str]:
        """A docker command that goes on."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(["docker", *args], env=self.env, text=True, **pipes)

    def api(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        raw: bytes | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = 30,
    ) -> Answer:
        """One HTTP request; body as JSON, or raw bytes as they are."""
        head = dict(headers or {})
        if body is not None:
            raw = json.dumps(body).encode()
            head.setdefault("Content-Type", "application/json")
        connection = UnixHTTP(self.socket, timeout)
        try:
            connection.request(method, path, raw, head)
            response = connection.getresponse()
            return Answer(response.status, response.read(), dict(response.headers))
        finally:
            connection.close()

    def inspect(self, name: str) -> Any:
        answer = self.api("GET", f"/containers/{name}/json")
        assert answer.status == 200, answer.body
        return answer.json

    def state_of(self, name: str) -> str:
        return str(self.inspect(name)["State"]["Status"])

    def events(self, **filters: str) -> list[Any]:
        """All events so far that pass the filters, oldest first.

        Not by the CLI: it cuts `--until` to whole seconds.
        """
        chosen = json.dumps({key: [value] for key, value in filters.items()})
        query = urlencode({"since": "0", "until": f"{time.time():.9f}", "filters": chosen})
        answer = self.api("GET", f"/events?{query}")
        assert answer.status == 200, answer.body
        return [json.loads(line) for line in answer.body.splitlines()]

    def actions(self, container: str) -> list[str]:
        """What happened to a container, in order."""
        return [item["Action"] for item in self.events(container=container)]

    def in_state(self, name: str, *states: str, seconds: float = 30) -> None:
        until(f"{name} is {states}", lambda: self.state_of(name) in states, seconds)

    def remove_all(self) -> None:
        """Every container, whatever its state."""
        for item in self.api("GET", "/containers/json?all=1").json:
            self.api("DELETE", f"/containers/{item['Id']}?force=1&v=1")

    # what is left

    def leftovers(self) -> list[str]:
        """Everything in the kernel and on disk that no container owns any more.

        The files of one that removed itself are among it for 3 s: somebody may read its log.
        """
        files = [f"container dir {path.name}" for path in (self.state / "containers").glob("*")]
        return self.held() + files

    def held(self) -> list[str]:
        """What ended containers keep from others: all but their files."""
        found = []
        # The engine's own, for run directories.
        runs = f"mooring {self.run}/shims "
        found += [
            line
            for line in Path("/proc/self/mounts").read_text().splitlines()
            if any(mark in line for mark in self.marks()) and not line.startswith(runs)
        ]
        for pattern in self.cgroup_patterns():
            for path in Path("/sys/fs/cgroup").glob(pattern):
                if path.is_dir() and not path.name.startswith("warm."):
                    found.append(f"cgroup {path}")
        found += [f"run dir {path.name}" for path in (self.run / "shims").glob("[!.]*")]
        network = self.state / "network"
        found += [f"lease {path.name}" for path in network.glob("**/leases/*")]
        return found

    def marks(self) -> tuple[str, ...]:
        """One of these is in the line of every mount of this engine."""
        return str(self.folder), str(self.run)

    def cgroup_patterns(self) -> tuple[str, ...]:
        """Where its containers' cgroups are, in version 2 and in version 1."""
        return f"{self.instance}/*", f"*/{self.instance}/*"

    @property
    def instance(self) -> str:
        return self.configured().instance

    @property
    def bridge(self) -> str:
        """The link of its default network."""
        return self.configured().bridge

    def configured(self) -> Settings:
        """As far as it follows from its folders."""
        return load({"state_dir": self.state, "run_dir": self.run}, environ={})

    def links(self) -> list[str]:
        """The links of its networks; other engines come and go on the same host."""
        return [text for text in kernel_leftovers(self) if text.startswith("link")]

    def arm(self, point: str) -> None:
        """Have the service that comes to a fault point killed there."""
        (self.run / "faults").mkdir(exist_ok=True)
        (self.run / "faults" / point).touch()

    def disarm(self) -> None:
        """Nothing is killed at any point any more."""
        for path in (self.run / "faults").glob("*"):
            path.unlink()

    def fired(self, point: str) -> bool:
        """Whether a service was killed at a point that was armed."""
        return not (self.run / "faults" / point).exists()

    def cgroups(self) -> list[Path]:
        """What there is of this engine's own cgroup: nothing, after its last container."""
        root = Path("/sys/fs/cgroup")
        return [path for path in (root, *root.iterdir()) if (path / self.instance).is_dir()]

    def processes(self) -> list[str]:
        """Processes of this engine that are still there."""
        found = []
        mark = str(self.folder).encode()
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{entry}/cmdline").read_bytes()
                environ = Path(f"/proc/{entry}/environ").read_bytes()
                if b"mooring" in line + environ and mark in line + environ and line:
                    found.append(f"{entry} {line.replace(bytes(1), b' ').decode()[:100]}")
        return found


@contextlib.contextmanager
def engine(*args: str, **env: str) -> Iterator[Engine]:
    """An engine that is up, with the image `bb`; afterwards it is gone without a trace."""
    # Not pytest's tmp_path: a unix socket's path is limited to 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="moor-"))
    # In memory, as /run is: on a busy disk a file is renamed in seconds.
    memory = "/dev/shm" if os.path.ismount("/dev/shm") else None
    made = Engine(folder, **env)
    made.run = Path(tempfile.mkdtemp(prefix="moor-", dir=memory))
    try:
        made.up(*args)
        made.load()
        yield made
    finally:
        with contextlib.suppress(AssertionError, OSError, http.client.HTTPException):
            made.remove_all()
            until("containers are cleared away", lambda: not made.leftovers())
        made.down("--containers")
        left = until_gone(made) + [str(path) for path in made.cgroups()]
        for path in (folder, made.run):
            shutil.rmtree(path, ignore_errors=True)
    assert not left, f"left behind: {left}"


def kernel_leftovers(made: Engine) -> list[str]:
    """Links and tables of an engine that has ended."""
    found = []
    for path in Path("/sys/class/net").iterdir():
        with contextlib.suppress(OSError):
            if f"mooring:{made.instance}:" in (path / "ifalias").read_text():
                found.append(f"link {path.name}")
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
    if f" {made.instance}\n" in tables:
        found.append(f"table {made.instance}")
    return found


def until_gone(made: Engine) -> list[str]:
    """What is left 10 s after the end of an engine."""
    with contextlib.suppress(AssertionError):
        until("nothing is left", lambda: not made.leftovers() and not made.processes(), 10)
    return made.leftovers() + made.processes() + kernel_leftovers(made)


def numbers(text: str) -> list[int]:
    """The numbers that a counting container printed, one to a line."""
    return [int(match) for match in re.findall(r"^(\d+)\r?$", text, re.MULTILINE)]

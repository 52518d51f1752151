"""The main job in a minute: run containers, kill every service of the engine, lose nothing.

Uses a state and a run directory of its own in a temporary folder, and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from image import busybox_archive
from mooring.supervisor import control

console = Console(highlight=False)
SERVICES = ("gateway", "lifecycle", "runtime", "shim-agent", "nats")
COUNT = 120
COUNTER = f"i=1; while [ $i -le {COUNT} ]; do echo $i; i=$((i+1)); sleep 0.1; done"


class Demo:
    """One engine in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = f"unix://{folder}/docker.sock"
        self.env = {
            **os.environ,
            "MOORING_HOST": self.host,
            "DOCKER_HOST": self.host,
            "DOCKER_CLI_HINTS": "false",
        }
        self.docker = shutil.which("docker")

    def mooring(self, *args: str) -> str:
        """Output of one `mooring` command; ends the demo if it fails."""
        command = [sys.executable, "-m", "mooring.cli", *args]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True)
        if done.returncode:
            console.print(f"[red]mooring {' '.join(args)}[/] failed: {done.stderr or done.stdout}")
            raise SystemExit(1)
        return done.stdout

    def dirs(self) -> list[str]:
        return ["--state-dir", f"{self.folder}/state", "--run-dir", f"{self.folder}/run"]

    def client(self, *args: str) -> str:
        """The docker CLI if this machine has it, else our own: the same words work with both."""
        if self.docker is None:
            return self.mooring(*args)
        done = subprocess.run([self.docker, *args], env=self.env, capture_output=True, text=True)
        if done.returncode:
            console.print(f"[red]docker {' '.join(args)}[/] failed: {done.stderr}")
            raise SystemExit(1)
        return done.stdout

    def services(self) -> dict[str, int]:
        """The pid of every service that is ready."""
        found = control.status(self.folder / "run")["services"]
        return {item["name"]: item["pid"] for item in found if item["state"] == "ready"}

    @contextlib.contextmanager
    def engine(self) -> Iterator[None]:
        self.mooring("up", "--detach", "--host", self.host, *self.dirs())
        try:
            yield
        finally:
            self.mooring("down", "--containers", *self.dirs())


def step(text: str) -> None:
    console.print(f"[bold cyan]▸[/] {text}")


def killed(demo: Demo, name: str, pid: int) -> float:
    """kill -9, and the seconds until the service is back under a new pid."""
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    while time.monotonic() - began < 20:
        if demo.services().get(name) not in (0, None, pid):
            return time.monotonic() - began
        time.sleep(0.005)
    raise SystemExit(f"{name} did not come back")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="mooring-demo-") as name:
        folder = Path(name)
        demo = Demo(folder)
        step("start the engine: supervisor, NATS, gateway, lifecycle, runtime worker, shim agent")
        with demo.engine():
            play(demo)
        step("the engine is down, and nothing is left")


def play(demo: Demo) -> None:
    step("build an image from this machine's static busybox, and load it")
    archive = demo.folder / "busybox.tar"
    archive.write_bytes(busybox_archive("demo:latest"))
    console.print("  " + demo.mooring("load", str(archive)).strip())
    client = "docker" if demo.docker else "mooring"
    step(f"{client} run --rm demo echo hello")
    console.print("  " + demo.client("run", "--rm", "demo", "echo", "hello").strip())
    step("run a container that counts once per 100 ms; kill -9 every service meanwhile")
    demo.client("run", "-d", "--name", "counter", "demo", "sh", "-c", COUNTER)
    for name in SERVICES:
        time.sleep(1)  # so that there is something to see between two kills
        back = killed(demo, name, demo.services()[name])
        lines = demo.client("logs", "counter").split()
        console.print(
            f"  killed {name:<11} back after {back:4.2f} s, the count stands at {lines[-1]}"
        )
    demo.client("logs", "-f", "counter")
    numbers = demo.client("logs", "counter").split()
    expected = [str(n) for n in range(1, COUNT + 1)]
    if numbers != expected:
        raise SystemExit(f"the count has a gap: {numbers}")
    step(f"the count from 1 to {COUNT} has no gap")
    if demo.docker:
        state = demo.client("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "counter")
        console.print(f"  the container's end: {state.strip()}")
    demo.client("rm", "counter")


if __name__ == "__main__":
    main()

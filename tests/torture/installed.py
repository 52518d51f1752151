"""The engine that is installed on this machine as units of systemd, seen like an embedded one."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from mooring.kit.config import Settings, load
from tests.engine.harness import Engine

KEEPERS = ("containers", "shims")
SERVICES = ("nats", "lifecycle", "runtime", "shim-agent", "gateway", "network")


class Installed(Engine):
    """It was there before, and so were its containers: only what is more than then is left over."""

    def __init__(self, folder: Path, **env: str) -> None:
        super().__init__(folder, **env)
        self.settings: Settings = load()
        self.state, self.run = self.settings.state_dir, self.settings.run_dir
        self.host = next(host for host in self.settings.host if host.startswith("unix://"))
        self.socket = self.host.removeprefix("unix://")
        self.env |= {"DOCKER_HOST": self.host, "MOORING_HOST": self.host}
        self._began = time.time()
        self._before: set[str] = set()
        self._before = set(self.leftovers())

    def _show(self, name: str, *services: str) -> dict[str, int]:
        """A number of each service's unit."""
        units = [f"mooring-{service}.service" for service in services]
        command = ["systemctl", "show", "--value", f"--property={name}", *units]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return dict(zip(services, map(int, out.split()), strict=True))

    def pids(self) -> dict[str, int]:
        """The main process of each unit, of the keepers of the cgroups too."""
        found = self._show("MainPID", *SERVICES, *KEEPERS)
        return {name: pid for name, pid in found.items() if pid}

    def kept(self, *services: str) -> dict[str, int]:
        """How many descriptors systemd keeps for each of these services."""
        return self._show("NFileDescriptorStore", *services)

    def status(self) -> Any:
        done = self.mooring("status", "--json")
        return json.loads(done.stdout)

    def logs(self) -> str:
        since = f"--since=@{self._began:.0f}"
        command = ["journalctl", "--unit=mooring-*", since, "--output=short-precise"]
        return subprocess.run(command, capture_output=True, text=True).stdout

    def configured(self) -> Settings:
        return self.settings

    def marks(self) -> tuple[str, ...]:
        return str(self.state), str(self.run)

    def cgroup_patterns(self) -> tuple[str, ...]:
        parent = self.settings.cgroup_root.strip("/")
        return f"{parent}/*", f"*/{parent}/*"

    def leftovers(self) -> list[str]:
        return sorted(set(super().leftovers()) - self._before)

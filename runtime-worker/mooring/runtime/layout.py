"""Pure: where everything of one engine is on this host (docs/ARCHITECTURE.md, 2)."""

from __future__ import annotations

from mooring.kit.config import Settings


class Layout:
    """The worker's files below the state and run directories, as plain strings for hot paths."""

    __slots__ = (
        "agent_socket",
        "containers",
        "names",
        "network",
        "network_used",
        "ports",
        "released",
        "removed",
        "run",
        "run_trash",
        "seccomp",
        "shims",
        "shm",
        "state",
        "trash",
        "volumes",
    )

    def __init__(self, settings: Settings) -> None:
        self.state, self.run = str(settings.state_dir), str(settings.run_dir)
        self.containers = f"{self.state}/containers"
        self.trash = f"{self.state}/trash"
        self.volumes = f"{self.state}/volumes"
        self.network = f"{self.state}/network"
        self.shims = f"{self.run}/shims"
        self.seccomp = f"{self.run}/seccomp"
        self.shm = f"{self.run}/shm"
        self.run_trash = f"{self.shims}/.trash"
        self.removed = f"{self.shims}/.removed"
        """An empty file for each container removed a moment ago: a late start is refused."""
        self.released = f"{self.shims}/.released"
        """The last run released of each container whose run was over a moment ago."""
        self.ports = f"{self.shims}/.ports"
        """The published ports of each run that has any, as `<id>.<run>`."""
        self.network_used = f"{self.shims}/.network"
        """Exists once mooring-network was asked for anything."""
        self.names = f"{self.shims}/.names"
        """What the name server is to know of each run on a user-defined network."""
        self.agent_socket = f"{self.run}/agent.sock"

    def container(self, id_: str) -> str:
        """All of one container."""
        return f"{self.containers}/{id_}"

    def run_directory(self, id_: str, run: int) -> str:
        """The run directory of one run."""
        return f"{self.shims}/{id_}.{run}"

    def directories(self) -> list[str]:
        """What has to exist before the worker can work."""
        return [
            self.containers,
            self.trash,
            self.volumes,
            self.network,
            self.shims,
            self.seccomp,
            self.shm,
            self.removed,
            self.released,
            self.ports,
            self.names,
            self.run_trash,
        ]

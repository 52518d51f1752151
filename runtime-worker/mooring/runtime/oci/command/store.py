"""What the command knows of its containers: a directory with a state file for each."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mooring.runtime.oci import cgroups
from mooring.runtime.oci.cgroup import Cgroup
from mooring.runtime.oci.errors import OciError

VERSION = "1.2.0"
_ID = re.compile(r"[A-Za-z0-9_+.-]{1,1024}")


def start_time(pid: int) -> int:
    """Field 22 of /proc/<pid>/stat, in ticks since boot; 0 for one that is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # The name, in parentheses, may hold anything.
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" else int(fields[19])


class Container:
    """One container as its directory tells of it."""

    def __init__(self, directory: Path, state: dict[str, Any]) -> None:
        self.directory = directory
        self.state = state
        self.id: str = state["id"]
        self.pid: int = state["pid"]
        self.bundle: str = state["bundle"]

    @property
    def fifo(self) -> Path:
        """There from `create` until `start`."""
        return self.directory / "exec.fifo"

    @property
    def spec(self) -> dict[str, Any]:
        """The configuration as it was when the container was created."""
        result: dict[str, Any] = json.loads((self.directory / "config.json").read_text())
        return result

    @property
    def cgroup(self) -> Cgroup:
        """Its cgroup."""
        return cgroups.attach(self.state["cgroup"])

    def alive(self) -> bool:
        """Whether init is the process it was."""
        return bool(self.pid) and start_time(self.pid) == self.state["pidStart"]

    def status(self) -> str:
        """created, running, paused or stopped."""
        if not self.pid:
            return "creating"
        if not self.alive():
            return "stopped"
        if self.fifo.exists():
            return "created"
        return "paused" if self.cgroup.frozen() else "running"

    def public(self, status: str = "") -> dict[str, Any]:
        """The state as the OCI specification has it."""
        status = status or self.status()
        return {
            "ociVersion": VERSION,
            "id": self.id,
            "status": status,
            "pid": 0 if status == "stopped" else self.pid,
            "bundle": self.bundle,
            "annotations": self.state["annotations"],
        }

    def save(self) -> None:
        """Write the state in one step."""
        part = self.directory / "state.part"
        part.write_text(json.dumps(self.state))
        part.rename(self.directory / "state.json")

    def remove(self) -> None:
        """Forget it."""
        shutil.rmtree(self.directory, ignore_errors=True)


class Store:
    """The containers below one --root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self, name: str, bundle: Path, spec: dict[str, Any], cgroup: str) -> Container:
        """Claim a name; OciError if it is taken."""
        if not _ID.fullmatch(name) or name in (".", ".."):
            raise OciError(f"invalid container id {name!r}")
        directory = self.root / name
        try:
            directory.mkdir(parents=True, mode=0o711)
        except FileExistsError:
            raise OciError(f"container with id {name} exists already") from None
        (directory / "config.json").write_text(json.dumps(spec))
        state = {
            "id": name,
            "pid": 0,
            "pidStart": 0,
            "bundle": str(bundle),
            "cgroup": cgroup,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "annotations": spec.get("annotations") or {},
        }
        container = Container(directory, state)
        container.save()
        return container

    def find(self, name: str) -> Container:
        """The container of that name; OciError if there is none."""
        path = self.root / name / "state.json"
        if not _ID.fullmatch(name) or not path.exists():
            raise OciError(f'container "{name}" does not exist')
        return Container(path.parent, json.loads(path.read_text()))

    def __iter__(self) -> Iterator[Container]:
        if self.root.exists():
            for path in sorted(self.root.iterdir()):
                if (path / "state.json").exists():
                    yield self.find(path.name)


@contextmanager
def locked(container: Container) -> Iterator[None]:
    """One command at a time on a container."""
    fd = os.open(container.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)

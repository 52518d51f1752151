"""A real worker with a launcher, shims and containers of its own, started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.models.base import Done
from mooring.kit.models.container import ContainerRecord
from mooring.kit.models.host import HostContainer, HostRestart, HostStart, HostStarted
from mooring.kit.models.image import ImageRecord, Layer
from tests.forks import Forked, Forker

APPLETS = ("sh", "echo", "true", "sleep", "cat", "ls", "id", "hostname", "ip", "touch")
CHAIN = "ab" * 32


class Worker:
    """The worker of one test's engine, and what the other processes would ask of it."""

    def __init__(self, settings: Settings, bus: Bus, forks: Forker) -> None:
        self.settings = settings
        self.bus = bus
        self._forks = forks
        self.state, self.run_dir = settings.state_dir, settings.run_dir
        self.deaths = 0
        self._process: Forked | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it, and again whenever it dies."""
        self._keeper = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        while True:
            self._process = await self._forks.start("runtime", self.settings, MOORING_FAULTS="true")
            await self._process.wait()
            self.deaths += 1

    async def stop(self) -> None:
        """End it in good order; containers go on."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._process is not None and self._process.returncode is None:
            self._process.send(signal.SIGTERM)
            await self._process.wait()

    def kill(self) -> None:
        """SIGKILL it."""
        assert self._process is not None
        self._process.kill()

    @property
    def pid(self) -> int:
        """The process that runs now."""
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """What the worker has logged."""
        return (self.run_dir / "runtime.log").read_text()

    def arm(self, point: str) -> None:
        """Have the worker, or a shim, die at a point once."""
        directory = self.run_dir / "faults"
        directory.mkdir(exist_ok=True)
        (directory / point).touch()

    # --- commands ---

    def record(self, *command: str, host: dict[str, Any] | None = None, **config: Any) -> Any:
        """A container's record; on no network unless `host` says otherwise."""
        return ContainerRecord.model_validate(
            {
                "id": secrets.token_hex(32),
                "name": "web",
                "node": self.settings.node_id,
                "created_ns": time.time_ns(),
                "image": "bb",
                "path": command[0],
                "args": list(command[1:]),
                "config": config,
                "host_config": {"network_mode": "none", **(host or {})},
            }
        )

    async def run(self, record: ContainerRecord, run: int = 1, **fields: Any) -> HostStarted:
        """RUNTIME_START."""
        message = HostStart(record=record, image=self.image(), run=run, **fields)
        subject = subjects.runtime(self.settings.node_id, subjects.RUNTIME_START)
        return await self.bus.request(subject, message, HostStarted)

    async def restart(self, id_: str, run: int) -> HostStarted:
        """RUNTIME_RESTART."""
        subject = subjects.runtime(self.settings.node_id, subjects.RUNTIME_RESTART)
        return await self.bus.request(subject, HostRestart(id=id_, run=run), HostStarted)

    async def release(self, id_: str, run: int = 1) -> None:
        """RUNTIME_RELEASE."""
        subject = subjects.runtime(self.settings.node_id, subjects.RUNTIME_RELEASE)
        await self.bus.request(subject, HostContainer(id=id_, run=run), Done)

    async def remove(self, id_: str) -> None:
        """RUNTIME_REMOVE."""
        subject = subjects.runtime(self.settings.node_id, subjects.RUNTIME_REMOVE)
        await self.bus.request(subject, HostContainer(id=id_), Done)

    async def exited(self, id_: str, run: int = 1) -> dict[str, Any]:
        """Wait for a run's end and acknowledge it, as the agent does; its exit record."""
        path = self.run_directory(id_, run) / "exit.json"
        await until(path.exists)
        record: dict[str, Any] = json.loads(path.read_text())
        os.rename(path, path.with_name("exit.acked"))
        return record

    async def kill_container(self, id_: str, run: int = 1) -> dict[str, Any]:
        """SIGKILL a container and wait for its end."""
        shim = json.loads((self.run_directory(id_, run) / "shim.json").read_text())
        os.kill(shim["init_pid"], 9)
        return await self.exited(id_, run)

    # --- what is there ---

    def run_directory(self, id_: str, run: int = 1) -> Path:
        """Where a run is."""
        return self.run_dir / "shims" / f"{id_}.{run}"

    def output(self, id_: str) -> str:
        """All that a container has printed."""
        out = b""
        for segment in sorted((self.state / "containers" / id_ / "log").glob("*.log")):
            data, position = segment.read_bytes(), 0
            while position < len(data):
                _, stream, _, length, _ = struct.unpack_from("<HBBIQ", data, position)
                if stream in (1, 2):
                    out += data[position + 16 : position + 16 + length]
                position += 16 + length
        return out.decode()

    def leftovers(self) -> list[str]:
        """Everything of a container that is still there once the last one has been removed."""
        found: list[str] = []
        for pattern in ("shims/[!.]*", "shims/.trash/*", "shm/*"):
            found += map(str, self.run_dir.glob(pattern))
        for directory in ("containers", "trash", "network/leases"):
            found += map(str, (self.state / directory).iterdir())
        for cgroup in self.cgroups("*"):
            if not cgroup.name.startswith("warm."):
                found.append(str(cgroup))
        mounts = Path("/proc/self/mountinfo").read_text()
        found += [line for line in mounts.splitlines() if str(self.run_dir) in line]
        return found

    def cgroups(self, name: str) -> list[Path]:
        """The cgroups of that name (a pattern) below the engine's own, of either version."""
        return cgroups_of(self.settings, name)

    def image(self) -> ImageRecord:
        """What all containers are made of."""
        return ImageRecord(
            id="sha256:" + "cd" * 32,
            layers=[Layer(diff_id=f"sha256:{CHAIN}", chain_id=f"sha256:{CHAIN}")],
        )

    def make_image(self) -> None:
        """An unpacked layer with a busybox."""
        root = self.state / "layers" / CHAIN / "fs"
        (root / "bin").mkdir(parents=True)
        (root / "etc").mkdir()
        shutil.copy(shutil.which("busybox") or "/bin/busybox", root / "bin/busybox")
        for applet in APPLETS:
            (root / "bin" / applet).symlink_to("busybox")
        (root / "etc/passwd").write_text(
            "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/app:/bin/sh\n"
        )
        (root / "etc/group").write_text("root:x:0:\napp:x:1000:\n")
        short = self.state / "layers/s"
        short.mkdir()
        (short / CHAIN[:12]).symlink_to(f"../{CHAIN}/fs")


async def until(condition: Any, seconds: float = 20.0) -> None:
    """Wait until something is true that no event tells of."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def cgroups_of(settings: Settings, name: str) -> list[Path]:
    """The cgroups of that name (a pattern) below an engine's own: in a hierarchy of v1, or v2's."""
    root, below = Path("/sys/fs/cgroup"), f"{settings.instance}/{name}"
    found = [*root.glob(below), *root.glob(f"*/{below}")]
    return [path for path in found if path.is_dir()]


def _over(directory: Path) -> bool:
    ends = ("exit.json", "exit.acked")
    return not directory.exists() or any((directory / name).exists() for name in ends)


@pytest.fixture
async def worker(settings: Settings, bus: Bus, forks: Forker) -> AsyncIterator[Worker]:
    """A running worker; at the end its containers are killed and nothing of it may be left."""
    worker = Worker(settings, bus, forks)
    settings.state_dir.mkdir(exist_ok=True)
    worker.make_image()
    await worker.start()
    yield worker
    for shim in settings.run_dir.glob("shims/*/shim.json"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(json.loads(shim.read_text())["init_pid"], 9)
    for shim in settings.run_dir.glob("shims/*/shim.json"):
        await until(functools.partial(_over, shim.parent))
    await worker.stop()
    await until(lambda: not cgroups_of(settings, "*"))

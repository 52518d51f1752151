"""Containers as units of systemd: each long-lived one has a unit that is named to the operator.

`mooring-container-<12 hex>.service` has the container's name as its description and the container's
shim as its only process, for as long as that lives. The container itself stays where it is (see
systemd/README.md for why). Stopping the unit stops the container as `docker stop` does.

It is made a moment after the start, so that no start waits for systemd, and nothing depends on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import sys
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import Path
from typing import Protocol

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.errors import EngineError
from mooring.kit.models.container import ContainerRecord
from mooring.kit.models.event import Event

from .runs import Containers, Run
from .work import Work

logger = logging.getLogger(__name__)

AFTER_SECONDS = 1.0
"""Containers that are over by then have no unit."""
AGAIN_SECONDS = 2.0
TRIES = 5
"""The unit of the run (or the shim) before may still be about to end."""
_MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
_FOREVER = str((1 << 64) - 1)

Call = Callable[..., Awaitable[str]]
"""A method of systemd's manager: name, signature, arguments. Its complaint, empty if it did it."""


class Records:
    """The names in the records of the cluster."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def name(self, id_: str) -> str:
        """See Names."""
        records = await self._bus.bucket(subjects.BUCKET_CONTAINERS, ContainerRecord)
        return (await records.get(id_)).record.name

    def on_rename(self, renamed: Callable[[str], None]) -> None:
        """Call back with the id of each container that gets another name from now on."""
        self._bus.client.subscribe(
            subjects.event("container", "rename"),
            lambda message: renamed(Event.unpack(message.data).actor),
        )


class Names(Protocol):
    """Who knows what a container is called."""

    async def name(self, id_: str) -> str:
        """The container's name; NotFound."""
        ...


class ContainerUnits:
    """The units of this host's containers, in one slice."""

    def __init__(
        self, slice_: str, environment: list[str], containers: Containers, names: Names, work: Work
    ) -> None:
        """slice_: what the units are in; environment: NAME=VALUE of what stops a container."""
        self._slice = slice_
        self._environment = environment
        self._containers = containers
        self._names = names
        self._work = work
        # One after the other: systemd has other things to do as well.
        self._turn = asyncio.Lock()
        self._pending: set[Run] = set()
        self.call: Call = call

    def begin(self, run: Run) -> None:
        """A run has begun, was found again, or has another shim."""
        if run not in self._pending:
            self._pending.add(run)
            self._work.start(self._follow(run), name=f"unit of {run.container.id}")

    def rename(self, id_: str) -> None:
        """A container has another name."""
        container = self._containers.find(id_)
        if container is not None and (run := container.live) is not None:
            self._work.start(self._make(run), name=f"unit of {id_}")

    async def _follow(self, run: Run) -> None:
        await asyncio.sleep(AFTER_SECONDS)
        self._pending.discard(run)
        for _ in range(TRIES):
            complaint = await self._make(run)
            if not complaint:
                return
            await asyncio.sleep(AGAIN_SECONDS)
        logger.warning("container %s is no unit of systemd: %s", run.container.id, complaint)

    async def _make(self, run: Run) -> str:
        """Make the unit of a run that goes on, or bring its name up to date; a complaint."""
        async with self._turn:
            record = run.record
            if not run.live or record is None or not record.shim.alive():
                return ""
            try:
                if f"/{unit_of(record.id)}\n" in _cgroups(record.shim.pid):
                    return await self._describe(record.id)
                name = await self._names.name(record.id)
            except (EngineError, OSError) as exc:
                return str(exc)
            shim = str(record.shim.pid)
            mooring = str(Path(sys.executable).with_name("mooring"))
            properties = [
                *("Description", "s", name),
                *("Slice", "s", self._slice),
                *("Type", "s", "exec"),
                # It ends with its last process, the shim, not with the one that took that in.
                *("ExitType", "s", "cgroup"),
                *("ExecStart", "a(sasb)", "1", *_command("take", shim)),
                *("ExecStop", "a(sasb)", "1", *_command("stop", shim, record.id, mooring)),
                *("Environment", "as", str(len(self._environment)), *self._environment),
                # Whatever comes of a stop, nobody kills the shim: it has an exit to record.
                *("KillMode", "s", "process"),
                *("SendSIGKILL", "b", "false"),
                *("TimeoutStopUSec", "t", _FOREVER),
                # At shutdown all containers are ended at once, with mooring-containers.service.
                *("DefaultDependencies", "b", "false"),
                *("CollectMode", "s", "inactive-or-failed"),
            ]
            unit = unit_of(record.id)
            arguments = (unit, "fail", "12", *properties, "0")
            return await self.call("StartTransientUnit", "ssa(sv)a(sa(sv))", *arguments)

    async def _describe(self, id_: str) -> str:
        name = await self._names.name(id_)
        arguments = (unit_of(id_), "true", "1", "Description", "s", name)
        return await self.call("SetUnitProperties", "sba(sv)", *arguments)


def unit_of(id_: str) -> str:
    """The unit of a container."""
    return f"mooring-container-{id_[:12]}.service"


async def call(method: str, signature: str, *arguments: str) -> str:
    """See Call. By busctl, which is where systemd is: nothing of D-Bus stays in this process."""
    busctl = shutil.which("busctl")
    if busctl is None:
        return "there is no busctl"
    process = await asyncio.create_subprocess_exec(
        busctl,
        "--quiet",
        "call",
        "--",
        *_MANAGER,
        "org.freedesktop.systemd1.Manager",
        method,
        signature,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    return said.decode(errors="replace").strip() if process.returncode else ""


def _command(*words: str) -> list[str]:
    """One command of a unit, as busctl writes it: path, arguments, whether it may fail."""
    script = str(resources.files("mooring.systemd") / "container-unit.sh")
    arguments = ["sh", script, *words]
    return ["/bin/sh", str(len(arguments)), *arguments, "false"]


def _cgroups(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cgroup").read_text()
    return ""

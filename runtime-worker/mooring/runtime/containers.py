"""Starting, restarting, releasing and removing containers of this host; each can be repeated."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from mooring.kit import faults, log
from mooring.kit.config import Settings
from mooring.kit.errors import KINDS, Conflict, EngineError, NotFound, Unavailable
from mooring.kit.models.base import Done
from mooring.kit.models.container import ContainerRecord, MountPoint, NetworkState
from mooring.kit.models.host import (
    ContainerSize,
    HostContainer,
    HostRestart,
    HostSize,
    HostStart,
    HostStarted,
)
from mooring.kit.options import log_limits
from mooring.kit.timing import Steps

from . import spec
from .bundle import Bundles, Prepared, replace
from .joins import Joins
from .launching import ShimDied
from .layout import Layout
from .locks import KeyedLocks
from .reaper import Reaper
from .runs import NETWORK, Run, Runs, Stage
from .sandbox import Networks, Sandbox, kind
from .sharedshm import share
from .waiting import until_ended, until_executed

logger = logging.getLogger(__name__)

_RUNTIME_WORDS = (
    "failed to create task for container: failed to create shim task: OCI runtime create failed: "
)
"""What Docker's users and their scripts look for in front of what the runtime says."""


class Shims(Protocol):
    """What runs containers; see handing.Shims."""

    async def start(self, message: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]: ...
    def refill(self) -> None: ...


class VolumeHolds(Protocol):
    """The volumes that runs need; see volumes.Volumes."""

    async def acquire(self, holder: str, mounts: Iterable[MountPoint]) -> None: ...
    async def release(self, holder: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What the handlers work with."""

    settings: Settings
    layout: Layout
    runs: Runs
    bundles: Bundles
    networks: Networks
    shims: Shims
    reaper: Reaper
    joins: Joins
    locks: KeyedLocks
    seccomp: Callable[[str | None, frozenset[str]], Awaitable[str | None]]
    """Path of the compiled filter of a profile for a set of capabilities."""
    volumes: VolumeHolds
    size: Callable[[str], int]
    """Bytes that a container has written; reads its whole upper directory."""


class Containers:
    """The worker's commands about containers."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._layout = parts.layout
        self._runs = parts.runs
        self._locks = parts.locks

    async def start(self, request: HostStart) -> HostStarted:
        """Start a run by command; a run that was started before answers with what is true."""
        with log.bind(container=request.record.id[:12]):
            async with self._locks.hold(request.record.id):
                return await self._start(request, by_command=True)

    async def restart(self, request: HostRestart) -> HostStarted:
        """Start the next run of a container as the last start by command said."""
        with log.bind(container=request.id[:12]):
            async with self._locks.hold(request.id):
                command = self._command(request.id)
                command.run = request.run
                return await self._start(command, by_command=False)

    async def release(self, request: HostContainer) -> Done:
        """A run is over and its exit is recorded: free what it used."""
        async with self._locks.hold(request.id):
            for run in [request.run] if request.run else self._runs.of(request.id):
                await self._release(request.id, run)
        return Done()

    async def remove(self, request: HostContainer) -> Done:
        """Remove all of a container; Conflict while it runs."""
        id_ = request.id
        async with self._locks.hold(id_):
            for run in self._runs.of(id_):
                await self._release(id_, run)
            # Before anything goes: a start that was sent earlier must not bring it back.
            self._parts.reaper.mark_removed(id_)
            faults.point("runtime.remove.released")
            self._parts.reaper.discard(self._layout.container(id_))
            faults.point("runtime.remove.trashed")
        return Done()

    async def size(self, request: HostSize) -> ContainerSize:
        """How much a container has written, and how much it sees."""
        written = await self._parts.reaper.in_thread(self._parts.size, request.id)
        return ContainerSize(size_rw=written, size_root_fs=written + request.image)

    def _command(self, id_: str) -> HostStart:
        """The last start by command of a container."""
        try:
            with open(f"{self._layout.container(id_)}/start.msgpack", "rb") as file:
                return HostStart.unpack(file.read())
        except FileNotFoundError:
            raise NotFound(f"No such container: {id_}") from None

    # --- start ---

    async def _start(self, request: HostStart, *, by_command: bool) -> HostStarted:
        try:
            return await self._try_start(request, by_command=by_command)
        except ShimDied:
            logger.warning("a shim died before it had started the program, taking another one")
        try:
            return await self._try_start(request, by_command=by_command)
        except ShimDied as exc:
            raise Unavailable("the shim died before it had started the container") from exc

    async def _try_start(self, request: HostStart, *, by_command: bool) -> HostStarted:
        """One attempt; ShimDied, with everything undone, if its shim died too early to matter."""
        id_, run = request.record.id, request.run
        cgroup = self._parts.bundles.cgroup(request.record)
        if (known := await self._known(id_, run, cgroup)) is not None:
            return self._answer(request, known)
        steps = Steps(f"start {id_[:12]}.{run}")
        directory = self._layout.run_directory(id_, run)
        sandbox: Sandbox | None = None
        os.mkdir(directory, 0o700)
        self._runs.add(id_, run)
        try:
            joined = self._parts.joins.resolve(request.record, request.peers)
            names = spec.capability_names(request.record.host_config, self._parts.bundles.facts)
            profile = spec.seccomp_profile(request.record.host_config)
            seccomp = await self._parts.seccomp(profile, frozenset(names))
            steps.mark("seccomp")
            sandbox = await self._parts.networks.attach(
                f"{id_}.{run}", request.record, joined.network_of
            )
            if sandbox.state.endpoints:
                replace(f"{directory}/{NETWORK}", sandbox.state.pack())
            if any(mount.type == "volume" for mount in request.record.mounts):
                await self._parts.volumes.acquire(f"{id_}.{run}", request.record.mounts)
            faults.point("runtime.start.sandbox")
            steps.mark("sandbox")
            hostname = self._hostname(request.record, joined.network_of)
            prepared = self._parts.bundles.prepare(request, sandbox, joined, hostname)
            if joined.shm and request.record.host_config.ipc_mode == "shareable":
                share(joined.shm, request.record.host_config.shm_size)
            if by_command:
                self._parts.bundles.write_command(request)
            faults.point("runtime.start.prepared")
            steps.mark("prepare")
            message = self._message(request, directory, prepared, seccomp)
            answer = await self._parts.shims.start(message, prepared.spec)
            steps.mark("run")
            if error := answer.get("error"):
                answered = self._refused(error)
                await self._undo(id_, run, cgroup)
                return answered
            faults.point("runtime.start.started")
            steps.add({k: int(ms * 1e6) for k, ms in (answer.get("timings") or {}).items()})
            return HostStarted(
                pid=int(answer["pid"]),
                started_ns=int(answer["started_ns"]),
                network=sandbox.state,
                warnings=prepared.warnings,
            )
        except BaseException:
            await self._undo(id_, run, cgroup)
            raise
        finally:
            if sandbox is not None:
                sandbox.close()
            self._parts.shims.refill()
            self._parts.networks.refill()
            steps.done()

    async def _known(self, id_: str, run: int, cgroup: str) -> Run | None:
        """The run if it was started before; what was left half-made of it is undone first."""
        if self._parts.reaper.was_removed(id_):
            raise NotFound(f"No such container: {id_}")
        for other in self._runs.of(id_):
            found = self._runs.find(id_, other)
            if found is None:
                self._runs.forget(id_, other)
            elif found.stage is Stage.HALF:
                await self._undo(id_, other, cgroup)
                if (finished := self._runs.find(id_, other)) is not None:
                    if other == run:
                        return finished
                    raise Conflict(f"container {id_} is running (run {other})")
            elif other == run:
                if (executed := await until_executed(found)) is not None:
                    return executed
                await self._undo(id_, run, cgroup)
            elif found.stage is Stage.LIVE:
                raise Conflict(f"container {id_} is running (run {other})")
            elif other > run:
                raise Conflict(f"run {run} of container {id_} is over")
            else:
                # Its files stay for whoever still reads them; its address is free, and its
                # cgroup has to be gone before another one can have its name.
                self._parts.networks.detach(f"{id_}.{other}")
                await until_ended(found)
                await self._parts.reaper.remove_cgroup(found.cgroup)
        if run <= self._parts.reaper.last_released(id_):
            raise Conflict(f"run {run} of container {id_} is over")
        return None

    def _answer(self, request: HostStart, known: Run) -> HostStarted:
        """What a start would have answered that was carried out before."""
        network = NetworkState()
        try:
            with open(f"{known.directory}/{NETWORK}", "rb") as file:
                network = NetworkState.unpack(file.read())
        except FileNotFoundError:
            pass
        return HostStarted(
            pid=known.init_pid,
            started_ns=known.started_ns,
            network=network,
        )

    def _message(
        self, request: HostStart, directory: str, prepared: Prepared, seccomp: str | None
    ) -> dict[str, Any]:
        """ShimStart."""
        record, settings = request.record, self._parts.settings
        config, host = record.config, record.host_config
        container = self._layout.container(record.id)
        size, files = log_limits(host.log_config) or (settings.log_max_size, settings.log_max_files)
        overlay = prepared.overlay
        console = host.console_size
        return {
            "op": "start",
            "id": record.id,
            "run": request.run,
            "dir": directory,
            "bundle": directory,
            "log_dir": f"{container}/log",
            "log_max_size": size,
            "log_max_files": files,
            "tty": config.tty,
            "stdin": config.open_stdin,
            "stdin_once": config.stdin_once,
            "rootfs": {
                "lowers": overlay.lowers,
                "upper": str(overlay.upper),
                "work": str(overlay.work),
            },
            "cgroup": prepared.cgroup,
            "seccomp": seccomp,
            "agent_socket": self._layout.agent_socket,
            "console_size": console if console and len(console) == 2 and any(console) else None,
            "timings": settings.timings,
        }

    def _hostname(self, record: ContainerRecord, network_of: Run | None) -> str:
        if network_of is not None:
            # As in Docker, one network has one name.
            try:
                with open(f"{network_of.directory}/hostname") as file:
                    return file.read().strip()
            except FileNotFoundError:
                raise Conflict(
                    f"cannot join network of a non running container: {network_of.id}"
                ) from None
        if record.config.hostname:
            return record.config.hostname
        if kind(record) == "host" or record.host_config.uts_mode == "host":
            return socket.gethostname()
        return record.id[:12]

    def _refused(self, error: dict[str, Any]) -> HostStarted:
        """It could not be started. 126 and 127 are the program's fault: that is an answer."""
        message, code = str(error.get("message", "")), int(error.get("exit_code") or 128)
        if code in (126, 127):
            text = f"unable to start container process: {message}"
            return HostStarted(error=_RUNTIME_WORDS + text, exit_code=code)
        raise KINDS.get(str(error.get("kind")), EngineError)(_RUNTIME_WORDS + message)

    # --- the end of a run ---

    async def _undo(self, id_: str, run: int, cgroup: str) -> None:
        """Take back a run whose program never ran; one that did run after all is left alone."""
        if self._parts.reaper.fence(id_, run):
            await self._parts.reaper.remove_cgroup(cgroup)
            self._parts.networks.detach(f"{id_}.{run}")
            await self._parts.volumes.release(f"{id_}.{run}")
            self._runs.forget(id_, run)
            self._parts.reaper.unshare(id_)

    async def _release(self, id_: str, run: int) -> None:
        if self._parts.reaper.finishing(id_, run):
            return
        found = self._runs.find(id_, run)
        if found is not None and found.stage is Stage.LIVE:
            raise Conflict(f"container {id_} is running (run {run})")
        self._parts.networks.detach(f"{id_}.{run}")
        await self._parts.volumes.release(f"{id_}.{run}")
        faults.point("runtime.release.detached")
        self._parts.reaper.note_released(id_, run)
        if not self._runs.live(id_):
            self._parts.reaper.unshare(id_)
        faults.point("runtime.release.noted")
        if found is None:
            self._runs.forget(id_, run)
        else:
            self._parts.reaper.finish(found)

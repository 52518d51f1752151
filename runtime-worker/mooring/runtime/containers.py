"""Starting, restarting, releasing and removing containers of this host; each can be repeated."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from mooring.kit import faults, log
from mooring.kit.config import Settings
from mooring.kit.ending import is_ending
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

from . import early, spec
from .bundle import Bundles, Prepared, replace
from .joins import Joins
from .launching import ShimDied
from .layout import Layout
from .locks import KeyedLocks
from .making import Making
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


class RunOver(Conflict):
    """A start is asked for again that was done; nothing is left of the run."""


class Shims(Protocol):
    """What runs containers; see handing.Shims."""

    @property
    def early(self) -> bool: ...
    async def make(self, message: dict[str, Any], spec: dict[str, Any]) -> Making | None: ...
    async def start(
        self, message: dict[str, Any], spec: dict[str, Any], making: Making | None = None
    ) -> dict[str, Any]: ...
    async def abandon(self, making: Making) -> None: ...
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


@dataclass(slots=True)
class Assembled:
    """A run of which everything is there but its process."""

    request: HostStart
    sandbox: Sandbox
    prepared: Prepared
    message: dict[str, Any]
    """ShimStart."""
    making: Making | None = None
    """Its process, waiting, if that was made as well."""


class Containers:
    """The worker's commands about containers."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._layout = parts.layout
        self._runs = parts.runs
        self._locks = parts.locks
        self._early: early.Early[Assembled] = early.Early(parts.locks, self._take_back)

    async def prepare(self, request: HostStart) -> Done:
        """A container was created: make its run as far as it goes, if it is likely to be started.

        Nobody waits for it, and whatever is in the way will be told at the start.
        """
        record = request.record
        if not self._parts.shims.early or not self._early.wanted(record):
            return Done()
        if is_ending(self._layout.run):
            return Done()
        await asyncio.sleep(early.PAUSE)
        with log.bind(container=record.id[:12]):
            async with self._locks.hold(record.id):
                if self._runs.of(record.id) or self._is_late(record.id, request.run):
                    return Done()
                steps = Steps(f"prepare {record.id[:12]}")
                try:
                    made = await self._assemble(request, steps)
                except EngineError as exc:
                    logger.debug("not made early: %s", exc)
                    return Done()
                try:
                    making = await self._parts.shims.make(made.message, made.prepared.spec)
                except BaseException:
                    await self._take_back(made)
                    raise
                steps.mark("make")
                steps.done()
                if making is None:
                    await self._take_back(made)
                else:
                    made.making = making
                    self._early.add(made)
                self._refill()
        return Done()

    def _is_late(self, id_: str, run: int) -> bool:
        reaper = self._parts.reaper
        return reaper.was_removed(id_) or run <= reaper.last_released(id_)

    async def close(self) -> None:
        """Take back what was made early."""
        await self._early.close()

    async def start(self, request: HostStart) -> HostStarted:
        """Start a run by command; a run that was started before answers with what is true."""
        with log.bind(container=request.record.id[:12]):
            async with self._locks.hold(request.record.id, starting=True):
                try:
                    return await self._start(request, by_command=True)
                except RunOver:
                    return HostStarted(over=True)

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
        steps = Steps(f"start {id_[:12]}.{run}")
        made = await self._made_early(request)
        if made is None:
            cgroup = self._parts.bundles.cgroup(request.record)
            if (known := await self._known(id_, run, cgroup)) is not None:
                return self._answer(request, known)
            if by_command:
                self._refuse_at_the_end(request)
            made = await self._assemble(request, steps)
        try:
            if by_command:
                self._parts.bundles.write_command(request)
                # Again, now that its directory is there: see kit/ending.py.
                self._refuse_at_the_end(request)
            faults.point("runtime.start.prepared")
            steps.mark("prepare")
            making, made.making = made.making, None
            answer = await self._parts.shims.start(made.message, made.prepared.spec, making)
            steps.mark("run")
            if error := answer.get("error"):
                answered = self._refused(error)
                await self._undo(id_, run, made.prepared.cgroup)
                return answered
            faults.point("runtime.start.started")
            for warning in made.prepared.warnings:
                logger.warning("%s", warning)
            steps.add({k: int(ms * 1e6) for k, ms in (answer.get("timings") or {}).items()})
            return HostStarted(
                pid=int(answer["pid"]),
                started_ns=int(answer["started_ns"]),
                network=made.sandbox.state,
            )
        except BaseException:
            # Its process as well, if the start had not come to that yet (a full disk).
            await self._take_back(made)
            raise
        finally:
            made.sandbox.close()
            self._refill()
            steps.done()

    def _refuse_at_the_end(self, request: HostStart) -> None:
        """Conflict if the engine is being stopped with its containers.

        What is restarted by its policy is stopped, like all that runs.
        """
        if is_ending(self._layout.run):
            name = request.record.name
            raise Conflict(f"cannot start container {name}: the engine is being stopped")

    async def _made_early(self, request: HostStart) -> Assembled | None:
        """What is ready for this start, if it still is as it was made."""
        made = await self._early.take(request)
        if made is None:
            return None
        whole = made.making is not None and made.making.whole
        if whole and self._parts.networks.intact(made.sandbox.state):
            return made
        await self._take_back(made)
        return None

    async def _assemble(self, request: HostStart, steps: Steps) -> Assembled:
        """Everything of a run but its process; what fails is undone."""
        record, id_, run = request.record, request.record.id, request.run
        directory = self._layout.run_directory(id_, run)
        sandbox: Sandbox | None = None
        os.mkdir(directory, 0o700)
        self._runs.add(id_, run)
        try:
            joined = self._parts.joins.resolve(record, request.peers, request.linked)
            names = spec.capability_names(record.host_config, self._parts.bundles.facts)
            profile = spec.seccomp_profile(record.host_config)
            seccomp = await self._parts.seccomp(profile, frozenset(names))
            steps.mark("seccomp")
            sandbox = await self._parts.networks.attach(f"{id_}.{run}", record, joined.network_of)
            if sandbox.state.endpoints:
                replace(f"{directory}/{NETWORK}", sandbox.state.pack())
            if any(mount.type == "volume" for mount in record.mounts):
                await self._parts.volumes.acquire(f"{id_}.{run}", record.mounts)
            faults.point("runtime.start.sandbox")
            steps.mark("sandbox")
            hostname = self._hostname(record, joined.network_of)
            prepared = self._parts.bundles.prepare(request, sandbox, joined, hostname)
            if joined.shm and record.host_config.ipc_mode == "shareable":
                share(joined.shm, record.host_config.shm_size)
            steps.mark("bundle")
            message = self._message(request, directory, prepared, seccomp)
            return Assembled(request, sandbox, prepared, message)
        except BaseException:
            await self._undo(id_, run, self._parts.bundles.cgroup(record))
            if sandbox is not None:
                sandbox.close()
            raise

    async def _take_back(self, made: Assembled) -> None:
        """A run that was made for nothing."""
        if made.making is not None:
            await self._parts.shims.abandon(made.making)
        record = made.request.record
        await self._undo(record.id, made.request.run, made.prepared.cgroup)
        made.sandbox.close()

    def _refill(self) -> None:
        self._parts.shims.refill()
        self._parts.networks.refill()

    async def _known(self, id_: str, run: int, cgroup: str) -> Run | None:
        """The run if it was started before; what was left half-made of it is undone first."""
        if self._parts.reaper.was_removed(id_):
            raise NotFound(f"No such container: {id_}")
        # The last one first: one that goes on has the cgroup that those before it had.
        for other in reversed(self._runs.of(id_)):
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
            elif other > run and (before := self._runs.find(id_, run)) and before.executed:
                # Its policy has started it again since: the start that is asked for again was done.
                return before
            elif found.stage is Stage.LIVE:
                raise Conflict(f"container {id_} is running (run {other})")
            elif other > run:
                raise RunOver(f"run {run} of container {id_} is over")
            else:
                # Its files stay for whoever still reads them; its address is free, and its
                # cgroup has to be gone before another one can have its name.
                self._parts.networks.detach(f"{id_}.{other}")
                await until_ended(found)
                await self._parts.reaper.remove_cgroup(found.cgroup)
        if run <= self._parts.reaper.last_released(id_):
            raise RunOver(f"run {run} of container {id_} is over")
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
            "inode": os.stat(directory).st_ino,
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
        if await self._parts.reaper.fence(id_, run):
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

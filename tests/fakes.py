"""Small working versions of the engine's parts, for tests of the other parts."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.errors import Conflict, EngineError, NotFound
from mooring.kit.models.base import Done, Request
from mooring.kit.models.exec import ExecStarted
from mooring.kit.models.host import (
    ContainerExited,
    ContainerSize,
    ContainerStarted,
    ExecExited,
    HostContainer,
    HostExec,
    HostKill,
    HostPolicy,
    HostStart,
    HostStarted,
    HostStop,
    HostStopped,
    NodeRecord,
    Report,
    RunTruth,
)
from mooring.kit.models.image import RemoveLayers
from mooring.kit.models.update import HostUpdate, HostUpdated
from mooring.kit.models.volume import (
    MeasureVolumes,
    PrepareVolumes,
    RemoveHostVolume,
    VolumeSizes,
)


@dataclass
class FakeRun:
    """One run of a container that is not really there."""

    id: str
    run: int
    pid: int
    started_ns: int
    running: bool = True
    paused: bool = False
    exit_code: int | None = None
    finished_ns: int = 0
    oom_killed: bool = False


@dataclass
class FakeHost:
    """A runtime worker and a shim agent in one: it remembers runs and publishes facts.

    A container runs until it is stopped, killed or `exit`ed. `refusal` is raised by the next
    starts, `failure` answered as what a program that can't be executed comes to.
    """

    bus: Bus
    node: str = "node1"
    runs: dict[str, FakeRun] = field(default_factory=dict)
    released: set[tuple[str, int]] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    removed_layers: list[RemoveLayers] = field(default_factory=list)
    signals: list[tuple[str, int]] = field(default_factory=list)
    starts: list[HostStart] = field(default_factory=list)
    execs: dict[str, ExecStarted] = field(default_factory=dict)
    prepared_execs: list[HostExec] = field(default_factory=list)
    refusal: EngineError | None = None
    volumes: set[str] = field(default_factory=set)
    limits: dict[str, int] = field(default_factory=dict)
    volume_refusal: EngineError | None = None
    failure: HostStarted | None = None
    reports: int = 0
    exits_at_once: bool = False
    ignores_signals: bool = False
    on_start: Callable[[HostStart], None] | None = None
    _pid: int = 1000
    _removal: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self) -> None:
        """Answer on the bus, and say that this host is here."""
        handlers = [
            (subjects.runtime(self.node, subjects.RUNTIME_START), HostStart, self.start),
            (subjects.runtime(self.node, subjects.RUNTIME_RELEASE), HostContainer, self.release),
            (subjects.runtime(self.node, subjects.RUNTIME_REMOVE), HostContainer, self.remove),
            (subjects.runtime(self.node, subjects.RUNTIME_SIZE), HostContainer, self.size),
            (subjects.runtime(self.node, subjects.RUNTIME_UPDATE), HostUpdate, self.update),
            (
                subjects.runtime(self.node, subjects.RUNTIME_VOLUME_PREPARE),
                PrepareVolumes,
                self.prepare_volumes,
            ),
            (
                subjects.runtime(self.node, subjects.RUNTIME_VOLUME_REMOVE),
                RemoveHostVolume,
                self.remove_volume,
            ),
            (
                subjects.runtime(self.node, subjects.RUNTIME_VOLUME_SIZES),
                MeasureVolumes,
                self.measure_volumes,
            ),
            (
                subjects.runtime(self.node, subjects.RUNTIME_IMAGE_REMOVE),
                RemoveLayers,
                self.remove_layers,
            ),
            (subjects.agent(self.node, subjects.AGENT_STOP), HostStop, self.stop),
            (subjects.agent(self.node, subjects.AGENT_KILL), HostKill, self.kill),
            (subjects.agent(self.node, subjects.AGENT_PAUSE), HostContainer, self.pause),
            (subjects.agent(self.node, subjects.AGENT_UNPAUSE), HostContainer, self.unpause),
            (subjects.agent(self.node, subjects.AGENT_POLICY), HostPolicy, self.policy),
            (subjects.agent(self.node, subjects.AGENT_EXEC_PREPARE), HostExec, self.prepare_exec),
            (subjects.agent(self.node, subjects.AGENT_EXEC_START), HostExec, self.exec),
            (subjects.agent(self.node, subjects.AGENT_REPORT), Request, self.report),
        ]
        for subject, request_type, handler in handlers:
            await self.bus.serve(subject, request_type, handler)  # type: ignore[arg-type]
        await self.bus.publish_durable(
            subjects.fact(self.node, subjects.FACT_NODE),
            NodeRecord(id=self.node, name=self.node, seen_ns=time.time_ns()),
            msg_id=f"{self.node}.{time.time_ns()}",
        )

    # --- the worker ---

    async def start(self, request: HostStart) -> HostStarted:
        """Start a run; a repeated command finds it."""
        known = self.runs.get(request.record.id)
        if known is not None and known.run == request.run:
            return HostStarted(pid=known.pid, started_ns=known.started_ns)
        if self.on_start is not None:
            self.on_start(request)
        self.starts.append(request)
        if self.refusal is not None:
            raise self.refusal
        if self.failure is not None:
            return self.failure
        self._pid += 1
        run = FakeRun(request.record.id, request.run, self._pid, time.time_ns())
        self.runs[run.id] = run
        if self.exits_at_once:
            await self.exit(run.id, 0)
        return HostStarted(pid=run.pid, started_ns=run.started_ns)

    async def release(self, request: HostContainer) -> Done:
        """Note what was released."""
        self.released.add((request.id, request.run))
        return Done()

    async def remove(self, request: HostContainer) -> Done:
        """Forget a container."""
        run = self.runs.pop(request.id, None)
        assert run is None or not run.running, f"{request.id} was removed while it ran"
        self.removed.add(request.id)
        self._removal.set()
        return Done()

    async def until_removed(self, container: str) -> None:
        """Wait until a container was removed."""
        while container not in self.removed:
            self._removal.clear()
            await self._removal.wait()

    async def size(self, request: HostContainer) -> ContainerSize:
        """Every container has written as much."""
        return ContainerSize(size_rw=4096, size_root_fs=1 << 20)

    async def update(self, request: HostUpdate) -> HostUpdated:
        """Give a run its limits."""
        self.limits[request.id] = request.host_config.memory
        return HostUpdated()

    async def prepare_volumes(self, request: PrepareVolumes) -> Done:
        """Make volumes, unless `volume_refusal` is set."""
        if self.volume_refusal is not None:
            raise self.volume_refusal
        self.volumes |= {volume.name for volume in request.volumes}
        return Done()

    async def remove_volume(self, request: RemoveHostVolume) -> Done:
        """Forget a volume."""
        self.volumes.discard(request.name)
        return Done()

    async def measure_volumes(self, request: MeasureVolumes) -> VolumeSizes:
        """Every volume has as much in it."""
        return VolumeSizes(sizes={name: 1000 for name in request.names if name in self.volumes})

    async def remove_layers(self, request: RemoveLayers) -> Done:
        """Note which layers were to go."""
        self.removed_layers.append(request)
        return Done()

    # --- the agent ---

    async def stop(self, request: HostStop) -> HostStopped:
        """End the run; one that ignores signals takes all its time."""
        run = self._running(request)
        if run is None:
            found = self.runs.get(request.id)
            return HostStopped(run=found.run if found else 0)
        self.signals.append((request.id, request.signal))
        if self.ignores_signals and request.signal != 9:
            await asyncio.sleep(request.timeout)
            await self.exit(request.id, 137)
        else:
            await self.exit(request.id, 128 + request.signal)
        return HostStopped(run=run.run)

    async def kill(self, request: HostKill) -> Done:
        """Only SIGKILL ends a run."""
        if self._running(request) is None:
            raise Conflict(f"container {request.id} is not running")
        self.signals.append((request.id, request.signal))
        if request.signal == 9:
            await self.exit(request.id, 137)
        return Done()

    async def pause(self, request: HostContainer) -> Done:
        """Freeze."""
        self.runs[request.id].paused = True
        return Done()

    async def unpause(self, request: HostContainer) -> Done:
        """Thaw."""
        self.runs[request.id].paused = False
        return Done()

    async def policy(self, request: HostPolicy) -> Done:
        """Nothing restarts by itself here."""
        return Done()

    async def prepare_exec(self, request: HostExec) -> Done:
        """It is likely to be started."""
        self.prepared_execs.append(request)
        return Done()

    async def exec(self, request: HostExec) -> ExecStarted:
        """A command of the name `missing` can't be executed; others run until `exec_exit`."""
        if request.config.cmd[0] == "missing":
            return ExecStarted(error='exec: "missing": executable file not found', exit_code=127)
        self._pid += 1
        return self.execs.setdefault(request.exec_id, ExecStarted(pid=self._pid))

    async def report(self, request: Request) -> Report:
        """What there is."""
        self.reports += 1
        return Report(
            containers=[
                RunTruth(
                    id=run.id,
                    run=run.run,
                    running=run.running,
                    paused=run.paused,
                    pid=run.pid,
                    started_ns=run.started_ns,
                    finished_ns=run.finished_ns,
                    exit_code=run.exit_code,
                    oom_killed=run.oom_killed,
                )
                for run in self.runs.values()
            ]
        )

    def _running(self, request: HostContainer) -> FakeRun | None:
        run = self.runs.get(request.id)
        if run is None:
            raise NotFound(f"no container {request.id} on this host")
        if not run.running or request.run not in (0, run.run):
            return None
        return run

    # --- what happens by itself ---

    async def exit(
        self, container: str, exit_code: int, *, oom: bool = False, restarting: bool = False
    ) -> None:
        """The container exits, and the fact is published."""
        run = self.runs[container]
        if not run.running:
            return
        self.vanish(container, exit_code, oom=oom)
        fact = ContainerExited(
            node=self.node,
            time_ns=run.finished_ns,
            id=run.id,
            run=run.run,
            pid=run.pid,
            started_ns=run.started_ns,
            finished_ns=run.finished_ns,
            exit_code=exit_code,
            oom_killed=oom,
            restarting=restarting,
        )
        await self.bus.publish_durable(
            subjects.fact(self.node, subjects.FACT_EXITED),
            fact,
            msg_id=f"{run.id}.{run.run}.exited",
        )

    def vanish(self, container: str, exit_code: int, *, oom: bool = False) -> None:
        """The container exits, and no fact tells of it."""
        run = self.runs[container]
        run.running, run.exit_code, run.oom_killed = False, exit_code, oom
        run.finished_ns = time.time_ns()

    async def restart(self, container: str) -> None:
        """The host starts the next run by itself."""
        old = self.runs[container]
        self._pid += 1
        run = FakeRun(container, old.run + 1, self._pid, time.time_ns())
        self.runs[container] = run
        fact = ContainerStarted(
            node=self.node,
            time_ns=run.started_ns,
            id=run.id,
            run=run.run,
            pid=run.pid,
            started_ns=run.started_ns,
            restart_count=run.run - 1,
        )
        await self.bus.publish_durable(
            subjects.fact(self.node, subjects.FACT_STARTED),
            fact,
            msg_id=f"{run.id}.{run.run}.started",
        )

    async def exec_exit(self, exec_id: str, container: str, exit_code: int) -> None:
        """An exec ends, and the fact is published."""
        fact = ExecExited(
            node=self.node,
            time_ns=time.time_ns(),
            id=exec_id,
            container=container,
            exit_code=exit_code,
            pid=self.execs[exec_id].pid,
        )
        await self.bus.publish_durable(
            subjects.fact(self.node, subjects.FACT_EXEC_EXITED), fact, msg_id=f"{exec_id}.exited"
        )


class FakeManager:
    """Keeps descriptors as a process manager does."""

    def __init__(self) -> None:
        self.kept: dict[str, list[int]] = {}

    def store(self, name: str, descriptor: int, *, poll: bool = True) -> None:
        self.kept.setdefault(name, []).append(os.dup(descriptor))

    def unstore(self, name: str) -> None:
        for descriptor in self.kept.pop(name, []):
            os.close(descriptor)

    def stored(self) -> dict[str, list[int]]:
        return {name: [os.dup(fd) for fd in fds] for name, fds in self.kept.items()}

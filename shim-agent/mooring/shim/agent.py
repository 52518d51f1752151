"""The agent of a host: it puts the host's shims on the bus, and holds nothing it could lose."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.models.base import Request
from mooring.kit.models.host import (
    HostContainer,
    HostExec,
    HostKill,
    HostPolicy,
    HostResize,
    HostStop,
    HostTop,
    OpenStream,
    RenewShims,
    ShimsRenewed,
    StdinChunk,
)
from mooring.kit.process import Service
from mooring.kit.streams import serve_downloads

from .commands import Commands
from .exits import Exits
from .facts import Facts
from .health import HealthChecks
from .joining import Joining
from .keeping import Keeper, Keeping, Nobody
from .memory import Memory
from .output import Outputs
from .policies import Policies
from .renewal import Renewal
from .restarts import Restarts
from .runs import Containers, Run
from .shims import Shims
from .stats import Stats
from .successors import Successors
from .top import Top
from .truth import Truth
from .units import ContainerUnits, Records
from .work import Work


class Agent:
    """All parts of the agent, joined."""

    def __init__(
        self, settings: Settings, bus: Bus, work: Work, keeper: Keeper | None = None
    ) -> None:
        state, run = str(settings.state_dir), str(settings.run_dir)
        self._node = settings.node_id
        self._bus = bus
        self._work = work
        self._removed = f"{run}/shims/.removed"
        self.containers = Containers()
        policies = Policies(f"{state}/containers")
        facts = Facts(bus, settings.node_id)
        restarts = Restarts(bus, facts, policies, work)
        self._exits = exits = Exits(facts, policies, restarts, work)
        self._keeping = keeping = Keeping(keeper or Nobody())
        self._successors = Successors(_environment(settings), settings.shims_cgroup)
        self.shims = Shims(state, run, self.containers, exits, work, keeping, self._successors)
        self.renewal = Renewal(self.containers, self.shims, self._successors)
        self._health = HealthChecks(facts, work)
        self._memory = Memory(exits)
        self.shims.on_begun = self._begun
        self.shims.on_ended = self._memory.end
        self._units = self._make_units(settings) if settings.container_units else None
        self._commands = Commands(self.containers, self.shims, policies, restarts)
        self._commands.on_limits = self._memory.begin
        self._joining = Joining(self.containers, self.shims, exits)
        self._outputs = Outputs(state, self.containers, self.shims, work)
        self._top = Top(self.containers, self.shims)
        self._stats = Stats(self.containers, self.shims)
        self._truth = Truth(state, run, self.containers, self.shims, policies, restarts, facts)

    async def start(self) -> None:
        """Find every run of this host again, then answer."""
        self.shims.listen()
        self.shims.look()
        self._keeping.forget_rest()
        await self._serve()
        await self._truth.resume()
        self._exits.restarts_known.set()
        self._bus.client.on_reconnect.append(self._forget_removed)
        self._work.start(self.renewal.begin(), name="renewal")

    def close(self) -> None:
        """Let go of all shims."""
        self._keeping.close()
        self.shims.close()
        self._successors.close()
        self._memory.close()

    def _make_units(self, settings: Settings) -> ContainerUnits:
        # Who stops a container is to find this engine's settings.
        config = os.environ.get("MOORING_CONFIG", "")
        environment = [f"MOORING_CONFIG={config}"] if config else []
        names = Records(self._bus)
        units = ContainerUnits(
            settings.container_units, environment, self.containers, names, self._work
        )
        names.on_rename(units.rename)
        return units

    def _begun(self, run: Run) -> None:
        if self._units is not None:
            self._units.begin(run)
        self._health.begin(run)
        self._memory.begin(run)

    def _forget_removed(self) -> None:
        """What the worker may have said while there was no connection."""
        for container in self.containers:
            if os.path.exists(f"{self._removed}/{container.id}"):
                request = HostContainer(id=container.id)
                self._work.start(self._commands.forget(request), name=f"forget {container.id}")

    async def _serve(self) -> None:
        commands, joining = self._commands, self._joining
        await asyncio.gather(
            self._bus.serve(self._name(subjects.AGENT_STOP), HostStop, commands.stop),
            self._bus.serve(self._name(subjects.AGENT_KILL), HostKill, commands.kill),
            self._bus.serve(self._name(subjects.AGENT_PAUSE), HostContainer, commands.pause),
            self._bus.serve(self._name(subjects.AGENT_UNPAUSE), HostContainer, commands.unpause),
            self._bus.serve(self._name(subjects.AGENT_RESIZE), HostResize, commands.resize),
            self._bus.serve(self._name(subjects.AGENT_EXEC_RESIZE), HostResize, commands.resize),
            self._bus.serve(self._name(subjects.AGENT_STDIN), StdinChunk, commands.stdin),
            self._bus.serve(self._name(subjects.AGENT_POLICY), HostPolicy, commands.policy),
            self._bus.serve(self._name(subjects.AGENT_FORGET), HostContainer, commands.forget),
            self._bus.serve(self._name(subjects.AGENT_TOP), HostTop, self._top.list),
            self._bus.serve(self._name(subjects.AGENT_STATS), HostContainer, self._stats.sample),
            self._bus.serve(self._name(subjects.AGENT_EXEC_START), HostExec, joining.start),
            self._bus.serve(self._name(subjects.AGENT_EXEC_PREPARE), HostExec, joining.prepare),
            self._bus.serve(self._name(subjects.AGENT_REPORT), Request, self._truth.report),
            self._bus.serve(self._name(subjects.AGENT_RENEW), RenewShims, self.renewal.renew),
            serve_downloads(
                self._bus,
                self._name(subjects.AGENT_STREAM_OPEN),
                OpenStream,
                self._outputs.open,
            ),
        )

    def _name(self, verb: str) -> str:
        return subjects.agent(self._node, verb)


async def main(settings: Settings, service: Service) -> None:
    """Run the agent until it is asked to stop."""
    allow_descriptors()
    async with Bus.connect(settings, "shim-agent") as bus:
        await bus.ensure_streams()
        async with Work() as work:
            agent = Agent(settings, bus, work, service)
            agent.renewal.on_done = lambda done: service.status(_renewed(done))
            try:
                await agent.start()
                await service.ready()
                await service.stop_requested()
                await bus.drain()
            finally:
                agent.close()


def _renewed(done: ShimsRenewed) -> str:
    return f"{done.replaced} shims replaced by this version, {len(done.kept)} kept"


def _environment(settings: Settings) -> dict[str, str]:
    """What shims inherit that take the place of others: nothing but the tests' faults."""
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    if settings.faults:
        environment["MOORING_FAULTS"] = str(settings.run_dir / "faults")
    return environment


def allow_descriptors() -> None:
    """As many open files as may be had: two to a container, and one to a stream."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

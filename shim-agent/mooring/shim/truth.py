"""What a host says when asked what is true: what runs, waits for a restart, or ended lately."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator

from mooring.kit import faults, subjects
from mooring.kit.models.base import Request
from mooring.kit.models.host import Report, RunTruth

from . import rundir
from .facts import Facts
from .policies import Policies, Policy
from .restarts import Restarts, exited_fact
from .rundir import ExitRecord
from .runs import Container, Containers, Run
from .shims import Shims

logger = logging.getLogger(__name__)

LOST = "exit status lost with the host"


class Truth:
    """Reports, and the restarts that an agent finds when it starts."""

    def __init__(
        self,
        state_dir: str,
        run_dir: str,
        containers: Containers,
        shims: Shims,
        policies: Policies,
        restarts: Restarts,
        facts: Facts,
    ) -> None:
        self._directory = f"{state_dir}/containers"
        self._boot_file = f"{run_dir}/agent.json"
        self._containers = containers
        self._shims = shims
        self._policies = policies
        self._restarts = restarts
        self._facts = facts
        self._complete = False

    async def report(self, _: Request) -> Report:
        """Everything that runs here, waits to be restarted, or ended lately."""
        self._shims.look()
        truths = [truth for container in self._containers for truth in _truths(container)]
        return Report(complete=self._complete, containers=truths)

    async def resume(self) -> None:
        """Go on with what was pending: restarts, and after a boot all that is to run again.

        To be called once after the run directories were looked at.
        """
        booted = self._first_since_boot()
        for id_ in self._ids():
            policy = self._policies.read(id_)
            container = self._containers.find(id_)
            if not policy.restarts:
                continue
            if booted and (container is None or container.live is None):
                policy = await self._after_boot(id_, policy)
            if policy.pending and not self._superseded(container, policy):
                self._restarts.schedule(self._containers.get(id_), policy)
        self._remember_boot()
        self._complete = True

    def _superseded(self, container: Container | None, policy: Policy) -> bool:
        """Whether somebody else sees to this restart: the exit before it, or a later start."""
        if container is None:
            return False
        run = container.runs.get(policy.run)
        return container.latest_number > policy.run + 1 or (run is not None and not run.published)

    async def _after_boot(self, id_: str, policy: Policy) -> Policy:
        """What was running when the host went down is told, and starts again by its policy."""
        now = time.time_ns()
        exited = ExitRecord(run=policy.run, finished_ns=now, error=LOST)
        if policy.run and policy.decided != policy.run and not policy.stopped:
            after, tell = policy.after(exited, now).after_boot(now), True
        else:
            # Decided before, and perhaps not told: who has heard of that end learns nothing new.
            after, tell = policy.after_boot(now), policy.pending
        if after != policy:
            self._policies.write(id_, after)
        faults.point("agent.boot.decided")
        if tell:
            fact = exited_fact(self._facts.node, id_, exited, after)
            await self._facts.tell(subjects.FACT_EXITED, fact, f"{id_}.{policy.run}.exited")
        return after

    def _ids(self) -> Iterator[str]:
        try:
            yield from sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return

    def _first_since_boot(self) -> bool:
        known = rundir.read_json(self._boot_file) or {}
        return known.get("boot_id") != _boot_id()

    def _remember_boot(self) -> None:
        rundir.write_json(self._boot_file, {"boot_id": _boot_id()})


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _truths(container: Container) -> Iterator[RunTruth]:
    run = container.latest
    if run is None:
        if container.restart is not None:
            yield RunTruth(id=container.id, run=container.restart.run - 1, restarting=True)
        return
    yield _truth(container, run)


def _truth(container: Container, run: Run) -> RunTruth:
    record, exited = run.record, run.exit
    if exited is None:
        return RunTruth(
            id=container.id,
            run=run.number,
            running=True,
            paused=run.paused,
            pid=record.init.pid if record else 0,
            started_ns=record.started_ns if record else 0,
        )
    return RunTruth(
        id=container.id,
        run=run.number,
        started_ns=exited.started_ns,
        finished_ns=exited.finished_ns,
        exit_code=exited.exit_code,
        oom_killed=exited.oom_killed,
        restarting=container.restart is not None,
        error=exited.error,
    )

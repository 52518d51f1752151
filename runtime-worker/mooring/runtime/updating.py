"""New limits for a container that runs."""

from __future__ import annotations

from typing import Any

from mooring.kit.errors import EngineError, NotFound
from mooring.kit.models.container import HostConfig
from mooring.kit.models.update import HostUpdate, HostUpdated

from . import devices, limits
from .limits import HostFacts
from .locks import KeyedLocks
from .oci import cgroups
from .oci.errors import OciError
from .runs import Runs, Stage


class Updating:
    """The worker's command that changes limits."""

    def __init__(self, runs: Runs, locks: KeyedLocks, facts: HostFacts) -> None:
        self._runs = runs
        self._locks = locks
        self._facts = facts

    async def update(self, request: HostUpdate) -> HostUpdated:
        """Write a run's limits; NotFound if it is over, InvalidParameter for impossible ones."""
        async with self._locks.hold(request.id):
            run = self._runs.find(request.id, request.run)
            if run is None or run.stage is not Stage.LIVE or not run.cgroup:
                raise NotFound(f"container {request.id} is not running")
            wanted, warnings = resources(request.host_config, self._facts)
            try:
                cgroups.attach(run.cgroup).apply(wanted)
            except (OSError, OciError) as exc:
                raise EngineError(f"cannot set the new limits: {exc}") from exc
            return HostUpdated(warnings=warnings)


def resources(host: HostConfig, facts: HostFacts) -> tuple[dict[str, Any], list[str]]:
    """`linux.resources` that set every limit there may have been before, too."""
    wanted, warnings = limits.resources(host, facts, devices.number)
    if host.pids_limit is not None:
        # Not "as it is": a limit may have been taken away.
        wanted["pids"] = {"limit": host.pids_limit if host.pids_limit > 0 else -1}
    return wanted, warnings

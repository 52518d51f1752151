"""Handing a container to a shim: by programs where they can do it, else to a shim's own helper."""

from __future__ import annotations

import logging
import os
from typing import Any

from mooring.kit.errors import EngineError

from .bare import BareForks, BareShim, StepFailed
from .launching import Launcher, ShimDied, WarmShim
from .making import Making
from .oci import job, machine
from .oci.errors import OciError
from .pool import Pool
from .reaper import Reaper
from .runs import Runs
from .waiting import until_gone

logger = logging.getLogger(__name__)

_FAILURES = (StepFailed, OciError, OSError, ValueError)
"""What a program can't do: a helper is tried then."""


class Shims:
    """The warm shims of a host, of both kinds.

    Where a program fails the start is begun again with a helper: it has a way around what is
    unusual, and knows the words for what is impossible.
    """

    def __init__(
        self, launcher: Launcher, size: int, cgroup_root: str | None, runs: Runs, reaper: Reaper
    ) -> None:
        """size: how many to keep warm of the usual kind. cgroup_root: where cgroups are prepared
        for them; None on v2, where none can be."""
        self._runs = runs
        self._reaper = reaper
        self._bare: Pool[BareShim] | None = None
        if machine.available():
            self._bare = Pool(BareForks(launcher), size, cgroup_root)
            size = 0
        self._helped: Pool[WarmShim] = Pool(launcher, size, cgroup_root)

    def refill(self) -> None:
        """Fill the pools in the background."""
        if self._bare is not None:
            self._bare.refill()
        self._helped.refill()

    async def close(self) -> None:
        """End every warm shim."""
        if self._bare is not None:
            await self._bare.close()
        await self._helped.close()

    @property
    def early(self) -> bool:
        """Whether `make` can do anything here."""
        return self._bare is not None

    async def make(self, message: dict[str, Any], spec: dict[str, Any]) -> Making | None:
        """Make a container before its start is asked for, from the message for a shim.

        None where that can't be done; the reason comes with the start.
        """
        if self._bare is None or job.refuse(spec):
            return None
        making = Making(await self._bare.take(), message, spec)
        try:
            await making.make(early=True)
        except (EngineError, *_FAILURES) as exc:
            logger.debug("not made early: %s", exc)
            await self._clear(making)
            return None
        return making

    async def start(
        self, message: dict[str, Any], spec: dict[str, Any], making: Making | None = None
    ) -> dict[str, Any]:
        """Start a container from the message for a shim; its answer. ShimDied if one died.

        making: what `make` has made of it.
        """
        if self._bare is not None:
            try:
                reason = "" if making else job.refuse(spec)
                if not reason:
                    making = making or Making(await self._bare.take(), message, spec)
                    return await self._run(making)
            except _FAILURES as exc:
                reason = getattr(exc, "message", None) or str(exc)
            logger.debug("started by a helper: %s", reason)
        shim = await self._helped.take()
        try:
            return await self._hand_over(shim, message)
        finally:
            shim.close()

    async def abandon(self, making: Making) -> None:
        """Take back what was made for nothing."""
        making.abandon()
        await self._clear(making)

    async def _run(self, making: Making) -> dict[str, Any]:
        try:
            return await making.run()
        except (ShimDied, *_FAILURES):
            await self._clear(making)
            raise

    async def _clear(self, making: Making) -> None:
        """Its shim takes back what it knows of; nothing may be in the way of the next try."""
        await until_gone(making.shim.pid, making.shim.start)
        for path in making.cgroups:
            await self._reaper.remove_cgroup(path)

    async def _hand_over(self, shim: WarmShim, message: dict[str, Any]) -> dict[str, Any]:
        """Give a warm shim its container; its answer, or what it left of one."""
        try:
            return await shim.run(message)
        except ShimDied:
            if not os.path.exists(f"{message['dir']}/shim.json"):
                # Only its helper may be dead: then it still clears away what that had made.
                await until_gone(shim.pid, shim.start)
                raise
        # The program may have run: the agent tells what became of it.
        found = self._runs.find(message["id"], message["run"])
        if found is None:
            raise EngineError("the run is gone")
        return {"pid": found.init_pid, "started_ns": found.started_ns}

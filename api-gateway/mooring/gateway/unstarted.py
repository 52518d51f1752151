"""Containers of `--rm` whose start was broken off.

`docker run --rm` waits for the container's removal, also after a start that failed; and so dockerd
removes one that it could not start. A start that is lost on its way, together with a gateway or
with the bus, leaves a container that nobody would ever remove.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from mooring.kit import subjects
from mooring.kit.errors import EngineError, Unavailable
from mooring.kit.models.base import Done
from mooring.kit.models.container import RemoveContainer

from .gateway import Gateway
from .sessions.plans import StartPlan
from .sessions.resuming import Errands

logger = logging.getLogger(__name__)

_RETRY = 1.0
"""Seconds until a lifecycle manager that did not answer is asked again."""


class Unstarted:
    """Removes them, also when this process is killed."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    @contextlib.asynccontextmanager
    async def removed(self, name: str) -> AsyncIterator[None]:
        """Around a start: where nobody knows what became of it, and it never began, it goes."""
        plan, sessions = self._plan(name), self._gateway.sessions
        number = sessions.undertake(plan) if plan and sessions else None

        def done() -> None:
            if sessions is not None and number is not None:
                sessions.done(number)

        async def remove(plan: StartPlan) -> None:
            await self.remove(plan)
            done()

        try:
            yield
        except asyncio.CancelledError:
            # This process ends: the errand is its successor's.
            raise
        except Unavailable:
            if plan:
                self._gateway.engine.background(remove(plan))
            raise
        except BaseException:
            done()
            raise
        done()

    def errands(self) -> Errands:
        """See Sessions.resume."""
        return {"start": (StartPlan, self.remove)}

    def _plan(self, name: str) -> StartPlan | None:
        try:
            record = self._gateway.engine.containers.find(name)
        except EngineError:
            return None
        if not record.host_config.auto_remove:
            return None
        return StartPlan(kind="start", container=record.id)

    async def remove(self, plan: StartPlan) -> None:
        """Remove it if it does not run, is not about to, and has not been removed."""
        message = RemoveContainer(container=plan.container, volumes=True)
        while True:
            try:
                await self._gateway.engine.ask(subjects.CONTAINER_REMOVE, message, Done)
            except Unavailable:
                await asyncio.sleep(_RETRY)
            except EngineError as exc:
                logger.debug("%s is not removed: %s", plan.container, exc)
                return
            else:
                logger.info("%s is removed: its start was broken off", plan.container)
                return

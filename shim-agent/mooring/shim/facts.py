"""Facts on their way into the stream: kept trying for as long as it takes."""

from __future__ import annotations

import asyncio
import logging

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.errors import EngineError
from mooring.kit.models.host import Fact

logger = logging.getLogger(__name__)


class Facts:
    """Publishes this node's facts."""

    def __init__(self, bus: Bus, node: str) -> None:
        self.node = node
        self._bus = bus

    async def tell(self, kind: str, fact: Fact, msg_id: str) -> None:
        """Returns when the stream has it. A fact told before under `msg_id` is told once."""
        subject = subjects.fact(self.node, kind)
        pause = 0.1
        while True:
            try:
                await self._bus.publish_durable(subject, fact, msg_id=msg_id)
                return
            except EngineError as exc:
                # The stream is full, or not made yet: what happened stays true until it is told.
                logger.error("cannot tell %s: %s", msg_id, exc)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)

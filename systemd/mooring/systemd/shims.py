"""The shims of an installation, which an upgrade replaces as it does the services."""

from __future__ import annotations

import asyncio

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.models.host import RenewShims, ShimsRenewed

SECONDS = 600.0
SILENCE = 30.0


def renew(settings: Settings, *, every: bool) -> ShimsRenewed:
    """Have the agent replace the shims of older code, or `every` one. EngineError."""
    return asyncio.run(_renew(settings, RenewShims(every=every)))


def describe(done: ShimsRenewed) -> list[str]:
    """What became of them, in lines for the operator."""
    kept = [f"container {one.id[:12]} keeps its shim: {one.reason}" for one in done.kept]
    counts = f"{done.replaced} replaced, {done.current} of this version, {len(kept)} kept"
    return [f"shims: {counts}", *kept]


async def _renew(settings: Settings, request: RenewShims) -> ShimsRenewed:
    subject = subjects.agent(settings.node_id, subjects.AGENT_RENEW)
    async with Bus.connect(settings, "upgrade") as bus:
        return await bus.request(subject, request, ShimsRenewed, timeout=SECONDS, silence=SILENCE)

"""Who goes on with which kind of session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgpack

from .plans import Plan
from .store import CarryOn, RunErrand
from .wire import DurableWire

Resumable = dict[str, tuple[type[Plan], Callable[[Any, DurableWire], Awaitable[None]]]]
"""By kind: the plan's model, and what goes on with it."""
Errands = dict[str, tuple[type[Plan], Callable[[Any], Awaitable[None]]]]
"""By kind: the plan's model, and what runs it."""


def by_kind(known: Resumable) -> CarryOn:
    """What goes on with any session, by the kind that its plan says."""

    async def carry_on(description: bytes, make: Callable[[bytes], DurableWire]) -> None:
        model, resume = known[_kind(description)]
        plan = model.unpack(description)
        await resume(plan, make(plan.early))

    return carry_on


def errands(known: Errands) -> RunErrand:
    """What runs any errand, by the kind that its plan says."""

    async def run(description: bytes) -> None:
        model, run_it = known[_kind(description)]
        await run_it(model.unpack(description))

    return run


def _kind(description: bytes) -> str:
    return str(msgpack.unpackb(description, raw=False, strict_map_key=False)["kind"])

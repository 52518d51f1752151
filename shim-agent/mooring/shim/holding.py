"""Telling shims how far attached readers of their logs are: what those need is not rotated away.

See pins.py for the shim's side: it asks first, and is told of every change from then on.
"""

from __future__ import annotations

import contextlib

from mooring.kit.errors import EngineError

from .runs import Container

ABANDONED = 1 << 62
"""An offset beyond any log: nobody reads this exec any more."""


def readers(container: Container) -> dict[str, int]:
    """The attached readers of a container's log, and from where on each needs it."""
    found: dict[str, int] = {}
    for source in container.sources:
        if source.name:
            found[source.name] = source.needed
    return found


def tell(container: Container) -> None:
    """One came, went, or went on."""
    run = container.live
    if run is not None and run.pressed and run.channel is not None:
        run.channel.tell("pin", readers=readers(container))


async def settle(container: Container) -> None:
    """Tell, and wait until nothing is deleted any more that is there now and is needed."""
    run = container.live
    if run is not None and run.pressed and run.channel is not None:
        # A shim that is gone deletes nothing; its successor asks.
        with contextlib.suppress(EngineError):
            await run.channel.request("pin", readers=readers(container))

"""Events of what changes no state: attach, detach, resize, top."""

from __future__ import annotations

import asyncio
import logging

from mooring.gateway.engine import Engine
from mooring.kit import subjects
from mooring.kit.errors import EngineError
from mooring.kit.models.base import Done
from mooring.kit.models.container import NoteContainer
from mooring.kit.models.image import NoteImage

logger = logging.getLogger(__name__)

PATIENCE = 1.0
"""Seconds to wait for the lifecycle manager: reading goes on without it."""
_DEADLINE = 120.0
"""Seconds after which the event is given up."""


async def note(
    engine: Engine, container: str, action: str, attributes: dict[str, str] | None = None
) -> None:
    """Have the event recorded before what comes next; if that takes long, in the background."""
    message = NoteContainer(container=container, action=action, attributes=attributes or {})
    await asyncio.wait({engine.background(_record(engine, message))}, timeout=PATIENCE)


async def note_images(engine: Engine, images: list[str], action: str) -> None:
    """The same for an event of images, by their ids."""
    message = NoteImage(images=images, action=action)
    await asyncio.wait({engine.background(_record_images(engine, message))}, timeout=PATIENCE)


async def _record_images(engine: Engine, message: NoteImage) -> None:
    try:
        await engine.bus.request(subjects.IMAGE_NOTE, message, Done, timeout=_DEADLINE)
    except EngineError as exc:
        logger.warning("the event %s of images was not recorded: %s", message.action, exc.message)


async def _record(engine: Engine, message: NoteContainer) -> None:
    try:
        await engine.bus.request(subjects.CONTAINER_NOTE, message, Done, timeout=_DEADLINE)
    except EngineError as exc:
        logger.warning(
            "the event %s of %s was not recorded: %s",
            message.action,
            message.container[:12],
            exc.message,
        )

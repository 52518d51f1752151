"""A gateway put together: every route, and the life of the process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

from mooring.kit.config import Settings
from mooring.kit.process import Service

from .engine import open_engine
from .gateway import Gateway
from .http.listen import open_all
from .http.server import Server
from .router import Route, Router
from .routes import unsupported
from .routes.archive import ArchiveRoutes
from .routes.attach import AttachRoutes
from .routes.build import BuildRoutes
from .routes.commands import CommandRoutes
from .routes.commit import CommitRoute
from .routes.containers import ContainerRoutes
from .routes.events import EventRoutes
from .routes.execs import ExecRoutes
from .routes.images import ImageRoutes
from .routes.logs import LogRoutes
from .routes.networks import NetworkRoutes
from .routes.saving import SavingRoutes
from .routes.system import SystemRoutes
from .routes.transfers import TransferRoutes
from .routes.usage import UsageRoutes
from .routes.volumes import VolumeRoutes
from .routes.wait import WaitRoutes
from .sessions.resuming import Errands, Resumable, by_kind, errands
from .sessions.store import Sessions

logger = logging.getLogger(__name__)

DRAIN = 4.0
"""Seconds that answers under way may take when the process is asked to stop."""


def _sections(gateway: Gateway) -> list[Any]:
    sections = (
        SystemRoutes,
        EventRoutes,
        ContainerRoutes,
        CommandRoutes,
        LogRoutes,
        WaitRoutes,
        AttachRoutes,
        ExecRoutes,
        ImageRoutes,
        BuildRoutes,
        CommitRoute,
        SavingRoutes,
        TransferRoutes,
        UsageRoutes,
        NetworkRoutes,
        VolumeRoutes,
        ArchiveRoutes,
    )
    return [section(gateway) for section in sections]


def all_routes(gateway: Gateway) -> list[Route]:
    """Everything that the API has."""
    return _routes(_sections(gateway))


def _routes(sections: list[Any]) -> list[Route]:
    found = [route for section in sections for route in section.routes()]
    return found + unsupported.routes()


def _by_kind(sections: list[Any], method: str) -> dict[str, Any]:
    """Who goes on with the sessions (`resumable`) or runs the errands of another gateway."""
    found: dict[str, Any] = {}
    for section in sections:
        if hasattr(section, method):
            found |= getattr(section, method)()
    return found


async def main(settings: Settings, service: Service) -> None:
    """Serve until asked to stop."""
    await serve(Gateway(settings), service)


async def serve(gateway: Gateway, service: Service) -> None:
    """The same for a gateway that is there; /_ping is answered before the bus is."""
    settings = gateway.settings
    sections = _sections(gateway)
    server = Server(Router(_routes(sections)).find)
    sessions = server.sessions = gateway.sessions = _sessions(server, service)
    try:
        for sock, context in open_all(settings, service.listeners()):
            await server.listen(sock, context)
            logger.info("listening on %s%s", _name(sock), " with TLS" if context else "")
        async with open_engine(settings) as engine:
            gateway.engine = engine
            server.set_ready()
            known, undone = _by_kind(sections, "resumable"), _by_kind(sections, "errands")
            async with _going_on(sessions, known, undone):
                await service.ready()
                await service.stop_requested()
                await server.drain(DRAIN)
                if sessions is not None:
                    sessions.freeze()
                await server.close()
    finally:
        await server.close()
        if sessions is not None:
            sessions.close()


def _sessions(server: Server, service: Service) -> Sessions | None:
    """The sessions, where somebody keeps descriptors for us."""
    return Sessions(service, server.hangups) if service.keeps_descriptors else None


@contextlib.asynccontextmanager
async def _going_on(
    sessions: Sessions | None, known: Resumable, undone: Errands
) -> AsyncIterator[None]:
    """Meanwhile go on with what another gateway left."""
    if sessions is None:
        yield
        return
    resuming = sessions.resume(by_kind(known), errands(undone))
    task = asyncio.create_task(resuming, name="resumed sessions")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _name(sock: socket.socket) -> str:
    name = sock.getsockname()
    return f"unix://{name}" if isinstance(name, str) else f"tcp://{name[0]}:{name[1]}"

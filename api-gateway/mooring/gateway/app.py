"""A gateway put together: every route, and the life of the process."""

from __future__ import annotations

import logging
import socket

from mooring.kit.config import Settings
from mooring.kit.process import Service

from .engine import open_engine
from .gateway import Gateway
from .http.listen import open_all
from .http.server import Server
from .router import Route, Router
from .routes import unsupported
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

logger = logging.getLogger(__name__)

DRAIN = 4.0
"""Seconds that answers under way may take when the process is asked to stop."""


def all_routes(gateway: Gateway) -> list[Route]:
    """Everything that the API has."""
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
    )
    return [route for section in sections for route in section(gateway).routes()] + (
        unsupported.routes()
    )


async def main(settings: Settings, service: Service) -> None:
    """Serve until asked to stop."""
    await serve(Gateway(settings), service)


async def serve(gateway: Gateway, service: Service) -> None:
    """The same for a gateway that is there; /_ping is answered before the bus is."""
    settings = gateway.settings
    server = Server(Router(all_routes(gateway)).find)
    try:
        for sock, context in open_all(settings, service.listeners()):
            await server.listen(sock, context)
            logger.info("listening on %s%s", _name(sock), " with TLS" if context else "")
        async with open_engine(settings) as engine:
            gateway.engine = engine
            server.set_ready()
            await service.ready()
            await service.stop_requested()
            await server.close(DRAIN)
    finally:
        await server.close(0.0)


def _name(sock: socket.socket) -> str:
    name = sock.getsockname()
    return f"unix://{name}" if isinstance(name, str) else f"tcp://{name[0]}:{name[1]}"

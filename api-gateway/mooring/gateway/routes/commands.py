"""Containers: create, start, stop and whatever else the lifecycle manager does at a word."""

from __future__ import annotations

from typing import Any, TypeVar

from mooring.gateway.gateway import Gateway
from mooring.gateway.http.connection import Kind
from mooring.gateway.http.reply import Reply, empty, json_reply
from mooring.gateway.http.request import Request
from mooring.gateway.router import Route
from mooring.gateway.schema import query
from mooring.gateway.schema.create import create_request, update_config
from mooring.gateway.schema.decode import json_body
from mooring.gateway.sessions.resuming import Errands
from mooring.gateway.unstarted import Unstarted
from mooring.kit import faults, subjects
from mooring.kit.errors import InvalidParameter
from mooring.kit.models.base import Done
from mooring.kit.models.base import Request as Message
from mooring.kit.models.container import (
    ContainerCreated,
    ContainerRequest,
    KillContainer,
    PruneContainers,
    Pruned,
    RemoveContainer,
    RenameContainer,
    StartContainer,
    StopContainer,
)
from mooring.kit.models.update import ContainerUpdated, UpdateContainer

R = TypeVar("R", bound=Done)

_PRUNE_FILTERS = frozenset({"until", "label", "label!"})
_SLOW = 3600.0
"""Seconds for what may take as long as the container likes (stop, restart)."""


class CommandRoutes:
    """Each of them asks the lifecycle manager and answers once its own copy has the change."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._unstarted = Unstarted(gateway)

    def errands(self) -> Errands:
        """See Sessions.resume."""
        return self._unstarted.errands()

    def routes(self) -> list[Route]:
        """See Router."""
        post = {
            "start": self.start,
            "stop": self.stop,
            "restart": self.restart,
            "kill": self.kill,
            "pause": self.pause,
            "unpause": self.unpause,
            "rename": self.rename,
            "update": self.update,
        }
        return [
            Route("POST", "/containers/create", Kind.PLAIN, self.create),
            Route("POST", "/containers/prune", Kind.PLAIN, self.prune),
            Route("DELETE", "/containers/{id}", Kind.PLAIN, self.remove),
            *(
                Route("POST", f"/containers/{{id}}/{verb}", Kind.PLAIN, handler)
                for verb, handler in post.items()
            ),
        ]

    async def _command(
        self, subject: str, message: Message, reply: type[R], timeout: float = 0.0
    ) -> R:
        engine = self._gateway.engine
        timeout = timeout or self._gateway.settings.request_timeout
        done = await engine.bus.request(subject, message, reply, timeout=timeout)
        # A client reads its own writes: our copy must have come as far.
        await engine.containers.mirror.reached(done.revision)
        return done

    async def create(self, request: Request) -> Reply:
        """Create a container."""
        body = await json_body(request, self._gateway.settings.max_json_body, required=True)
        message = create_request(body, request.get("name"), request.get("platform"))
        created = await self._command(subjects.CONTAINER_CREATE, message, ContainerCreated)
        answer: dict[str, Any] = {"Id": created.container_id, "Warnings": created.warnings}
        return json_reply(answer, 201)

    async def start(self, request: Request) -> Reply:
        """Start it; there is nothing to say besides."""
        # As in Docker: what is shorter than any object with a field (`{}`, `null`) says nothing.
        if len(await request.body(self._gateway.settings.max_json_body)) > 7:
            raise InvalidParameter(
                "starting container with non-empty request body is not supported"
            )
        if request.get("checkpoint"):
            raise InvalidParameter("checkpoints are not supported yet")
        message = StartContainer(container=request.name)
        async with self._unstarted.removed(request.name):
            faults.point("gateway.start.noted")
            await self._command(subjects.CONTAINER_START, message, Done, timeout=120.0)
        return empty()

    async def stop(self, request: Request) -> Reply:
        """Stop it and answer when it has."""
        await self._command(subjects.CONTAINER_STOP, _stop(request), Done, timeout=_SLOW)
        return empty()

    async def restart(self, request: Request) -> Reply:
        """Stop it if it runs, and start it."""
        await self._command(subjects.CONTAINER_RESTART, _stop(request), Done, timeout=_SLOW)
        return empty()

    async def kill(self, request: Request) -> Reply:
        """Send a signal."""
        message = KillContainer(container=request.name, signal=request.get("signal"))
        await self._command(subjects.CONTAINER_KILL, message, Done)
        return empty()

    async def pause(self, request: Request) -> Reply:
        """Freeze it."""
        message = ContainerRequest(container=request.name)
        await self._command(subjects.CONTAINER_PAUSE, message, Done)
        return empty()

    async def unpause(self, request: Request) -> Reply:
        """Thaw it."""
        message = ContainerRequest(container=request.name)
        await self._command(subjects.CONTAINER_UNPAUSE, message, Done)
        return empty()

    async def rename(self, request: Request) -> Reply:
        """Give it another name."""
        message = RenameContainer(container=request.name, name=request.get("name"))
        await self._command(subjects.CONTAINER_RENAME, message, Done)
        return empty()

    async def update(self, request: Request) -> Reply:
        """Change limits and the restart policy."""
        body = await json_body(request, self._gateway.settings.max_json_body, required=True)
        message = UpdateContainer(container=request.name, host_config=update_config(body))
        done = await self._command(subjects.CONTAINER_UPDATE, message, ContainerUpdated)
        return json_reply({"Warnings": done.warnings})

    async def remove(self, request: Request) -> Reply:
        """Delete it; with `force` even if it runs."""
        if query.flag(request, "link"):
            raise InvalidParameter("links are not supported yet")
        message = RemoveContainer(
            container=request.name,
            force=query.flag(request, "force"),
            volumes=query.flag(request, "v"),
        )
        await self._command(subjects.CONTAINER_REMOVE, message, Done, timeout=120.0)
        return empty()

    async def prune(self, request: Request) -> Reply:
        """Delete those that are stopped."""
        given = query.filters(request, _PRUNE_FILTERS)
        message = PruneContainers(
            until_ns=query.until_filter(given),
            labels=given.get("label", []),
            labels_not=given.get("label!", []),
        )
        pruned = await self._command(subjects.CONTAINER_PRUNE, message, Pruned, timeout=_SLOW)
        return json_reply(
            {"ContainersDeleted": pruned.deleted, "SpaceReclaimed": pruned.space_reclaimed}
        )


def _stop(request: Request) -> StopContainer:
    return StopContainer(
        container=request.name,
        # The parameter is Docker's from 1.42 on; before, it was ignored.
        signal=request.get("signal") if request.version >= (1, 42) else "",
        timeout=query.integer(request, "t"),
    )

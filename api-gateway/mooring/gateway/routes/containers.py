"""Containers: list and inspect, from memory; top, resize, stats from their host."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from mooring.gateway.gateway import Gateway
from mooring.gateway.http.connection import Kind
from mooring.gateway.http.reply import JSON, Reply, dumps, empty, json_reply
from mooring.gateway.http.request import Request
from mooring.gateway.http.stream import Answer, ChunkedAnswer
from mooring.gateway.router import Route
from mooring.gateway.schema import query
from mooring.gateway.schema.containers import RUNNING_STATES
from mooring.gateway.schema.stats import stats
from mooring.gateway.sessions.plans import StatsPlan
from mooring.gateway.sessions.resuming import Resumable
from mooring.gateway.sessions.store import Beginning
from mooring.gateway.sessions.wire import DurableWire
from mooring.gateway.views.filters import NAMES, select
from mooring.kit import subjects
from mooring.kit.errors import Conflict, EngineError, InvalidParameter
from mooring.kit.models.base import Done
from mooring.kit.models.container import ContainerRecord, State
from mooring.kit.models.host import (
    ContainerSize,
    HostContainer,
    HostResize,
    HostSize,
    HostTop,
    StatsSample,
    TopResult,
)

from .notes import note

_SIZE_TIMEOUT = 10.0
"""Seconds that a list waits for the size of one container: it never hangs on one."""
_STATS_INTERVAL = 1.0


class ContainerRoutes:
    """What is read of containers."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        """See Router."""
        return [
            Route("GET", "/containers/json", Kind.INSTANT, self.list, self.sized_list),
            Route("GET", "/containers/{id}/json", Kind.INSTANT, self.inspect, self.sized_inspect),
            Route("GET", "/containers/{id}/top", Kind.STREAM, self.top),
            Route("GET", "/containers/{id}/stats", Kind.STREAM, self.stats),
            Route("POST", "/containers/{id}/resize", Kind.PLAIN, self.resize),
        ]

    def list(self, request: Request) -> Reply:
        """The list, from bytes that are ready; with sizes it is put together by `sized_list`."""
        engine = self._gateway.engine
        if not request.query_text:
            return engine.containers.list_all(stopped=False)
        given = query.filters(request, NAMES)
        stopped = query.flag(request, "all")
        limit = query.integer(request, "limit", 0) or 0
        if not given and limit <= 0:
            return engine.containers.list_all(stopped=stopped)
        records = select(engine.containers, engine.images, given, stopped=stopped, limit=limit)
        bodies = b",".join(map(engine.containers.element, records))
        return Reply(200, b"[" + bodies + b"]\n", JSON)

    async def sized_list(self, request: Request) -> Reply:
        """The list with SizeRw and SizeRootFs, asked of the hosts all at once."""
        reply = self.list(request)
        if not query.flag(request, "size"):
            return reply
        elements: list[dict[str, Any]] = json.loads(reply.body)
        views = self._gateway.engine.containers
        sizes = await asyncio.gather(*(self._size(views.find(each["Id"])) for each in elements))
        for element, size in zip(elements, sizes, strict=True):
            element.update(size)
        return json_reply(elements)

    def inspect(self, request: Request) -> Reply:
        """Everything about one container."""
        views = self._gateway.engine.containers
        return views.inspect(views.find(request.name))

    async def sized_inspect(self, request: Request) -> Reply:
        """The same with SizeRw and SizeRootFs."""
        views = self._gateway.engine.containers
        record = views.find(request.name)
        reply = views.inspect(record)
        if not query.flag(request, "size"):
            return reply
        body = json.loads(reply.body)
        return Reply(200, dumps({**body, **await self._size(record)}) + b"\n", JSON)

    async def _size(self, record: ContainerRecord) -> dict[str, int]:
        engine = self._gateway.engine
        image = engine.images.images.get(record.image_id.removeprefix("sha256:"))
        layers = image.record.layers if image is not None else []
        with contextlib.suppress(EngineError):
            size = await engine.bus.request(
                subjects.runtime(record.node, subjects.RUNTIME_SIZE),
                HostSize(id=record.id, image=sum(layer.size for layer in layers)),
                ContainerSize,
                timeout=_SIZE_TIMEOUT,
            )
            return {"SizeRw": size.size_rw, "SizeRootFs": size.size_root_fs}
        return {}

    async def top(self, request: Request) -> Reply:
        """The processes of a running container."""
        engine = self._gateway.engine
        record = engine.containers.find(request.name)
        _check_running(record)
        result = await engine.ask(
            subjects.agent(record.node, subjects.AGENT_TOP),
            HostTop(id=record.id, run=record.run, arguments=request.get("ps_args") or "-ef"),
            TopResult,
        )
        await note(engine, record.id, "top")
        return json_reply({"Titles": result.titles, "Processes": result.processes})

    async def resize(self, request: Request) -> Reply:
        """Set the size of the terminal."""
        rows, columns = query.size(request, "h"), query.size(request, "w")
        engine = self._gateway.engine
        record = engine.containers.find(request.name)
        _check_running(record)
        await engine.ask(
            subjects.agent(record.node, subjects.AGENT_RESIZE),
            HostResize(id=record.id, run=record.run, rows=rows, columns=columns),
            Done,
        )
        attributes = {"height": str(rows), "width": str(columns)}
        await note(engine, record.id, "resize", attributes)
        return empty(200)

    async def stats(self, request: Request) -> Reply | None:
        """Readings of the container's cgroup: one a second, or one."""
        views = self._gateway.engine.containers
        record = views.find(request.name)
        follow = query.flag(request, "stream", True)
        one_shot = query.flag(request, "one-shot")
        if one_shot and follow:
            raise InvalidParameter("cannot have stream=true and one-shot=true")
        previous = StatsSample()
        if not follow:
            if not one_shot and record.state in RUNNING_STATES:
                previous = await self._sample(record)
                await asyncio.sleep(_STATS_INTERVAL)
            return json_reply(stats(record, await self._sample(record), previous))
        current = await self._sample(record)
        beginning = Beginning(StatsPlan(kind="stats", container=record.id))
        await self._keep_reading(await request.answer(JSON, beginning), record, current, previous)
        return None

    def resumable(self) -> Resumable:
        """See Sessions.resume."""
        return {"stats": (StatsPlan, self.resume)}

    async def resume(self, plan: StatsPlan, wire: DurableWire) -> None:
        """Go on with a client that another gateway had."""
        await wire.flush()
        found = self._gateway.engine.containers.mirror.get(plan.container)
        if found is None:
            await ChunkedAnswer(wire).finish()
            return
        previous = await self._sample(found.record)
        await asyncio.sleep(_STATS_INTERVAL)
        current = await self._sample(found.record)
        await self._keep_reading(ChunkedAnswer(wire), found.record, current, previous)

    async def _keep_reading(
        self,
        answer: Answer,
        record: ContainerRecord,
        current: StatsSample,
        previous: StatsSample,
    ) -> None:
        mirror = self._gateway.engine.containers.mirror
        try:
            while True:
                await answer.write(dumps(stats(record, current, previous)) + b"\n")
                found = mirror.get(record.id)
                if found is None or found.record.state is State.REMOVED or not current.running:
                    await answer.finish()
                    return
                record = found.record
                await asyncio.sleep(_STATS_INTERVAL)
                previous, current = current, await self._sample(record)
        finally:
            await answer.close()

    async def _sample(self, record: ContainerRecord) -> StatsSample:
        if record.state not in RUNNING_STATES:
            return StatsSample()
        return await self._gateway.engine.ask(
            subjects.agent(record.node, subjects.AGENT_STATS),
            HostContainer(id=record.id, run=record.run),
            StatsSample,
        )


def _check_running(record: ContainerRecord) -> None:
    if record.state not in RUNNING_STATES:
        raise Conflict(f"container {record.id} is not running")
    if record.state is State.RESTARTING:
        raise Conflict(f"Container {record.id} is restarting, wait until the container is running")

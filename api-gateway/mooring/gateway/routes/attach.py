"""Attach to a container, and start an exec with its streams attached."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from mooring.gateway import detach
from mooring.gateway.gateway import Gateway
from mooring.gateway.http.connection import Kind
from mooring.gateway.http.reply import Reply, empty
from mooring.gateway.http.request import Request
from mooring.gateway.http.websocket import NotWebSocket, WebSocketWire, handshake
from mooring.gateway.http.wire import Wire
from mooring.gateway.relay import Input, Relay, carry_on, formatter_of, open_log
from mooring.gateway.router import Route
from mooring.gateway.schema import query
from mooring.gateway.schema.containers import RUNNING_STATES
from mooring.gateway.sessions.plans import AttachPlan
from mooring.gateway.sessions.resuming import Resumable
from mooring.gateway.sessions.store import Beginning
from mooring.gateway.sessions.wire import DurableWire
from mooring.kit.errors import Conflict, InvalidParameter
from mooring.kit.models.container import ContainerRecord, State
from mooring.kit.models.host import OpenStream
from mooring.kit.store import Entry

from .notes import note

_OpenWire = Callable[[Beginning | None], Awaitable[Wire]]
RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"


def content_type(request: Request, *, tty: bool) -> str:
    """What a stream is called; before 1.42 also the multiplexed one was called raw."""
    return RAW if tty or request.version < (1, 42) else MULTIPLEXED


class AttachRoutes:
    """The hijacked stream of a container."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        """See Router."""
        return [
            Route("POST", "/containers/{id}/attach", Kind.HIJACK, self.attach),
            Route("GET", "/containers/{id}/attach/ws", Kind.HIJACK, self.websocket),
        ]

    async def websocket(self, request: Request) -> Reply | None:
        """The same through a websocket: both streams in one, as they come."""
        try:
            head = handshake(request.head)
        except NotWebSocket as exc:
            raise InvalidParameter(str(exc)) from None
        text = request.version < (1, 28)

        async def open_wire(_: Beginning | None) -> Wire:
            return WebSocketWire(await request.upgrade(head), text=text)

        return await self._join(request, open_wire, raw=True)

    async def attach(self, request: Request) -> Reply | None:
        """Join the container's streams: those of its next run if it does not run."""
        tty = self._gateway.engine.containers.find(request.name).config.tty
        kind = content_type(request, tty=tty)
        return await self._join(request, partial(request.hijack, kind), raw=tty)

    async def _join(self, request: Request, open_wire: _OpenWire, *, raw: bool) -> Reply | None:
        keys = detach.parse(request.get("detachKeys"))
        engine = self._gateway.engine
        record = engine.containers.find(request.name)
        _check(record)
        tty = record.config.tty
        follow = query.flag(request, "stream")
        opened = _stream(record, replay=query.flag(request, "logs"), follow=follow)
        if opened is None:
            return empty(200)
        if follow:
            # Every byte, however little of it the log may keep.
            opened.reader = secrets.token_hex(8)
        plan = AttachPlan(
            kind="attach",
            node=record.node,
            opened=opened,
            raw=raw,
            stdout=query.flag(request, "stdout"),
            stderr=query.flag(request, "stderr"),
            container=record.id,
            run=opened.until_run or record.run,
            awaits=follow and record.state not in RUNNING_STATES,
            started_ns=record.started_ns,
        )
        if follow and query.flag(request, "stdin") and record.config.open_stdin:
            plan.session = secrets.token_hex(8)
            plan.detach_keys = keys if tty else None
        formatter = formatter_of(plan)
        # The agent says at once where the stream begins, though the run may be yet to come.
        noted = asyncio.create_task(note(engine, record.id, "attach"))
        async with open_log(engine.bus, record.node, opened) as reading:
            if opened.offset == 0 and reading.offset > 0:
                formatter.cut_first_line()
            await noted
            beginning = Beginning(plan, formatter.state(reading.offset)) if follow else None
            wire = await open_wire(beginning)
            relay = Relay(engine.bus, wire, formatter, raw=raw)
            await relay.run(reading, Input.of(plan), self._refused(plan))
        if relay.detached:
            await note(engine, record.id, "detach")
        return None

    def resumable(self) -> Resumable:
        """See Sessions.resume."""
        return {"attach": (AttachPlan, self.resume)}

    async def resume(self, plan: AttachPlan, wire: DurableWire) -> None:
        """Go on with a client that another gateway had attached."""
        engine = self._gateway.engine
        if await carry_on(engine.bus, plan, wire, never=self._refused(plan)):
            await note(engine, plan.container, "detach")

    def _refused(self, plan: AttachPlan) -> Coroutine[Any, Any, object] | None:
        """Returns when the run that is waited for is refused, or the container deleted."""
        if not plan.awaits:
            return None

        def over(entry: Entry[ContainerRecord] | None) -> bool:
            if entry is None or entry.record.state is State.REMOVED:
                return entry is None or entry.record.started_ns == plan.started_ns
            now = entry.record
            resting = now.state in (State.CREATED, State.EXITED, State.DEAD)
            return resting and now.run >= plan.run and now.started_ns == plan.started_ns

        return self._gateway.engine.containers.mirror.until(plan.container, over)


def _check(record: ContainerRecord) -> None:
    if record.state is State.PAUSED:
        raise Conflict(f"container {record.id} is paused, unpause the container before attach")
    if record.state is State.RESTARTING:
        raise Conflict(f"container {record.id} is restarting, wait until the container is running")


def _stream(record: ContainerRecord, *, replay: bool, follow: bool) -> OpenStream | None:
    """What to open; None if neither old nor new output is wanted."""
    if not follow:
        return OpenStream(id=record.id, offset=0) if replay else None
    # A record that is starting names the run already.
    live = record.state in RUNNING_STATES or record.state is State.STARTING
    run = record.run if live else record.run + 1
    if replay:
        return OpenStream(id=record.id, offset=0, follow=True, until_run=run)
    if record.state in RUNNING_STATES:
        return OpenStream(id=record.id, from_end=True, follow=True, until_run=run)
    return OpenStream(id=record.id, at_run=run, follow=True, until_run=run)

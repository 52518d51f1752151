"""Execs: further processes in a running container."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from functools import partial
from typing import Any

from mooring.gateway import detach
from mooring.gateway.engine import Engine
from mooring.gateway.gateway import Gateway
from mooring.gateway.http.connection import Kind
from mooring.gateway.http.reply import Reply, empty, json_reply
from mooring.gateway.http.request import Request
from mooring.gateway.http.wire import Wire
from mooring.gateway.output import multiplexed
from mooring.gateway.relay import Input, Relay, carry_on, formatter_of, open_log
from mooring.gateway.router import Route
from mooring.gateway.schema import query
from mooring.gateway.schema.create import ExecStart, console_size, exec_config
from mooring.gateway.schema.decode import fit, json_body
from mooring.gateway.sessions.plans import AttachPlan
from mooring.gateway.sessions.resuming import Resumable
from mooring.gateway.sessions.store import Beginning
from mooring.gateway.sessions.wire import DurableWire
from mooring.kit import subjects
from mooring.kit.errors import Conflict, EngineError, InvalidParameter, NotFound
from mooring.kit.execs import check_executable
from mooring.kit.models.base import Done
from mooring.kit.models.exec import (
    CreateExec,
    ExecCreated,
    ExecRecord,
    ExecStarted,
    ExecState,
    StartExec,
)
from mooring.kit.models.host import HostResize, OpenStream
from mooring.kit.store import Entry

from .attach import content_type
from .notes import note

logger = logging.getLogger(__name__)

_START_WAIT = 10.0
"""Seconds that a resize waits for the process to be there; Docker's."""
_END_WAIT = 15.0
"""Seconds to wait for the exit code before the stream's end is told: clients ask for it next."""
_STDOUT = 1


class ExecRoutes:
    """The section Exec of the API."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        """See Router."""
        return [
            Route("POST", "/containers/{id}/exec", Kind.PLAIN, self.create),
            Route("POST", "/exec/{id}/start", Kind.HIJACK, self.start),
            Route("POST", "/exec/{id}/resize", Kind.PLAIN, self.resize),
            Route("GET", "/exec/{id}/json", Kind.INSTANT, self.inspect),
        ]

    async def create(self, request: Request) -> Reply:
        """Register a command."""
        body = await json_body(request, self._gateway.settings.max_json_body, required=True)
        config = exec_config(body)
        if config.detach_keys:
            detach.parse(config.detach_keys)
        engine = self._gateway.engine
        message = CreateExec(container=request.name, config=config)
        created = await engine.ask(subjects.EXEC_CREATE, message, ExecCreated)
        await engine.execs.reached(created.revision)
        return json_reply({"Id": created.exec_id}, 201)

    async def start(self, request: Request) -> Reply | None:
        """Start it; unless detached, this connection becomes its streams."""
        body = await json_body(request, self._gateway.settings.max_json_body)
        given = fit(ExecStart, body)
        record = self._find(request.name)
        if record.state is not ExecState.CREATED:
            what = "has already run" if record.state is ExecState.EXITED else "is already running"
            raise Conflict(f"Error: Exec command {record.id} {what}")
        container = self._gateway.engine.containers.mirror.get(record.container)
        if container is None:
            raise NotFound(f"No such exec instance: {request.name}")
        check_executable(container.record)
        rows, columns = console_size(given.ConsoleSize)
        message = StartExec(
            exec_id=record.id, detach=given.Detach, tty=given.Tty, rows=rows, columns=columns
        )
        if given.Detach:
            return await self._start_detached(message)
        tty = record.config.tty if given.Tty is None else given.Tty
        await self._start_attached(request, record, message, tty)
        return None

    async def _start_detached(self, message: StartExec) -> Reply:
        engine = self._gateway.engine
        started = await engine.ask(subjects.EXEC_START, message, ExecStarted)
        if started.error:
            raise InvalidParameter(started.error)
        await engine.execs.reached(started.revision)
        return empty(200)

    async def _start_attached(
        self, request: Request, record: ExecRecord, message: StartExec, tty: bool
    ) -> None:
        engine = self._gateway.engine
        config = record.config
        opened = OpenStream(id=record.container, exec_id=record.id, offset=0, follow=True)
        plan = AttachPlan(
            kind="exec",
            node=record.node,
            opened=opened,
            raw=tty,
            stdout=config.attach_stdout,
            stderr=config.attach_stderr,
            container=record.container,
            exec_id=record.id,
        )
        if config.attach_stdin:
            plan.session = secrets.token_hex(8)
            plan.detach_keys = detach.parse(config.detach_keys) if tty else None
        if not config.attached:
            await self._start_unread(request, message, tty)
            return
        plan.start = message.model_copy(update={"request_id": engine.bus.new_id()})
        formatter = formatter_of(plan)
        # The host keeps the stream waiting for the exec, and as in Docker the head does not: what
        # is wrong from here on is told in the stream.
        start = _Start(engine, plan.start, raw=tty)
        async with open_log(engine.bus, record.node, opened) as reading:
            beginning = Beginning(plan, formatter.state(reading.offset))
            wire = await request.hijack(content_type(request, tty=tty), beginning)
            start.tell(wire)
            relay = Relay(
                engine.bus, wire, formatter, raw=tty, at_end=partial(self._ended, record.id, start)
            )
            await relay.run(reading, Input.of(plan), start.refused())
        if relay.detached:
            await note(engine, record.container, "exec_detach", {"execID": record.id})

    async def _start_unread(self, request: Request, message: StartExec, tty: bool) -> None:
        """Start what nobody wants to hear of; the stream is empty but for an error."""
        engine = self._gateway.engine
        started = await engine.ask(subjects.EXEC_START, message, ExecStarted)
        wire = await request.hijack(content_type(request, tty=tty))
        if started.error:
            await wire.send(_in_stream(started.error, raw=tty))
        await self._ended(message.exec_id)
        await wire.close()

    def resumable(self) -> Resumable:
        """See Sessions.resume."""
        return {"exec": (AttachPlan, self.resume)}

    async def resume(self, plan: AttachPlan, wire: DurableWire) -> None:
        """Go on with a client that another gateway had attached to an exec."""
        engine = self._gateway.engine
        entry = engine.execs.get(plan.exec_id)
        start = None
        if plan.start and entry is not None and entry.record.state is ExecState.CREATED:
            # That gateway may have been killed before it had asked for it.
            start = _Start(engine, plan.start, raw=plan.raw)
            start.tell(wire)
        ended = partial(self._ended, plan.exec_id, start)
        refused = start.refused() if start else None
        if await carry_on(engine.bus, plan, wire, at_end=ended, never=refused):
            await note(engine, plan.container, "exec_detach", {"execID": plan.exec_id})

    async def _ended(self, exec_id: str, start: _Start | None = None) -> None:
        """Wait until our copy says how it ended, and whoever asked for it has been told."""
        if start is not None and await start.settled():
            return

        def over(entry: Entry[ExecRecord] | None) -> bool:
            return entry is None or entry.record.state is ExecState.EXITED

        with contextlib.suppress(TimeoutError):
            await self._gateway.engine.execs.until(exec_id, over, timeout=_END_WAIT)

    async def resize(self, request: Request) -> Reply:
        """Set the size of its terminal; waits for it to have started."""
        rows, columns = query.size(request, "h"), query.size(request, "w")
        record = self._find(request.name)
        engine = self._gateway.engine

        def begun(entry: Entry[ExecRecord] | None) -> bool:
            return entry is None or entry.record.state in (ExecState.RUNNING, ExecState.EXITED)

        try:
            entry = await engine.execs.until(record.id, begun, timeout=_START_WAIT)
        except TimeoutError:
            raise Conflict(f"timeout waiting for exec session {record.id} to start") from None
        if entry is None or entry.record.state is ExecState.EXITED:
            raise Conflict(f"exec {record.id} is not running")
        await engine.ask(
            subjects.agent(record.node, subjects.AGENT_EXEC_RESIZE),
            HostResize(id=record.container, exec_id=record.id, rows=rows, columns=columns),
            Done,
        )
        return empty(200)

    def inspect(self, request: Request) -> Reply:
        """What it is, and how it ended."""
        return json_reply(_shape(self._find(request.name)))

    def _find(self, exec_id: str) -> ExecRecord:
        entry = self._gateway.engine.execs.get(exec_id)
        if entry is None:
            raise NotFound(f"No such exec instance: {exec_id}")
        return entry.record


class _Start:
    """The start of an attached exec, under way; what is wrong with it is told in its stream."""

    def __init__(self, engine: Engine, message: StartExec, *, raw: bool) -> None:
        self._raw = raw
        self._failing: asyncio.Task[bool] | None = None
        self._background = engine.background
        self._asking = engine.background(engine.ask(subjects.EXEC_START, message, ExecStarted))

    def tell(self, wire: Wire) -> None:
        """From now on there is somebody to be told."""
        self._failing = self._background(self._tell(wire))

    async def settled(self) -> bool:
        """Wait until what is wrong with it, if anything, was told; whether there is no exec."""
        assert self._failing is not None
        return await asyncio.shield(self._failing)

    async def refused(self) -> None:
        """Returns if nothing will end the stream, and only then."""
        if not await self.settled():
            await asyncio.get_running_loop().create_future()

    async def _tell(self, wire: Wire) -> bool:
        refused = False
        try:
            error = (await self._asking).error
        except EngineError as exc:
            error, refused = exc.message, True
        if error:
            with contextlib.suppress(ConnectionError):
                await wire.send(_in_stream(error, raw=self._raw))
        return refused


def _in_stream(error: str, *, raw: bool) -> bytes:
    text = f"{error}\r\n".encode()
    return text if raw else multiplexed(_STDOUT, text)


def _shape(record: ExecRecord) -> dict[str, Any]:
    config = record.config
    return {
        "ID": record.id,
        "Running": record.state in (ExecState.STARTING, ExecState.RUNNING),
        "ExitCode": record.exit_code,
        "ProcessConfig": {
            "tty": config.tty,
            "entrypoint": config.cmd[0] if config.cmd else "",
            "arguments": config.cmd[1:],
            "privileged": config.privileged,
            "user": config.user,
        },
        "OpenStdin": config.attach_stdin,
        "OpenStderr": config.attach_stderr,
        "OpenStdout": config.attach_stdout,
        "CanRemove": record.state is ExecState.EXITED,
        "ContainerID": record.container,
        "DetachKeys": "",
        "Pid": record.pid,
    }

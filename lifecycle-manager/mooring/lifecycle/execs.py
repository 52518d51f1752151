"""Execs: registering, starting and ending further processes in a running container."""

from __future__ import annotations

import hashlib
import time

from mooring.kit import faults
from mooring.kit.errors import Conflict, EngineError, InvalidParameter, NotFound, Unavailable
from mooring.kit.execs import check_executable
from mooring.kit.models.container import ContainerRecord, Event
from mooring.kit.models.exec import (
    CreateExec,
    ExecConfig,
    ExecCreated,
    ExecRecord,
    ExecStarted,
    ExecState,
    StartExec,
)
from mooring.kit.models.host import HostExec

from .engine import Engine
from .events import container_event
from .resolve import resolve
from .states import SECOND
from .table import Row

KEPT = 1000
"""How many execs of one container are remembered; older ones that have ended are forgotten."""
_START_LIMIT = 60 * SECOND
_CANNOT_INVOKE = 126
_SHORT = 0.02
"""Seconds that an attached exec runs before it is recorded as running: most end sooner."""


class ExecHandlers:
    """create, start, and the fact that one has ended."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def create(self, request: CreateExec) -> ExecCreated:
        """Register a command; Conflict unless the container runs."""
        engine = self._engine
        exec_id = hashlib.sha256(f"exec {request.request_id}".encode()).hexdigest()
        known = engine.execs.get(exec_id)
        if known is not None:
            return ExecCreated(exec_id=exec_id, revision=known.revision)
        if not request.config.cmd:
            raise InvalidParameter("No exec command specified")
        container = await resolve(engine, request.container, request.request_id)
        container = await engine.containers.check(container.key, check_executable)
        now = time.time_ns()
        groups = container.record.host_config.group_add or []
        record = ExecRecord(
            id=exec_id,
            container=container.key,
            node=container.record.node,
            created_ns=now,
            config=request.config.model_copy(update={"group_add": groups}),
            command_id=request.request_id,
        )
        action = f"exec_create: {' '.join(request.config.cmd)}"
        record.outbox = [_event(container.record, record, 1, action, now)]
        # What happened to the container before goes out before.
        engine.events.push(container.key, container.record.outbox)
        if not record.config.tty:
            # It is likely to be started next: its process can wait for that.
            likely = _host_exec(record, container.record.run, record.config.attached)
            engine.tasks.spawn(
                engine.hosts.prepare_exec(record.node, likely), f"prepare {exec_id[:12]}"
            )
        try:
            row = await engine.execs.create(exec_id, record)
        except Conflict:
            row = await engine.execs.fetch(exec_id)
        faults.point("lifecycle.exec.created")
        await self._forget_old(container.key)
        return ExecCreated(exec_id=exec_id, revision=row.revision)

    async def start(self, request: StartExec) -> ExecStarted:
        """Start a registered command; what it could not execute comes back as its error."""
        engine = self._engine
        try:
            row = await engine.execs.find(request.exec_id)
            container = (await engine.containers.find(row.record.container)).record
        except NotFound:
            raise NotFound(f"No such exec instance: {request.exec_id}") from None
        now = time.time_ns()

        def claim(record: ExecRecord) -> ExecRecord:
            if record.command_id == request.request_id and record.state != ExecState.CREATED:
                return record
            if record.state is ExecState.EXITED:
                raise Conflict(f"Error: Exec command {record.id} has already run")
            if record.state is not ExecState.CREATED:
                raise Conflict(f"Error: Exec command {record.id} is already running")
            check_executable(container)
            action = f"exec_start: {' '.join(record.config.cmd)}"
            return record.model_copy(
                update={
                    "state": ExecState.STARTING,
                    "run": container.run,
                    "command_id": request.request_id,
                    "owner": engine.owner,
                    "deadline_ns": now + _START_LIMIT,
                    "outbox": [*record.outbox, _event(container, record, 2, action, now)],
                }
            )

        with engine.holding(request.exec_id):
            row = await engine.execs.change(request.exec_id, claim)
            faults.point("lifecycle.exec.claimed")
            if row.record.state is not ExecState.STARTING:
                return ExecStarted(revision=row.revision, pid=row.record.pid)
            return await self._run(row, request)

    async def finish(self, row: Row[ExecRecord]) -> None:
        """Carry out a claimed start that was left; the host knows whether it began."""
        detached = not row.record.config.attached
        with self._engine.holding(row.key):
            await self._run(row, StartExec(exec_id=row.key, detach=detached))

    async def _run(self, row: Row[ExecRecord], request: StartExec) -> ExecStarted:
        engine, record = self._engine, row.record
        config = record.config
        if request.tty is not None and request.tty != config.tty:
            config = config.model_copy(update={"tty": request.tty})
        asked = _host_exec(
            record,
            record.run,
            not request.detach,
            config=config,
            rows=request.rows,
            columns=request.columns,
        )
        try:
            started = await engine.hosts.exec(record.node, asked)
        except Unavailable:
            raise
        except EngineError:
            await self.exited(record.id, _CANNOT_INVOKE, 0)
            raise
        faults.point("lifecycle.exec.hosted")
        if started.error:
            await self.exited(record.id, started.exit_code or _CANNOT_INVOKE, 0)
        elif not request.detach and not config.tty:
            # Its client is told by the output. Most are over before this would be written.
            engine.tasks.spawn(self._note_running(record.id, started.pid), f"exec {record.id[:12]}")
        else:
            row = await engine.execs.change(record.id, lambda r: _started(r, started.pid))
        return started.model_copy(update={"revision": row.revision})

    async def _note_running(self, exec_id: str, pid: int) -> None:
        """Record that it runs, unless it has ended shortly after."""
        engine = self._engine
        with engine.holding(exec_id):
            try:
                await engine.execs.until(exec_id, _over, _SHORT)
            except TimeoutError:
                await engine.execs.change(exec_id, lambda r: _started(r, pid))

    async def exited(self, exec_id: str, exit_code: int, pid: int) -> None:
        """An exec has ended, or could not begin. NotFound."""
        row = await self._engine.execs.find(exec_id)
        container = (await self._engine.containers.find(row.record.container)).record
        now = time.time_ns()

        def decide(record: ExecRecord) -> ExecRecord:
            if record.state is ExecState.EXITED:
                return record
            attributes = {"exitCode": str(exit_code)}
            return record.model_copy(
                update={
                    "state": ExecState.EXITED,
                    "exit_code": exit_code,
                    "pid": pid or record.pid,
                    "owner": "",
                    "deadline_ns": 0,
                    "outbox": [
                        *record.outbox,
                        _event(container, record, 3, "exec_die", now, attributes),
                    ],
                }
            )

        await self._engine.execs.change(exec_id, decide)

    async def _forget_old(self, container: str) -> None:
        known = self._engine.execs_of.get(container, {})
        if len(known) <= KEPT:
            return
        for exec_id in list(known):
            row = self._engine.execs.get(exec_id)
            if row is not None and row.record.state is ExecState.EXITED:
                await self._engine.execs.delete(exec_id)
                self._engine.events.forget(exec_id)
                return


def _host_exec(
    record: ExecRecord,
    run: int,
    attach: bool,
    *,
    config: ExecConfig | None = None,
    rows: int = 0,
    columns: int = 0,
) -> HostExec:
    return HostExec(
        request_id=f"{record.command_id}.exec",
        id=record.container,
        run=run,
        exec_id=record.id,
        config=config or record.config,
        attach=attach,
        rows=rows,
        columns=columns,
    )


def _over(record: ExecRecord | None) -> bool:
    return record is None or record.state is ExecState.EXITED


def _started(record: ExecRecord, pid: int) -> ExecRecord:
    if record.state is not ExecState.STARTING:
        return record
    return record.model_copy(
        update={"state": ExecState.RUNNING, "pid": pid, "owner": "", "deadline_ns": 0}
    )


def _event(
    container: ContainerRecord,
    record: ExecRecord,
    serial: int,
    action: str,
    now: int,
    attributes: dict[str, str] | None = None,
) -> Event:
    own = {"execID": record.id, **(attributes or {})}
    return container_event(container, (action, own), f"{record.id}.{serial}", now)

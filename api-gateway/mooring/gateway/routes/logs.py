"""Logs of containers: read from their host, formatted here."""

from __future__ import annotations

import asyncio
import time

from mooring.gateway.frames import FrameError
from mooring.gateway.gateway import Gateway
from mooring.gateway.http.connection import Kind
from mooring.gateway.http.reply import Reply
from mooring.gateway.http.request import Request
from mooring.gateway.http.stream import Answer, ChunkedAnswer
from mooring.gateway.output import Formatter, error_text
from mooring.gateway.relay import formatted, formatter_of, open_log, resume_at
from mooring.gateway.router import Route
from mooring.gateway.schema import query
from mooring.gateway.schema.containers import RUNNING_STATES
from mooring.gateway.sessions.plans import OutputPlan
from mooring.gateway.sessions.resuming import Resumable
from mooring.gateway.sessions.store import Beginning
from mooring.gateway.sessions.wire import DurableWire
from mooring.kit.errors import Conflict, EngineError, InvalidParameter, NotSupported
from mooring.kit.models.container import ContainerRecord, State
from mooring.kit.models.host import OpenStream
from mooring.kit.streams import Download

from .attach import content_type


class LogRoutes:
    """`GET /containers/{id}/logs`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        """See Router."""
        return [Route("GET", "/containers/{id}/logs", Kind.STREAM, self.logs)]

    async def logs(self, request: Request) -> Reply | None:
        """What the container printed; with `follow` until its run ends."""
        stdout, stderr = query.flag(request, "stdout"), query.flag(request, "stderr")
        if not (stdout or stderr):
            raise InvalidParameter("Bad parameters: you must choose at least one stream")
        since_ns = max(0, query.time_ns(request, "since") or 0)
        until_ns = max(0, query.time_ns(request, "until") or 0)
        tail = _tail(request)
        engine = self._gateway.engine
        record = engine.containers.find(request.name)
        if record.state in (State.DEAD, State.REMOVING):
            raise Conflict("can not get logs from container which is dead or marked for removal")
        if record.host_config.log_config.type == "none":
            raise NotSupported("configured logging driver does not support reading")
        tty = record.config.tty
        followed = query.flag(request, "follow")
        opened = _open(record, tail, since_ns, follow=followed and _goes_on(record, until_ns))
        plan = OutputPlan(
            kind="logs",
            node=record.node,
            opened=opened,
            raw=tty,
            stdout=stdout,
            stderr=stderr,
            timestamps=query.flag(request, "timestamps"),
            # Attributes would stand before the space; there are none.
            details="" if query.flag(request, "details") else None,
            since_ns=since_ns,
            until_ns=until_ns,
        )
        formatter = formatter_of(plan)
        kind = content_type(request, tty=tty)
        async with open_log(engine.bus, record.node, opened) as reading:
            if opened.offset == 0 and reading.offset > 0:
                formatter.cut_first_line()
            if followed:
                # Also of a run that has ended meanwhile: who follows counts on the end.
                beginning = Beginning(plan, formatter.state(reading.offset))
                await _answer(await request.answer(kind, beginning), reading, formatter, plan)
            else:
                await _answer(request.stream(kind), reading, formatter, plan)
        return None

    def resumable(self) -> Resumable:
        """See Sessions.resume."""
        return {"logs": (OutputPlan, self.resume)}

    async def resume(self, plan: OutputPlan, wire: DurableWire) -> None:
        """Go on with a client that another gateway had."""
        formatter = formatter_of(plan)
        opened = resume_at(plan.opened, formatter.restore(wire.sent))
        async with open_log(self._gateway.engine.bus, plan.node, opened) as reading:
            await wire.flush()
            await _answer(ChunkedAnswer(wire), reading, formatter, plan)


async def _answer(
    answer: Answer, reading: Download[OpenStream], formatter: Formatter, plan: OutputPlan
) -> None:
    """Everything that comes, until it ends or `until` has passed."""
    tty, until = plan.raw, _seconds_until(plan.until_ns) if plan.opened.follow else None
    try:
        try:
            async with asyncio.timeout(until):
                async for out, state in formatted(
                    reading, formatter, steps=answer.limit is not None
                ):
                    await answer.write(out, state)
                    if formatter.finished:
                        break
        except TimeoutError:
            # `until` has passed: nothing that comes now is asked for.
            pass
        except (EngineError, FrameError) as exc:
            await answer.write(error_text(str(exc), raw=tty))
        if reading.reason not in ("", "end"):
            await answer.write(error_text(reading.reason, raw=tty))
        await answer.finish()
    finally:
        await answer.close()


def _open(record: ContainerRecord, tail: int | None, since_ns: int, *, follow: bool) -> OpenStream:
    opened = OpenStream(id=record.id, follow=follow, until_run=record.run if follow else None)
    if tail == 0:
        opened.from_end = True
    elif tail is not None:
        opened.tail = tail
    elif since_ns:
        opened.since_ns = since_ns
    else:
        opened.offset = 0
    return opened


def _goes_on(record: ContainerRecord, until_ns: int) -> bool:
    if until_ns and until_ns <= time.time_ns():
        return False
    return record.state in RUNNING_STATES or record.state is State.STARTING


def _seconds_until(until_ns: int) -> float | None:
    return max(0.0, (until_ns - time.time_ns()) / 1e9) if until_ns else None


def _tail(request: Request) -> int | None:
    text = request.get("tail", "all")
    if text in ("", "all"):
        return None
    # As Docker: what is no number, or negative, means everything.
    try:
        lines = int(text)
    except ValueError:
        return None
    return lines if lines >= 0 else None

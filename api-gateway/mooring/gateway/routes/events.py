"""Events: the past from the durable stream, then what comes."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from mooring.gateway.gateway import Gateway
from mooring.gateway.http.connection import Kind
from mooring.gateway.http.reply import JSON, Reply, dumps
from mooring.gateway.http.request import Request
from mooring.gateway.http.stream import Answer, ChunkedAnswer
from mooring.gateway.router import Route
from mooring.gateway.schema import query
from mooring.gateway.schema.query import Filters, has_labels
from mooring.gateway.sessions.plans import EventsPlan
from mooring.gateway.sessions.resuming import Resumable
from mooring.gateway.sessions.store import Beginning
from mooring.gateway.sessions.wire import DurableWire
from mooring.kit import references, subjects
from mooring.kit.bus import Message
from mooring.kit.errors import EngineError, InvalidParameter
from mooring.kit.models.container import Event

NAMES = frozenset(
    {
        "config",
        "container",
        "daemon",
        "event",
        "image",
        "label",
        "network",
        "node",
        "plugin",
        "scope",
        "secret",
        "service",
        "type",
        "volume",
    }
)
_BY_ACTOR = frozenset(
    {"config", "daemon", "network", "node", "plugin", "secret", "service", "volume"}
)
_PLACE = struct.Struct("<QQ")
"""Sequence number and time of the last message that was sent."""
_SUFFIXED = ("health_status", "exec_create", "exec_start")
"""Actions that carry something after a colon: these match by what is before it."""


class EventRoutes:
    """`GET /events`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        """See Router."""
        return [Route("GET", "/events", Kind.STREAM, self.events)]

    async def events(self, request: Request) -> Reply | None:
        """Events of a range of time; without an end they go on."""
        now = time.time_ns()
        since, until = query.time_ns(request, "since"), query.time_ns(request, "until")
        given = query.filters(request, NAMES)
        if since is not None and until is not None and since > until:
            raise InvalidParameter(
                f"`since` time ({request.get('since')}) cannot be after "
                f"`until` time ({request.get('until')})"
            )
        begin = max(0, since) if since is not None else now
        if until is not None and until <= now:
            await self._past(request, _Wanted(given, begin, until))
            return None
        plan = EventsPlan(kind="events", filters=given, begin=begin, until=until)
        answer = await request.answer(JSON, Beginning(plan, _PLACE.pack(0, begin)))
        await self._follow(answer, plan, 0, begin)
        return None

    async def _past(self, request: Request, wanted: _Wanted) -> None:
        """The past alone: it ends where the stream ends now."""
        bus = self._gateway.engine.bus
        message = await bus.last(subjects.EVENTS_STREAM, subjects.EVENTS)
        stream = request.stream(JSON)
        if message is not None and message.time_ns >= wanted.since:
            async for event, seq, _ in self._events(wanted.since, 0):
                if wanted.has(event):
                    await stream.write(dumps(shape(event)) + b"\n")
                if seq >= message.seq:
                    break
        await stream.finish()

    def resumable(self) -> Resumable:
        """See Sessions.resume."""
        return {"events": (EventsPlan, self.resume)}

    async def resume(self, plan: EventsPlan, wire: DurableWire) -> None:
        """Go on with a client that another gateway had."""
        await wire.flush()
        await self._follow(ChunkedAnswer(wire), plan, *_PLACE.unpack(wire.sent))

    async def _follow(self, answer: Answer, plan: EventsPlan, last: int, since_ns: int) -> None:
        """Everything after message `last`, which is of the time since_ns, up to plan.until."""
        wanted = _Wanted(plan.filters, plan.begin, plan.until)
        seconds = None if plan.until is None else max(0.0, (plan.until - time.time_ns()) / 1e9)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    async for event, seq, time_ns in self._events(since_ns, last):
                        if wanted.has(event):
                            text = dumps(shape(event)) + b"\n"
                            await answer.write(text, _PLACE.pack(seq, time_ns))
            await answer.finish()
        finally:
            await answer.close()

    async def _events(self, since_ns: int, last: int) -> AsyncGenerator[tuple[Event, int, int]]:
        """Event, sequence number and time of every message after `last` from a time on."""
        following = self._gateway.engine.bus.follow(
            subjects.EVENTS_STREAM, subject=subjects.EVENTS, since_ns=since_ns
        )
        async with contextlib.aclosing(_generator(following)) as messages:
            async for message in messages:
                if message.seq > last:
                    yield Event.unpack(message.data), message.seq, message.time_ns


async def _generator(messages: AsyncIterator[Message]) -> AsyncGenerator[Message, None]:
    """The same, closing what it reads from when it is closed itself."""
    try:
        async for message in messages:
            yield message
    finally:
        closing = getattr(messages, "aclose", None)
        if closing is not None:
            await closing()


def shape(event: Event) -> dict[str, Any]:
    """The event in Docker's form, with the fields from before 1.22 that clients still read."""
    found: dict[str, Any] = {}
    if event.type in ("container", "image"):
        found = {"status": event.action, "id": event.actor}
        if event.type == "container" and "image" in event.attributes:
            found["from"] = event.attributes["image"]
    found |= {
        "Type": event.type,
        "Action": event.action,
        "Actor": {"ID": event.actor, "Attributes": event.attributes},
        "scope": event.scope,
        "time": event.time_ns // 1_000_000_000,
        "timeNano": event.time_ns,
    }
    return found


class _Wanted:
    """Which events a client asked for."""

    def __init__(self, given: Filters, since: int, until: int | None) -> None:
        self.since = since
        self._given = given
        self._until = until

    def has(self, event: Event) -> bool:
        """Whether this is one of them."""
        if event.time_ns < self.since or (self._until and event.time_ns > self._until):
            return False
        return all(_matches(event, name, values) for name, values in self._given.items())


def _matches(event: Event, name: str, values: list[str]) -> bool:
    match name:
        case "type":
            return event.type in values
        case "scope":
            return event.scope in values
        case "label":
            return has_labels(event.attributes, values)
        case "event":
            return any(_is_action(event.action, value) for value in values)
        case "container":
            return event.type == "container" and _is_actor(event, values)
        case "image":
            return any(_is_image(event, value) for value in values)
    return name in _BY_ACTOR and event.type == name and _is_actor(event, values)


def _is_action(action: str, wanted: str) -> bool:
    before, colon, _ = action.partition(":")
    return action == wanted or (bool(colon) and before in _SUFFIXED and before == wanted)


def _is_actor(event: Event, values: list[str]) -> bool:
    name = event.attributes.get("name", "")
    return any(
        value and (event.actor.startswith(value) or name == value.removeprefix("/"))
        for value in values
    )


def _is_image(event: Event, wanted: str) -> bool:
    if event.type == "image":
        candidates = [event.actor, event.attributes.get("name", "")]
    else:
        candidates = [event.attributes.get("image", "")]
    return any(
        candidate and (candidate == wanted or _without_tag(candidate) == wanted)
        for candidate in candidates
    )


def _without_tag(name: str) -> str:
    try:
        return references.parse(name).familiar_name
    except EngineError:
        return name

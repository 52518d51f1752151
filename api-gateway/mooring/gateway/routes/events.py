"""Events: the past from the durable stream, then what comes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from mooring.gateway.gateway import Gateway
from mooring.gateway.http.connection import Kind
from mooring.gateway.http.reply import JSON, Reply, dumps
from mooring.gateway.http.request import Request
from mooring.gateway.http.stream import ResponseStream
from mooring.gateway.router import Route
from mooring.gateway.schema import query
from mooring.gateway.schema.query import Filters, has_labels
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
        bus = self._gateway.engine.bus
        last = 0
        if until is not None and until <= now:
            # The past alone: it ends where the stream ends now.
            message = await bus.last(subjects.EVENTS_STREAM, subjects.EVENTS)
            last = message.seq if message is not None and message.time_ns >= begin else -1
        following = bus.follow(subjects.EVENTS_STREAM, subject=subjects.EVENTS, since_ns=begin)
        stream = request.stream(JSON)
        async with contextlib.aclosing(_generator(following)) as messages:
            if last >= 0:
                wanted = _Wanted(given, begin, until)
                seconds = None if until is None or last else (until - now) / 1e9
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await _send(messages, wanted, stream, last)
        stream.end()
        return None


async def _generator(messages: AsyncIterator[Message]) -> AsyncGenerator[Message, None]:
    """The same, closing what it reads from when it is closed itself."""
    try:
        async for message in messages:
            yield message
    finally:
        closing = getattr(messages, "aclose", None)
        if closing is not None:
            await closing()


async def _send(
    messages: AsyncIterator[Message], wanted: _Wanted, stream: ResponseStream, last: int
) -> None:
    async for message in messages:
        event = Event.unpack(message.data)
        if wanted.has(event):
            await stream.write(dumps(shape(event)) + b"\n")
        if last and message.seq >= last:
            return


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
        self._given = given
        self._since = since
        self._until = until

    def has(self, event: Event) -> bool:
        """Whether this is one of them."""
        if event.time_ns < self._since or (self._until and event.time_ns > self._until):
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

"""Waiting for a container to end: answered from the records, so no restart of anything is felt."""

from __future__ import annotations

from typing import Any

from mooring.gateway.gateway import Gateway
from mooring.gateway.http.connection import Kind
from mooring.gateway.http.reply import JSON, Reply, dumps
from mooring.gateway.http.request import Request
from mooring.gateway.router import Route
from mooring.gateway.schema.containers import RUNNING_STATES
from mooring.kit.errors import InvalidParameter
from mooring.kit.models.container import ContainerRecord, State
from mooring.kit.store import Entry

_CONDITIONS = ("not-running", "next-exit", "removed")


class WaitRoutes:
    """`POST /containers/{id}/wait`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        """See Router."""
        return [Route("POST", "/containers/{id}/wait", Kind.STREAM, self.wait)]

    async def wait(self, request: Request) -> Reply | None:
        """The exit code once the condition holds; the head is sent before that."""
        condition = request.get("condition") or "not-running"
        if condition not in _CONDITIONS:
            raise InvalidParameter(f'invalid condition: "{condition[:60]}"')
        views = self._gateway.engine.containers
        waiting = _Waiting(views.find(request.name), condition)
        stream = None
        if request.version >= (1, 30):
            # `docker run` starts the container only after it has seen this.
            stream = request.stream(JSON)
        await views.mirror.until(waiting.last.id, waiting.over)
        body = dumps(waiting.answer()) + b"\n"
        if stream is None:
            return Reply(200, body, JSON)
        await stream.write(body)
        stream.end()
        return None


class _Waiting:
    """One client's condition, and the last that was seen of the container."""

    def __init__(self, record: ContainerRecord, condition: str) -> None:
        self.last = record
        self._first = record
        self._condition = condition

    def over(self, entry: Entry[ContainerRecord] | None) -> bool:
        """Whether the condition holds with this entry."""
        if entry is None:
            return True
        self.last = entry.record
        if self.last.state is State.REMOVED:
            return True
        match self._condition:
            case "not-running":
                return not _is_running(self.last)
            case "next-exit":
                # A run may end and the next begin between two looks: the time of the end tells.
                return self.last.finished_ns > self._first.finished_ns
        return self.last.state is State.DEAD

    def answer(self) -> dict[str, Any]:
        """The body."""
        found: dict[str, Any] = {"StatusCode": self.last.exit_code}
        if self._condition == "removed" and self.last.state is State.DEAD:
            found["Error"] = {"Message": self.last.error or "the container was not removed"}
        return found


def _is_running(record: ContainerRecord) -> bool:
    return record.state in RUNNING_STATES or record.state is State.STARTING

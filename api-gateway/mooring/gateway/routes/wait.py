"""Waiting for a container to end: answered from the records, so no restart of anything is felt."""

from __future__ import annotations

from typing import Any

from mooring.gateway.gateway import Gateway
from mooring.gateway.http.connection import Kind
from mooring.gateway.http.reply import JSON, Reply, dumps
from mooring.gateway.http.request import Request
from mooring.gateway.http.stream import Answer, ChunkedAnswer
from mooring.gateway.router import Route
from mooring.gateway.schema.containers import RUNNING_STATES
from mooring.gateway.sessions.plans import WaitPlan
from mooring.gateway.sessions.resuming import Resumable
from mooring.gateway.sessions.store import Beginning
from mooring.gateway.sessions.wire import DurableWire
from mooring.kit.errors import InvalidParameter
from mooring.kit.models.container import ContainerRecord, State
from mooring.kit.store import Entry

_ANSWERED = b"answered"
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
        record = self._gateway.engine.containers.find(request.name)
        plan = WaitPlan(
            kind="wait", container=record.id, condition=condition, finished_ns=record.finished_ns
        )
        waiting = _Waiting(plan, record)
        if request.version < (1, 30):
            await self._until(waiting)
            return Reply(200, waiting.body(), JSON)
        # `docker run` starts the container only after it has seen the head.
        await self._answer(await request.answer(JSON, Beginning(plan)), waiting)
        return None

    def resumable(self) -> Resumable:
        """See Sessions.resume."""
        return {"wait": (WaitPlan, self.resume)}

    async def resume(self, plan: WaitPlan, wire: DurableWire) -> None:
        """Go on with a client that another gateway had."""
        await wire.flush()
        answer = ChunkedAnswer(wire)
        if wire.sent == _ANSWERED:
            await answer.finish()
            await answer.close()
        else:
            await self._answer(answer, _Waiting(plan, None))

    async def _answer(self, answer: Answer, waiting: _Waiting) -> None:
        try:
            await self._until(waiting)
            await answer.write(waiting.body(), _ANSWERED)
            await answer.finish()
        finally:
            await answer.close()

    async def _until(self, waiting: _Waiting) -> None:
        mirror = self._gateway.engine.containers.mirror
        await mirror.until(waiting.container, waiting.over)


class _Waiting:
    """One client's condition, and the last that was seen of the container."""

    def __init__(self, plan: WaitPlan, record: ContainerRecord | None) -> None:
        self.container = plan.container
        self._last = record
        self._plan = plan

    def over(self, entry: Entry[ContainerRecord] | None) -> bool:
        """Whether the condition holds with this entry."""
        if entry is None:
            return True
        last = self._last = entry.record
        if last.state is State.REMOVED:
            return True
        match self._plan.condition:
            case "not-running":
                return not _is_running(last)
            case "next-exit":
                # A run may end and the next begin between two looks: the time of the end tells.
                return last.finished_ns > self._plan.finished_ns
        return last.state is State.DEAD

    def body(self) -> bytes:
        """The answer."""
        last = self._last
        if last is None:
            # Removed, and forgotten, while no gateway ran.
            message = f"No such container: {self.container}"
            return dumps({"StatusCode": -1, "Error": {"Message": message}}) + b"\n"
        found: dict[str, Any] = {"StatusCode": last.exit_code}
        if self._plan.condition == "removed" and last.state is State.DEAD:
            found["Error"] = {"Message": last.error or "the container was not removed"}
        return dumps(found) + b"\n"


def _is_running(record: ContainerRecord) -> bool:
    # One that is being removed by force runs until it has been killed: only then is there a code.
    ending = record.state is State.REMOVING and record.pid != 0
    return record.state in RUNNING_STATES or record.state is State.STARTING or ending

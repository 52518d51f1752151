"""What lifecycle managers and gateways ask of a running container on this host.

Each command can be repeated, and none is cancelled because whoever asked went away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from mooring.kit import faults, log
from mooring.kit.errors import Conflict, EngineError, NotFound, NotSupported, Unavailable
from mooring.kit.models.base import Done
from mooring.kit.models.host import (
    HostContainer,
    HostKill,
    HostPolicy,
    HostResize,
    HostStop,
    HostStopped,
    StdinAck,
    StdinChunk,
)

from . import held
from .channel import Channel
from .policies import Policies
from .restarts import Restarts
from .runs import Container, Containers, Run, running
from .shims import Shims, container_of

logger = logging.getLogger(__name__)

KILL_SECONDS = 10.0
"""How long SIGKILL may take before everything in the cgroup is killed one by one, and again."""
BEGIN_SECONDS = 25.0
"""How long stdin waits for its run to begin."""
RESIZE_SECONDS = 10.0


class Commands:
    """Handlers for commands about containers."""

    def __init__(
        self, containers: Containers, shims: Shims, policies: Policies, restarts: Restarts
    ) -> None:
        self._containers = containers
        self._shims = shims
        self._policies = policies
        self._restarts = restarts
        self.on_limits: Callable[[Run], None] = lambda run: None
        """Called for a run whose limits may have changed."""

    async def stop(self, request: HostStop) -> HostStopped:
        """Signal, wait, kill; answers when the exit is in the stream of facts."""
        with self._using(request.id) as container, log.bind(container=request.id):
            self._policies.stop(request.id)
            faults.point("agent.stop.recorded")
            await self._restarts.cancel(container)
            # A restart that was under way has made a run whose shim may not have said hello yet.
            self._shims.look(request.id)
            run = container.latest
            if run is None or (request.run and request.run < run.number):
                return HostStopped(run=container.latest_number)
            if run.live:
                await self._signal(run, request.signal)
                faults.point("agent.stop.signalled")
                timeout = request.timeout if request.timeout >= 0 else None
                if not await self._exited(run, timeout):
                    await self._kill(run)
            await self._told(run)
            return HostStopped(run=container.latest_number)

    async def kill(self, request: HostKill) -> Done:
        """Send a signal; SIGKILL is answered when the exit is in the stream of facts."""
        with self._using(request.id) as container, log.bind(container=request.id):
            if request.signal == signal.SIGKILL or request.ends_restarts:
                self._policies.stop(request.id)
                if container.live is None:
                    await self._restarts.cancel(container)
            run = running(container, request.id, request.run)
            if request.signal == signal.SIGKILL:
                await self._kill(run)
                await self._told(run)
            else:
                await self._signal(run, request.signal)
            return Done()

    async def pause(self, request: HostContainer) -> Done:
        """Freeze all processes; nothing to do if they are frozen."""
        with self._using(request.id) as container:
            run = running(container, request.id, request.run)
            await (await run.reach()).request("pause")
            run.paused = True
            return Done()

    async def unpause(self, request: HostContainer) -> Done:
        """Thaw all processes."""
        with self._using(request.id) as container:
            run = running(container, request.id, request.run)
            await (await run.reach()).request("resume")
            run.paused = False
            return Done()

    async def resize(self, request: HostResize) -> Done:
        """Set the size of a terminal; an exec that is being started is waited for."""
        with self._using(request.id) as container:
            run = running(container, request.id, request.run)
            size: dict[str, Any] = {"rows": request.rows, "columns": request.columns}
            if request.exec_id:
                await self._exec_started(run, request.exec_id)
                size["exec"] = request.exec_id
            await (await run.reach()).request("resize", **size)
            return Done()

    async def stdin(self, request: StdinChunk) -> StdinAck:
        """Write to a container's or an exec's stdin; answers when the bytes are written."""
        with self._using(request.id) as container:
            run = await self._begun(container, request.run)
            fields: dict[str, Any] = {
                "session": request.session,
                "offset": request.offset,
                "eof": request.eof,
                "hold": True,
            }
            if request.exec_id:
                await self._exec_started(run, request.exec_id)
                fields["exec"] = request.exec_id
            try:
                channel = await run.reach()
                await _stage(run, request.exec_id, channel)
                answer = await channel.request("stdin", request.data, **fields)
            except (Unavailable, Conflict):
                if run.live:
                    raise
                return StdinAck(offset=request.offset, closed=True)
            if answer.get("closed"):
                held.stdin_closed(run, request.exec_id)
            return StdinAck(
                offset=int(answer.get("offset", request.offset)),
                closed=bool(answer.get("closed")),
            )

    async def policy(self, request: HostPolicy) -> Done:
        """Change the restart policy, or (stopped) end it until the next start by command."""
        with self._using(request.id) as container:
            policy = self._policies.read(request.id)
            if request.policy is not None:
                policy = replace(
                    policy,
                    name=request.policy.name,
                    max=request.policy.maximum_retry_count,
                    run=policy.run or container.latest_number,
                )
            policy = replace(policy, stopped=policy.stopped or request.stopped)
            if policy.restarts and request.start is not None:
                self._policies.keep_start(request.id, request.start.pack())
            self._policies.write(request.id, policy)
            if not policy.pending:
                await self._restarts.cancel(container)
            if container.live is not None:
                self.on_limits(container.live)
            return Done()

    async def forget(self, request: HostContainer) -> Done:
        """The container was removed: nothing of it needs to be remembered."""
        container = self._containers.find(request.id)
        if container is not None and (not request.run or container.live is None):
            await self._restarts.cancel(container)
            self._containers.forget(request.id)
        return Done()

    @contextlib.contextmanager
    def _using(self, id_: str) -> Iterator[Container]:
        container = container_of(self._containers, self._shims, id_) or self._containers.get(id_)
        container.users += 1
        try:
            yield container
        finally:
            container.users -= 1

    async def _signal(self, run: Run, number: int) -> None:
        """A frozen process gets its signal when it is thawed, as with Docker's stop and kill."""
        while run.live:
            try:
                channel = await run.reach()
                await channel.request("kill", signal=number)
                if run.paused:
                    await channel.request("resume")
                    run.paused = False
                return
            except Unavailable:
                # The shim is being connected to again; one that was killed took init's
                # descriptor with it, and this agent has another.
                if run.live and run.pidfd >= 0 and run.channel is None:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(run.pidfd, number)
                    return
            except Conflict:
                return

    async def _kill(self, run: Run) -> None:
        await self._signal(run, signal.SIGKILL)
        faults.point("agent.stop.killed")
        while not await self._exited(run, KILL_SECONDS):
            logger.error("container %s does not die", run.container.id)
            with contextlib.suppress(EngineError):
                await run.ask().request("kill", signal=int(signal.SIGKILL), all=True)

    async def _exited(self, run: Run, timeout: float | None) -> bool:
        try:
            async with asyncio.timeout(timeout):
                while run.live:
                    await run.container.changed.wait()
        except TimeoutError:
            return False
        return True

    async def _told(self, run: Run) -> None:
        while not run.published:
            await run.container.changed.wait()

    async def _begun(self, container: Container, number: int) -> Run:
        """The run (or, 0, the next one) once it has begun."""
        try:
            async with asyncio.timeout(BEGIN_SECONDS):
                while not container.forgotten:
                    run = container.runs.get(number) if number else container.live
                    if run is not None or 0 < number <= container.latest_number:
                        return run or container.runs[container.latest_number]
                    await container.changed.wait()
        except TimeoutError:
            raise Unavailable(f"container {container.id} has not been started") from None
        raise NotFound(f"No such container: {container.id}")

    async def _exec_started(self, run: Run, id_: str) -> None:
        try:
            async with asyncio.timeout(RESIZE_SECONDS):
                while run.live and not (run.exec(id_).started or run.exec(id_).error):
                    if id_ in run.ended_execs:
                        break
                    await run.container.changed.wait()
        except TimeoutError:
            raise Unavailable(f"exec {id_} has not been started") from None


async def _stage(run: Run, exec_id: str, channel: Channel) -> None:
    """Before the first byte of a stdin: have what it goes through, and keep it for the next agent.

    Bytes come from here alone: whoever dies now, nothing is on its way without being known.
    """
    holder = run.exec(exec_id) if exec_id else run
    if not holder.held or holder.stdin_closed or "stage_in" in holder.held:
        return
    asked = {"exec": exec_id} if exec_id else {}
    try:
        answer = await channel.request_with("stage", **asked)
    except NotSupported:
        return  # A shim of an older version: it hands it over with the bytes.
    held.add(run, exec_id, answer, answer["descriptors"])
    run.keeping.settle()

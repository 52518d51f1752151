"""Starting, stopping, restarting, killing and pausing containers.

Each transition is claimed by compare-and-set, carried out on the host, and recorded. The
`finish_…` methods carry out what is claimed; they can be repeated at any time by anybody, so
a repeated request, another replica and the reconciler all just call them again.
"""

from __future__ import annotations

import contextlib

from mooring.kit import faults, signals
from mooring.kit.consumers import ACK_WAIT
from mooring.kit.endpoints import parse_link
from mooring.kit.errors import (
    Conflict,
    EngineError,
    InvalidParameter,
    NotFound,
    NotModified,
    Unavailable,
)
from mooring.kit.models.base import Done
from mooring.kit.models.container import (
    ContainerConfig,
    ContainerRecord,
    ContainerRequest,
    KillContainer,
    StartContainer,
    State,
    StopContainer,
)
from mooring.kit.models.host import HostContainer, HostKill, HostStart, HostStop
from mooring.kit.models.image import ImageRecord

from . import states
from .endings import Endings
from .engine import Engine
from .find_image import image_key
from .resolve import resolve
from .states import SIGKILL
from .table import Row

_DEFAULT_SIGNAL = 15
_DEFAULT_TIMEOUT = 10
_EXIT_WAIT = 10.0
"""Seconds that a fact may take from a host that says that the container has exited."""
_FACTS_WAIT = ACK_WAIT + _EXIT_WAIT
"""The same for several, of which a replica that was killed may have had the first in hand."""


class RunningHandlers:
    """start, stop, restart, kill, pause, unpause."""

    def __init__(self, engine: Engine, endings: Endings) -> None:
        self._engine = engine
        self._endings = endings

    # --- start ---

    async def start(self, request: StartContainer) -> Done:
        """Start a created or exited container; NotModified if it runs."""
        row = await resolve(self._engine, request.container, request.request_id)
        with self._engine.holding(row.key):
            return await self._start(row.key, request.request_id)

    async def _start(self, key: str, command: str) -> Done:
        engine = self._engine
        claim = engine.claim(command)
        row = await engine.containers.change(key, lambda r: states.claim_start(r, claim))
        if row.record.state is not State.STARTING:
            refusal = states.repeated_refusal(row.record)
            if refusal is not None:
                raise refusal
            return Done(revision=row.revision)
        faults.point("lifecycle.start.claimed")
        mine = row.record.command_id == command
        row = await self.finish_start(row)
        if not mine:
            raise NotModified(f"container {row.record.name} is already running")
        return Done(revision=row.revision)

    async def finish_start(self, row: Row[ContainerRecord]) -> Row[ContainerRecord]:
        """Carry out a claimed start. A refusal is recorded, an uncertain end is not."""
        engine, record, run = self._engine, row.record, row.record.run
        message, exit_code = "", 0
        peers = self._linked(record)
        try:
            image = await self._image_of(record)
            host = await engine.hosts.start(
                record.node,
                HostStart(
                    record=record.model_copy(update={"outbox": []}),
                    image=image,
                    run=run,
                    images=await self._mounted_images(record),
                    peers=peers,
                    linked=self._configs(peers),
                ),
            )
            message, exit_code = host.error, host.exit_code
        except Unavailable:
            raise
        except EngineError as exc:
            row, refused = await self._refuse(row.key, run, exc.message, 0)
            if refused:
                raise
            # It is known by now that it did start: whoever carried it out as well was faster.
            return row
        faults.point("lifecycle.start.hosted")
        if host.over:
            return await self._until_told(row)
        if message:
            await self._refuse(row.key, run, message, exit_code)
            raise InvalidParameter(message)
        now = engine.claim("").now
        row = await engine.containers.change(row.key, lambda r: states.started(r, run, host, now))
        faults.point("lifecycle.start.recorded")
        return row

    async def _until_told(self, row: Row[ContainerRecord]) -> Row[ContainerRecord]:
        """The run has begun and ended, which is known to the stream of facts: wait for that."""
        run = row.record.run
        row = await self._endings.wait(
            row, lambda r: r.state is not State.STARTING or r.run != run, _FACTS_WAIT
        )
        if row.record.state is State.STARTING and row.record.run == run:
            raise Unavailable(f"run {run} of container {row.key} is over, and how is not known yet")
        return row

    async def _mounted_images(self, record: ContainerRecord) -> list[ImageRecord]:
        """The images that `--mount type=image` shows in it."""
        found = {mount.image_id: mount.source for mount in record.mounts if mount.image_id}
        images = []
        for image_id, source in found.items():
            try:
                images.append((await self._engine.images.find(image_key(image_id))).record)
            except NotFound:
                raise NotFound(f"No such image: {source}") from None
        return images

    def _linked(self, record: ContainerRecord) -> dict[str, str]:
        """The ids of the containers that legacy links name."""
        found = {}
        for link in record.host_config.links or ():
            name, _ = parse_link(link)
            by_name = self._engine.by_name
            matching = [key for key in by_name.values() if key.startswith(name)]
            key = by_name.get(name) or (matching[0] if len(matching) == 1 else None)
            if key is not None:
                found[name] = key
        return found

    def _configs(self, peers: dict[str, str]) -> dict[str, ContainerConfig]:
        """What linked containers are: their variables and ports are told in the environment."""
        rows = {name: self._engine.containers.get(key) for name, key in peers.items()}
        return {name: row.record.config for name, row in rows.items() if row is not None}

    async def _image_of(self, record: ContainerRecord) -> ImageRecord:
        try:
            return (await self._engine.images.find(image_key(record.image_id))).record
        except NotFound:
            raise NotFound(f"No such image: {record.image}") from None

    async def _refuse(
        self, key: str, run: int, message: str, exit_code: int
    ) -> tuple[Row[ContainerRecord], bool]:
        claim = self._engine.claim("")
        row = await self._engine.containers.change(
            key, lambda r: states.start_refused(r, run, message, exit_code, claim)
        )
        faults.point("lifecycle.start.refused")
        if row.record.state is State.REMOVED:
            self._endings.clear_in_background(row.record)
        return row, row.record.run == run and row.record.error == message

    # --- stop ---

    async def stop(self, request: StopContainer) -> Done:
        """Stop a container, and answer when it has exited; NotModified if it does not run."""
        number = signals.parse(request.signal) if request.signal else 0
        row = await resolve(self._engine, request.container, request.request_id)
        with self._engine.holding(row.key):
            row = await self._stop(row, request.request_id, number, request.timeout)
        return Done(revision=row.revision)

    async def _stop(
        self,
        row: Row[ContainerRecord],
        command: str,
        signal: int,
        timeout: int | None,
        *,
        restart: bool = False,
    ) -> Row[ContainerRecord]:
        engine = self._engine
        if row.record.state is State.STARTING:
            with contextlib.suppress(EngineError):
                await self.finish_start(row)
        claim = engine.claim(command)
        signal = signal or stop_signal(row.record)
        timeout = stop_timeout(row.record) if timeout is None else timeout
        row = await engine.containers.change(
            row.key,
            lambda r: states.claim_stop(r, claim, signal, timeout, restart=restart),
        )
        faults.point("lifecycle.stop.claimed")
        if row.record.state is State.STOPPING:
            row = await self.finish_stop(row)
        return row

    async def finish_stop(self, row: Row[ContainerRecord]) -> Row[ContainerRecord]:
        """Carry out a claimed stop; returns when the exit is recorded."""
        engine, record = self._engine, row.record
        now = engine.claim("").now
        request = HostStop(
            id=record.id,
            run=run_to_stop(record),
            signal=record.stop_signal or stop_signal(record),
            timeout=states.stop_seconds_left(record, now),
        )
        last = 0
        try:
            last = await engine.hosts.stop(record.node, request)
        except Unavailable:
            raise
        except NotFound:
            await self._endings.ask(record)
        except EngineError:
            command = record.command_id
            await engine.containers.change(row.key, lambda r: states.stop_refused(r, command))
            raise
        faults.point("lifecycle.stop.hosted")
        if last > record.run:
            # Started by its policy before the stop came to it: what is told of it comes first.
            await self._endings.wait(row, lambda r: r.run >= last and not r.pid, _FACTS_WAIT)
        return await self._until_stopped(row.key)

    async def _until_stopped(self, key: str) -> Row[ContainerRecord]:
        engine = self._engine
        now = engine.claim("").now
        row = await engine.containers.change(key, lambda r: states.stopped_without_exit(r, now))
        if row.record.state is State.STOPPING:
            row = await self._endings.wait(
                row, lambda r: r.state is not State.STOPPING or not r.pid, _EXIT_WAIT
            )
            # Of an end that came before the stop the policy may have said that it is followed by
            # another start: there is none any more, whenever that is told.
            row = await engine.containers.change(key, lambda r: states.stopped_without_exit(r, now))
        if row.record.state is State.STOPPING:
            raise EngineError(
                f"cannot stop container: {row.record.name}: tried to kill container, "
                "but did not receive an exit event"
            )
        faults.point("lifecycle.stop.recorded")
        return row

    # --- restart ---

    async def restart(self, request: StopContainer) -> Done:
        """Stop the container if it runs, then start it."""
        engine, command = self._engine, request.request_id
        number = signals.parse(request.signal) if request.signal else 0
        row = await resolve(engine, request.container, command)
        with engine.holding(row.key):
            try:
                await self._stop(row, command, number, request.timeout, restart=True)
            except NotModified:
                # It does not run: it has only to be started, and then it has been restarted.
                claim = engine.claim(command)
                await engine.containers.change(row.key, lambda r: states.want_restart(r, claim))
            try:
                return await self._start(row.key, command)
            except NotModified:
                # Another restart of it was faster: it has been stopped and runs anew.
                return Done(revision=(await engine.containers.fetch(row.key)).revision)

    async def finish_restart(self, row: Row[ContainerRecord]) -> None:
        """The second half of a restart: it has stopped, and is to be started."""
        await self._start(row.key, row.record.command_id)

    # --- kill ---

    async def kill(self, request: KillContainer) -> Done:
        """Send a signal; SIGKILL (the default) is answered when the container has exited."""
        engine, command = self._engine, request.request_id
        number = signals.parse(request.signal) if request.signal else SIGKILL
        row = await resolve(engine, request.container, command)
        with engine.holding(row.key):
            if row.record.state is State.RESTARTING:
                # There is no process to signal; what it is asked to do is not to come back.
                row = await self._stop(row, command, number, 0)
                return Done(revision=row.revision)
            ends = number in (SIGKILL, stop_signal(row.record))
            claim = engine.claim(command)
            row = await engine.containers.change(
                row.key, lambda r: states.claim_kill(r, claim, number, ends)
            )
            faults.point("lifecycle.kill.claimed")
            row = await self._signal(row, number, ends)
        return Done(revision=row.revision)

    async def _signal(
        self, row: Row[ContainerRecord], signal: int, ends_restarts: bool
    ) -> Row[ContainerRecord]:
        engine, record = self._engine, row.record
        if not record.pid:
            return row
        request = HostKill(
            request_id=f"{record.command_id}.kill",
            id=record.id,
            run=record.run,
            signal=signal,
            ends_restarts=ends_restarts,
        )
        try:
            await engine.hosts.kill(record.node, request)
        except (NotFound, Conflict):
            # It has ended since it was looked at, perhaps by this very signal: an agent that is
            # killed before it answers is asked again.
            await self._endings.ask(record)
        faults.point("lifecycle.kill.hosted")
        if record.state is State.PAUSED:
            # The host has thawed it, for a frozen process takes no signal.
            now = engine.claim("").now
            row = await engine.containers.change(row.key, lambda r: states.thawed(r, now))
        if signal != SIGKILL:
            return row
        run = record.run
        row = await self._endings.wait(row, lambda r: r.pid == 0 or r.run != run, _EXIT_WAIT)
        if row.record.pid and row.record.run == run:
            raise EngineError(
                f"cannot kill container: {record.name}: tried to kill container, "
                "but did not receive an exit event"
            )
        return row

    # --- pause ---

    async def pause(self, request: ContainerRequest) -> Done:
        """Freeze all processes of a running container."""
        engine, command = self._engine, request.request_id
        row = await resolve(engine, request.container, command)
        if row.record.command_id == command and row.record.state is State.PAUSED:
            return Done(revision=row.revision)
        with engine.holding(row.key):
            row = await engine.containers.check(row.key, states.check_running)
            record = row.record
            await engine.hosts.pause(record.node, HostContainer(id=record.id))
            faults.point("lifecycle.pause.hosted")
            now = engine.claim("").now
            row = await engine.containers.change(row.key, lambda r: states.paused(r, command, now))
        return Done(revision=row.revision)

    async def unpause(self, request: ContainerRequest) -> Done:
        """Thaw a paused container."""
        engine, command = self._engine, request.request_id
        row = await resolve(engine, request.container, command)
        if row.record.command_id == command and row.record.state is State.RUNNING:
            return Done(revision=row.revision)
        with engine.holding(row.key):
            row = await engine.containers.check(row.key, states.check_unpausable)
            row = await self._unpause(row, command)
        return Done(revision=row.revision)

    async def _unpause(self, row: Row[ContainerRecord], command: str) -> Row[ContainerRecord]:
        engine, record = self._engine, row.record
        await engine.hosts.unpause(record.node, HostContainer(id=record.id))
        faults.point("lifecycle.unpause.hosted")
        now = engine.claim("").now
        return await engine.containers.change(row.key, lambda r: states.unpaused(r, command, now))


def stop_signal(record: ContainerRecord) -> int:
    """The signal that asks this container to stop."""
    if not record.config.stop_signal:
        return _DEFAULT_SIGNAL
    try:
        return signals.parse(record.config.stop_signal)
    except InvalidParameter:
        # An image may say anything; Docker falls back as well.
        return _DEFAULT_SIGNAL


def stop_timeout(record: ContainerRecord) -> int:
    """Seconds this container is given to stop; -1 for ever."""
    timeout = record.config.stop_timeout
    return _DEFAULT_TIMEOUT if timeout is None else timeout


def run_to_stop(record: ContainerRecord) -> int:
    """The run that a stop is meant for; 0, whichever there is, if the host restarts by itself."""
    policy = record.host_config.restart_policy.name
    return record.run if policy in ("", "no") else 0

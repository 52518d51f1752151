"""The connections to this host's shims, and what is found on disk of those that are away.

New shims connect to `agent.sock` and say hello. At its start, and whenever something is asked about
a run that it does not know, the agent looks at the run directories and connects to `shim.sock`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

from mooring.kit import faults
from mooring.kit.errors import EngineError, NotFound, Unavailable

from . import held, holding, orphans, rundir
from .channel import Channel
from .exits import HEALTH_PREFIX, Exits
from .keeping import Keeping
from .record import remove_tree
from .rundir import ExitRecord, Process, ShimRecord
from .runs import Container, Containers, Run
from .successors import Successors
from .work import Work

logger = logging.getLogger(__name__)

BACKLOG = 4096
HELLO_SECONDS = 0.25
"""Without an answer for so long, a shim is looked at: does it live?"""
_TURNS, _TURN_SECONDS = 5, 0.01
UNKNOWN_EXIT_CODE = 255
KILLED_EXIT_CODE = 137
"""Of an exec that ended with its container: the end of a pid namespace is SIGKILL to all in it."""


class Shims:
    """Every shim of this host, connected or not."""

    def __init__(
        self,
        state_dir: str,
        run_dir: str,
        containers: Containers,
        exits: Exits,
        work: Work,
        keeping: Keeping,
        successors: Successors,
    ) -> None:
        self._successors = successors
        self._run_dir = run_dir
        self._directory = f"{run_dir}/shims"
        self._logs = f"{state_dir}/containers"
        self._containers = containers
        self._exits = exits
        self._work = work
        self._keeping = keeping
        self._connected: dict[Channel, Run] = {}
        self._listeners: list[socket.socket] = []
        self.on_begun: Callable[[Run], None] = lambda run: None
        """Called for every run that has begun or was found again."""
        self.on_ended: Callable[[Run], None] = lambda run: None
        """Called for every run that is over."""

    def listen(self) -> None:
        """Take `agent.sock` over: from here on new shims reach this agent."""
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        with _directory_path(self._run_dir) as short:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{short}/agent.sock.new")
            listener.bind(f"{short}/agent.sock.new")
            listener.listen(BACKLOG)
            # Renamed once it listens: a shim never meets a socket that refuses it.
            os.rename(f"{short}/agent.sock.new", f"{short}/agent.sock")
        # At those of agents before there may be shims that nobody has heard yet.
        self._listeners = [*self._keeping.listener(listener), listener]
        for each in self._listeners:
            asyncio.get_running_loop().add_reader(each.fileno(), self._accept, each)

    def close(self) -> None:
        """Stop listening and let all shims go; they live on."""
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            asyncio.get_running_loop().remove_reader(listener.fileno())
            listener.close()
        connected, self._connected = self._connected, {}
        for channel in connected:
            channel.close()

    def look(self, id_: str = "") -> None:
        """Look for runs (of one container) on disk that are not known yet."""
        for found, number in rundir.runs(self._directory):
            if id_ and found != id_:
                continue
            container = self._containers.find(found)
            known = container.runs.get(number) if container else None
            if known is None and (container is None or container.latest_number < number):
                self._found(found, number)

    def _found(self, id_: str, number: int) -> None:
        directory = self.directory_of(id_, number)
        record = rundir.read_shim(directory)
        ended = rundir.read_exit(directory)
        if record is None and ended is None:
            # Not started yet: its shim will say hello.
            return
        run = self._run(id_, number, directory)
        run.record = record
        if ended is not None:
            self._ended(run, ended[0], acknowledged=ended[1])
        elif record is not None:
            self._start_recovery(run)

    def directory_of(self, id_: str, number: int) -> str:
        """The run directory of a run; it is there until the run's end is known to all."""
        return f"{self._directory}/{rundir.name(id_, number)}"

    def was_removed(self, id_: str, offset: int) -> bool:
        """Whether nothing is left of a container, not even the log that was read to `offset`."""
        if os.path.exists(f"{self._logs}/{id_}/log"):
            return False
        return offset > 0 or os.path.exists(f"{self._directory}/.removed/{id_}")

    def _run(self, id_: str, number: int, directory: str) -> Run:
        container = self._containers.get(id_)
        run = container.runs.get(number)
        if run is None:
            run = container.runs[number] = Run(container, number, directory, self._keeping)
            held.find(run)
        return run

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(64):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as exc:
                logger.error("cannot accept a shim: %s", exc)
                return
            faults.point("agent.shim.accepted")
            # What it holds is mostly said by now, and to be kept before anything happens to us.
            Channel(sock, self._event, self._closed, self._keeping.came).begin()

    async def _connect(self, run: Run, record: ShimRecord) -> bool:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            with _directory_path(run.directory) as short:
                sock.connect(f"{short}/shim.sock")
        except OSError:
            sock.close()
            return False
        channel = Channel(sock, self._event, self._closed)
        channel.begin()
        # A shim that has died leaves a socket that still takes connections: we hold its listener.
        asking = asyncio.ensure_future(channel.hello(run.container.id))
        try:
            while not (await asyncio.wait({asking}, timeout=HELLO_SECONDS))[0]:
                if not record.shim.alive():
                    raise Unavailable("it has died")
            hello = asking.result()
            if not channel.open:
                # Its last words: it ended right behind them.
                raise Unavailable("it has ended")
        except EngineError as exc:
            logger.info("no hello from the shim of %s: %s", run.container.id, exc)
            channel.close()
            return False
        finally:
            asking.cancel()
        self._hello(channel, hello)
        if run.channel is channel:
            self._work.start(self._hold(run, channel), name=f"hold {run.container.id}")
        return True

    async def _hold(self, run: Run, channel: Channel) -> None:
        """Get duplicates of what a shim holds that said hello to an agent before this one."""
        try:
            # What an agent before this one kept may be older than the last of it.
            stdin = run.record is not None and run.record.stdin
            await self.hold(run, channel, again=stdin or bool(run.execs))
        except EngineError as exc:
            logger.warning(
                "container %s: nothing to replace its shim with: %s", run.container.id, exc
            )

    async def hold(self, run: Run, channel: Channel, *, again: bool = True) -> None:
        """Get duplicates of all that a shim holds; not `again`: of what there is none of yet.

        EngineError if it does not hand them over.
        """
        try:
            if again or not run.held:
                answer = await channel.request_with("descriptors")
                held.take(run, answer, answer["descriptors"])
            for id_, entry in tuple(run.execs.items()):
                if not entry.started or entry.finished or id_.startswith(HEALTH_PREFIX):
                    continue
                if again or not entry.held:
                    await self._hold_exec(run, id_, channel)
        finally:
            if not run.live:
                held.drop(run)

    async def _hold_exec(self, run: Run, id_: str, channel: Channel) -> None:
        try:
            answer = await channel.request_with("descriptors", exec=id_)
        except NotFound:
            return  # It was another shim's, which was killed: see _await_exec.
        held.take_exec(run, id_, answer, answer["descriptors"])

    def _event(self, channel: Channel, message: dict[str, Any]) -> None:
        run = self._connected.get(channel)
        match message["event"]:
            case "hello":
                self._hello(channel, message)
            case "press":
                channel.pressed = True
                if run is not None:
                    run.pressed = True
                    holding.tell(run.container)
            case _ if run is None:
                return
            case "exec_begins":
                faults.point("agent.exec.begins")
                held.take_exec(run, str(message["exec"]), message, channel.take_descriptors())
            case "held":
                held.add(run, str(message["exec"]), message, channel.take_descriptors())
            case "lane":
                fds = channel.take_descriptors()
                if held.add_lane(run, str(message["exec"]), message, fds):
                    channel.tell("lane", exec=message["exec"], stream=message["stream"])
            case "log":
                entry = run.execs.get(message["exec"]) if message.get("exec") else None
                (entry.watch if entry else run.watch).fire(int(message["end"]))
            case "exit":
                self._ended(run, ExitRecord.parse(message))
            case "exec_exit":
                code, pid = int(message["exit_code"]), int(message.get("pid") or 0)
                self._exits.exec_ended(run, str(message["exec"]), code, pid)

    def _hello(self, channel: Channel, fields: dict[str, Any]) -> None:
        id_, number = str(fields["id"]), int(fields["run"])
        run = self._run(id_, number, self.directory_of(id_, number))
        if run.exit is not None or (run.channel is not None and run.channel.open):
            channel.close()
            return
        held.take(run, fields, channel.take_descriptors())
        run.record = record = ShimRecord.parse(run.directory, fields)
        run.paused = bool(fields.get("paused"))
        run.channel = channel
        run.pressed = channel.pressed or bool(fields.get("pressed"))
        holding.tell(run.container)
        self._connected[channel] = run
        if run.pidfd < 0:
            run.pidfd = orphans.open_init(record.init)
        execs = fields.get("execs") or []
        for known in execs:
            entry = run.exec(str(known["exec"]))
            entry.pid = int(known["pid"])
            entry.started = True
            if entry.read and not entry.finished:
                # Nobody will read what it prints; a shim that took over does not know.
                channel.tell("exec_trim", exec=str(known["exec"]), offset=holding.ABANDONED)
        self._look_for_execs(run, {str(known["exec"]) for known in execs})
        run.changed()
        self.on_begun(run)

    def _look_for_execs(self, run: Run, shims_own: set[str] | None = None) -> None:
        """Execs whose exit was written while no agent listened.

        `shims_own`: those that its shim knows; any other was left by a shim that was killed.
        """
        try:
            ids = os.listdir(f"{run.directory}/execs")
        except FileNotFoundError:
            return
        for id_ in ids:
            directory = f"{run.directory}/execs/{id_}"
            if fields := rundir.read_json(f"{directory}/{rundir.EXIT}"):
                code, pid = int(fields["exit_code"]), int(fields.get("pid") or 0)
                self._exits.exec_ended(run, id_, code, pid)
            elif os.path.exists(f"{directory}/{rundir.ACKNOWLEDGED}"):
                self._exits.exec_acknowledged(run, id_)
            elif shims_own is not None and id_ not in shims_own and id_ not in run.orphans:
                run.orphans.add(id_)
                self._work.start(self._await_exec(run, id_, directory), name=f"orphan {id_}")

    async def _await_exec(self, run: Run, id_: str, directory: str) -> None:
        """An exec whose shim was killed: its end is told in the shim's stead."""
        fields = rundir.read_json(f"{directory}/exec.json")
        if fields is None:
            return
        process = Process(int(fields["pid"]), int(fields["pid_start"]))
        entry = run.exec(id_)
        entry.started, entry.pid = True, process.pid
        pidfd = orphans.open_init(process)
        try:
            code = await orphans.exit_code(pidfd)
        finally:
            if pidfd >= 0:
                os.close(pidfd)
        known = UNKNOWN_EXIT_CODE if code is None else code
        record = {"exec": id_, "exit_code": known, "pid": process.pid}
        with contextlib.suppress(FileNotFoundError):
            rundir.write_json(f"{directory}/{rundir.EXIT}", record)
        self._exits.exec_ended(run, id_, known, process.pid)

    def _ended(self, run: Run, exited: ExitRecord, *, acknowledged: bool = False) -> None:
        if run.exit is not None:
            return
        self.on_ended(run)
        _end_execs(run)
        self._look_for_execs(run)
        self._exits.ended(run, exited, acknowledged=acknowledged)

    def _closed(self, channel: Channel) -> None:
        run = self._connected.pop(channel, None)
        if run is None:
            return
        run.channel = None
        if run.live:
            run.changed()
            if not run.handover:
                self._start_recovery(run)

    def reconnect(self, run: Run, before: Channel) -> None:
        """The end of a handover: `before` led to the shim that was there when it began."""
        assert run.record is not None
        if not run.record.shim.alive():
            self._replaced(run)
            # Whatever it has said to the end is on disk as well.
            before.close()
            if run.live and run.channel is None:
                self._start_recovery(run)
        run.changed()

    def _start_recovery(self, run: Run) -> None:
        if not run.recovering:
            run.recovering = True
            self._work.start(self._recover_once(run), name=f"recover {run.container.id}")

    async def _recover_once(self, run: Run) -> None:
        try:
            await self._recover(run)
        finally:
            run.recovering = False

    async def _recover(self, run: Run) -> None:
        """A run without a connection: connect again, or find out how it ended."""
        pause = 0.01
        while run.live and run.channel is None:
            record = run.record
            assert record is not None
            lives = record.shim.alive()
            # Read after that: a shim that is gone has written all it was ever going to write.
            if (ended := rundir.read_exit(run.directory)) is not None:
                self._ended(run, ended[0], acknowledged=ended[1])
            elif not lives and rundir.read_shim(run.directory) is None:
                # Its program was never executed: the worker is told, and undoes such a start.
                self._drop(run)
                return
            elif not lives:
                await self._orphaned(run, record)
            elif not await self._connect(run, record):
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)

    def _drop(self, run: Run) -> None:
        held.drop(run)
        if run.pidfd >= 0:
            os.close(run.pidfd)
            run.pidfd = -1
        run.container.runs.pop(run.number, None)
        run.changed()

    def _replaced(self, run: Run) -> None:
        """There is another shim: it is connected to next."""
        run.record = rundir.read_shim(run.directory) or run.record

    async def _orphaned(self, run: Run, record: ShimRecord) -> None:
        logger.warning("the shim of container %s was killed", run.container.id)
        for _ in range(_TURNS):
            if run.held:
                break
            # Its hello may wait at the listener of the agent before this one.
            await asyncio.sleep(_TURN_SECONDS)
        held.take_left(run)
        if await self._successors.adopt(run):
            self._replaced(run)
            return
        found = rundir.read_shim(run.directory)
        if found is not None and found.shim != record.shim:
            # That of an agent before this one, which was killed at it. What became of it?
            self._replaced(run)
            return
        if run.pidfd < 0:
            run.pidfd = orphans.open_init(record.init)
        exited = await orphans.wait(run.pidfd, record)
        if run.live:
            orphans.keep(run.directory, record.id, exited)
            self._ended(run, exited)


def _end_execs(run: Run) -> None:
    """Give every exec of a run that is over an exit record, as its shim did if it was not killed.

    Health checks are nobody's but ours; of them nothing is left.
    """
    with contextlib.suppress(FileNotFoundError):
        for id_ in os.listdir(f"{run.directory}/execs"):
            directory = f"{run.directory}/execs/{id_}"
            if id_.startswith(HEALTH_PREFIX):
                remove_tree(directory)
            elif id_ not in run.orphans and not _has_exit(directory):
                record = {"exec": id_, "exit_code": KILLED_EXIT_CODE}
                rundir.write_json(f"{directory}/{rundir.EXIT}", record)


def _has_exit(directory: str) -> bool:
    names = (rundir.EXIT, rundir.ACKNOWLEDGED)
    return any(os.path.exists(f"{directory}/{name}") for name in names)


@contextlib.contextmanager
def _directory_path(directory: str) -> Iterator[str]:
    """A short path of a directory: a socket's address holds 107 bytes at most."""
    number = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{number}"
    finally:
        os.close(number)


def container_of(containers: Containers, shims: Shims, id_: str) -> Container | None:
    """What is known of a container; the disk is looked at if nothing is."""
    found = containers.find(id_)
    if found is None or found.latest is None:
        shims.look(id_)
        found = containers.find(id_)
    return found

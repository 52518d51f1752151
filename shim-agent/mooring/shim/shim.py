"""The process beside each container: parent of its init, holder of its streams, keeper of its log.

It is forked by the launcher, sleeps while its helper (warm.py) starts the container and for as long
as nothing happens, and ends when the container has ended. It needs nobody: agents come and go at
its socket.
"""

from __future__ import annotations

import gc
import os
from _socket import MSG_PEEK
from os import pidfd_open, waitpid
from time import monotonic, time_ns

from .beginning import Beginnings
from .control import Connection, Listener, connect, receive_with
from .execs import Exec
from .log import LogWriter
from .loop import ONCE, READ, Loop
from .operations import OPERATIONS, Refusal
from .packets import dump, parse
from .pins import Pins
from .processes import NOT_EXECUTED, executed, exit_status, open_input, record_streams
from .rawsignal import SIGKILL, pidfd_send_signal
from .record import claim, fault, mark_executed, write_record
from .stdin import Input
from .stdio import Output, Recorder
from .warm import NOTHING_STARTED, read, shared

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from select import epoll
    from typing import Any

    from mooring.runtime.oci.cgroup import Cgroup
    from mooring.runtime.oci.container import Running

_PACKET_BYTES = 64 << 10
_ORPHANS_SECONDS = 10.0
_ENDED = os.WEXITED | os.WNOHANG
_DRAIN_SECONDS = 5.0
"""How long output is waited for after everything in the container was killed."""
_DISK_SECONDS = 30.0
"""How long a full disk may keep the end of a container from being recorded."""


class Shim:
    """One run of a container, from the start command to the exit record."""

    def __init__(
        self, oci: Any, record: dict[str, Any], fds: dict[str, int], unexecuted: str = ""
    ) -> None:
        """unexecuted: what /proc/<pid>/exe of the init is while its program does not run."""
        self._oci = oci
        self._unexecuted = unexecuted
        self._fds = fds
        self._running: Running | None = None
        self._helper = 0
        self.record = record
        """shim.json."""
        self.id: str = record["id"]
        self.run: int = record["run"]
        self.loop = Loop()
        self.execs: dict[str, Exec] = {}
        self.beginnings = Beginnings(oci, self.loop, record, self.running)
        self.recorder: Recorder
        self.input: Input
        self.listener: Listener
        self.pins: Pins
        self._deadline = 0.0
        self._exit: tuple[int | None, int] = (None, 0)
        self._unsure = self._abandoned = False

    # --- taking over ---

    def take_over(self, running: bool) -> None:
        """Watch everything. Not `running`: the helper died before it said that the program ran."""
        fds, record = self._fds, self.record
        log = LogWriter(record["log_dir"], record["log_max_size"], record["log_max_files"])
        self.recorder = Recorder(self.loop, log)
        record_streams(self.recorder, fds)
        self.recorder.mend()
        self.recorder.on_flood = lambda output: self.offer_lane(self.recorder, output)
        once = bool(record["stdin_once"])
        self.input = open_input(self.loop, fds, record["stdin"], once, ".")
        self.recorder.start()
        self.loop.watch(fds["pidfd"], READ, self._init_exited)
        self.listener = Listener(self.loop, fds["listener"], self._handle, self._disconnected)
        self.pins = Pins(self.loop, self.recorder, self.listener)
        if "agent" in fds:
            self.listener.add(fds["agent"])
        if not record["own_pids"]:
            self.loop.later(_ORPHANS_SECONDS, self._bury_orphans)
        if not running:
            self._finish_start()

    def take_over_exec(self, ident: str, fds: dict[str, int]) -> None:
        """Go on with an exec of a shim that was killed."""
        try:
            record = parse(read(f"execs/{ident}/exec.json"))
        except FileNotFoundError:
            # It ended before that shim did, and was forgotten; or never came to its program.
            for fd in fds.values():
                os.close(fd)
            return
        if any(os.path.exists(f"execs/{ident}/exit.{kind}") for kind in ("json", "acked")):
            return
        entry = self.new_exec(ident, bool(record["tty"]))
        if not entry.was_executed(record, fds["pidfd"]):
            # Whoever wants it asks again.
            for fd in fds.values():
                os.close(fd)
            entry.undo()
            return
        self.execs[ident] = entry
        entry.take_over(record, fds)

    def _finish_start(self) -> None:
        """Who made the container was killed at it: go on with it, or undo it."""
        begun = executed(self.pid, self._unexecuted)
        self._unsure = begun is None
        if begun:
            mark_executed()
            self.tell_agent()
        if not begun or "outlet" in self._fds:
            # The program is not to run any more, or its terminal went down with the helper.
            self._abandoned = not begun
            try:
                pidfd_send_signal(self.pidfd, SIGKILL)
            except ProcessLookupError:
                pass

    def tell_agent(self) -> None:
        """Who made the container was killed, perhaps before the agent heard of it."""
        if agent := connect(self.record["agent_socket"]):
            held = self.descriptors()
            hello = {"event": "hello", **self.hello(), "names": list(held)}
            self.listener.add(agent.detach()).send_with(hello, list(held.values()))

    @property
    def pid(self) -> int:
        """Of the container's init."""
        pid: int = self.record["init_pid"]
        return pid

    @property
    def pidfd(self) -> int:
        """Of the container's init."""
        return self._fds["pidfd"]

    @property
    def master(self) -> int:
        """Of the container's terminal; -1 without one."""
        return self._fds.get("master", -1)

    def running(self) -> Running:
        """The container; made when first needed, as most shims never do before the end."""
        if self._running is None:
            self._running = self._oci.Running(
                self.pid,
                self.pidfd,
                self._fds.get("master"),
                self._oci.cgroups.attach(self.record["cgroup"]),
            )
        return self._running

    @property
    def cgroup(self) -> Cgroup:
        """The container's."""
        return self.running().cgroup

    @property
    def paused(self) -> bool:
        """Whether its processes are frozen."""
        return self.cgroup.frozen()

    def hello(self) -> dict[str, Any]:
        """shim.json and the state of the moment."""
        return {
            **self.record,
            "log_end": self.recorder.log.end,
            "paused": self.paused,
            "pressed": self.pins.asked,
            "execs": [e.summary() for e in self.execs.values()],
        }

    def descriptors(self) -> dict[str, int]:
        """What a successor would need to go on with the container."""
        fds = {"pidfd": self.pidfd, "listener": self.listener.fd, **self.recorder.descriptors()}
        fds |= self.input.descriptors()
        if self.master >= 0:
            # Its own descriptor of the terminal is one too many.
            fds.pop("stdin", None)
        return shared(fds)

    # --- conversations ---

    def _handle(self, connection: Connection, request: dict[str, Any], raw: bytes) -> None:
        operation = OPERATIONS.get(request.get("op", ""))
        if operation is None:
            text = f"the shim knows no operation {request.get('op')!r}"
            connection.refuse(request, {"kind": "not_supported", "message": text})
            return
        try:
            operation(self, connection, request, raw)
        except Refusal as refusal:
            connection.refuse(request, {"kind": refusal.kind, "message": str(refusal)})
        except (KeyError, TypeError, ValueError) as error:
            text = f"{request['op']}: {type(error).__name__}: {error}"
            connection.refuse(request, {"kind": "invalid_parameter", "message": text})
        except Exception as error:
            text = getattr(error, "message", None) or f"{request['op']}: {error}"
            connection.refuse(request, {"kind": "internal", "message": text})

    def _disconnected(self, connection: Connection) -> None:
        self.recorder.disarm(connection)
        self.pins.left(connection)
        for entry in self.execs.values():
            if entry.recorder is not None:
                entry.recorder.disarm(connection)

    def offer_lane(self, recorder: Recorder, output: Output) -> None:
        """A process prints at full speed: have somebody hold the lane for it, and it is used."""
        if not self.listener.connections:
            return
        try:
            output.make_lane()
        except OSError:
            return  # No room for more descriptors: it goes on as it is.
        lane = output.lane()
        event = {"event": "lane", "exec": recorder.name, "stream": output.stream}
        for connection in self.listener.connections:
            connection.send_with({**event, "names": list(lane)}, list(lane.values()))

    # --- the end ---

    def new_exec(self, ident: str, tty: bool) -> Exec:
        """An exec that is not running yet."""
        return Exec(self.loop, ident, tty, self.exec_ended, self.offer_lane)

    def exec_ended(self, entry: Exec) -> None:
        """An exec has ended, and its output is whole."""
        record = {"exec": entry.id, "exit_code": entry.exit_code, "pid": entry.pid}
        try:
            write_record(f"{entry.directory}/exit.json", {**record, "finished_ns": time_ns()})
        except FileNotFoundError:
            pass  # Forgotten while it ran.
        self.listener.tell({"event": "exec_exit", **record})

    def expect_helper(self, pid: int, pidfd: int) -> None:
        """The helper is about to end; until then, the container's init is its child, not ours."""
        self._helper = pid
        self.loop.watch(pidfd, READ, lambda _: self._bury_helper(pidfd))

    def _bury_helper(self, pidfd: int) -> None:
        self._await_helper()
        self.loop.forget(pidfd)
        os.close(pidfd)

    def _await_helper(self) -> None:
        if self._helper:
            status = os.waitpid(self._helper, 0)[1]
            self._helper = 0
            if status:
                self.tell_agent()

    def _bury_orphans(self) -> None:
        """Processes of a container without a pid namespace of its own may become our children."""
        self.loop.later(_ORPHANS_SECONDS, self._bury_orphans)
        known = {self.pid, *(entry.pid for entry in self.execs.values())}
        try:
            while (found := os.waitid(os.P_ALL, 0, _ENDED | os.WNOWAIT)) is not None:
                if found.si_pid in known:
                    return
                os.waitpid(found.si_pid, 0)
        except ChildProcessError:
            pass

    def _init_exited(self, events: int) -> None:
        self._await_helper()
        self.loop.forget(self.pidfd)
        self._exit = exit_status(self.pidfd)
        if self._unsure:
            # It had ended when we looked; this is how one ends that was never executed.
            self._abandoned = self._exit[0] == NOT_EXECUTED
        fault("shim.exited")
        if not self.record["own_pids"]:
            # With a pid namespace, the kernel has killed the rest already.
            self.cgroup.kill()
        self._deadline = monotonic() + _DRAIN_SECONDS
        self.recorder.on_drained = self._finish
        self.pins.free()
        if self.recorder.drained:
            self._finish()
        else:
            self.loop.later(_DRAIN_SECONDS, self._drained_or_not)

    def _drained_or_not(self) -> None:
        full = self.recorder.error is not None
        if full and monotonic() < self._deadline + _DISK_SECONDS - _DRAIN_SECONDS:
            self.loop.later(1.0, self._drained_or_not)
        else:
            self._finish()

    def _finish(self) -> None:
        self.recorder.on_drained = None
        self.loop.never(self._drained_or_not)
        self.beginnings.abandon()
        for entry in list(self.execs.values()):
            entry.end()
        self.input.close()
        code, signal = self._exit
        error = self._end_log(code)
        if self._abandoned:
            self._vanish()
            return
        record = {
            "version": 1,
            "id": self.id,
            "run": self.run,
            "pid": self.pid,
            "started_ns": self.record["started_ns"],
            "finished_ns": time_ns(),
            "exit_code": code,
            "signal": signal,
            "oom_killed": self._ran_out_of_memory(),
            "error": error,
        }
        fault("shim.before_exit_record")
        write_record("exit.json", record)
        fault("shim.after_exit_record")
        self.listener.tell({"event": "exit", **record})
        self.listener.close()
        try:
            os.unlink("shim.sock")
        except FileNotFoundError:
            pass
        self.recorder.close()
        self._remove_cgroup()
        if "root" in self._fds:
            # The last to let go of an overlay waits for its upper directory to be written.
            os.close(self._fds["root"])
        self.loop.stop()

    def _vanish(self) -> None:
        """As if this run had never been: whoever started it was not told that it was."""
        for name in ("shim.json", "shim.sock"):
            try:
                os.unlink(name)
            except FileNotFoundError:
                pass
        self.listener.close()
        self.recorder.close()
        self._remove_cgroup()
        self.loop.stop()

    def _remove_cgroup(self) -> None:
        try:
            self.cgroup.remove()
        except Exception:
            pass  # Something unkillable is in it; the worker's reaper looks again.

    def _ran_out_of_memory(self) -> bool:
        try:
            return self.cgroup.oom_kills() > 0
        except Exception:
            return False  # The cgroup is gone: no reason not to record the end.

    def _end_log(self, code: int | None) -> str:
        left = sum(output.available() for output in self.recorder.outputs)
        try:
            ended: dict[str, Any] = {"run": self.run, "exit_code": code}
            self.recorder.log.end_run(dump(ended | ({"undone": True} if self._abandoned else {})))
        except OSError as error:
            return f"the log is incomplete, {left} bytes of output were lost: {error.strerror}"
        self.recorder.notify()
        if left and self.recorder.error is not None:
            return f"the log is incomplete, {left} bytes of output were lost"
        return ""


def main(oci: Any, packets: socket, sleeper: epoll, helper: int) -> None:
    """The life of a shim: sleep until there is something to do, then do it.

    helper: the process that makes the container, a child of this one; 0 if the worker makes it.
    """
    # Few words here: whatever a sleeping shim has touched is memory that it alone pays for.
    if not helper:
        sleeper.poll(None, 1)
        _wake(oci, packets, sleeper, 0, -1)
        return
    pidfd = pidfd_open(helper)
    sleeper.register(pidfd, ONCE)
    poll = sleeper.poll
    alive, status = helper, 0
    while poll(None, 1)[0][0] == pidfd:
        status = waitpid(helper, 0)[1]
        alive = 0
        if status:
            if status == NOTHING_STARTED << 8:
                return
            break  # It was killed. If it had started something, that is ours to keep.
    _wake(oci, packets, sleeper, alive, pidfd, bool(status))


def _wake(
    oci: Any, packets: socket, sleeper: epoll, helper: int, pidfd: int, killed: bool = False
) -> None:
    """killed: the helper, at whatever it did last."""
    packet, fds = receive_with(packets, _PACKET_BYTES)
    if not packet:
        return  # Who was to make the container is gone, and has made nothing that runs.
    record = parse(packet)
    named = dict(zip(record.pop("names"), fds, strict=True))
    if pidfd < 0:
        # The worker tells that it has executed the program a moment after it has; or it is gone.
        packets.recv(1, MSG_PEEK)
    packet, fds = receive_with(packets, _PACKET_BYTES)
    if packet:
        named |= zip(parse(packet)["names"], fds, strict=True)
    if "tether" in named:
        os.close(named.pop("tether"))
    sleeper.close()
    packets.close()
    os.chdir(os.path.dirname(record.pop("path")))
    inode = record.pop("inode")
    if not packet and not claim(inode):
        # Undone already, and perhaps made again: nothing of that is this one's to touch.
        pidfd_send_signal(named["pidfd"], SIGKILL)
        return
    gc.enable()
    shim = Shim(oci, record, named, record.pop("unexecuted", ""))
    if helper:
        shim.expect_helper(helper, pidfd)
    elif pidfd >= 0:
        os.close(pidfd)
    shim.take_over(bool(packet))
    if killed and packet:
        shim.tell_agent()
    shim.loop.run()

"""The process beside each container: parent of its init, holder of its streams, keeper of its log.

It is forked by the launcher, waits warm, becomes the shim of one run by one packet, and ends when
the container has ended. It needs nobody: agents come and go at its socket.
"""

from __future__ import annotations

import os
from _socket import MSG_NOSIGNAL
from time import monotonic, time_ns

from .control import Connection, Listener
from .execs import Exec
from .log import LogWriter
from .loop import READ, Loop
from .operations import OPERATIONS, Refusal
from .packets import dump, parse
from .processes import Streams, exit_status
from .record import fault, start_time, write_record
from .stdin import Input
from .stdio import Recorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any

    from mooring.runtime.oci.container import Running, Stub

_START_BYTES = 256 << 10
_DRAIN_SECONDS = 5.0
"""How long output is waited for after everything in the container was killed."""
_DISK_SECONDS = 30.0
"""How long a full disk may keep the end of a container from being recorded."""


class Shim:
    """One run of a container, from the start command to the exit record."""

    def __init__(self, request: dict[str, Any], oci: Any) -> None:
        self._oci = oci
        self.request = request
        self.loop = Loop()
        self.id: str = request["id"]
        self.run: int = request["run"]
        self.execs: dict[str, Exec] = {}
        self.paused = False
        self.record: dict[str, Any] = {}
        """shim.json."""
        self.running: Running
        self.recorder: Recorder
        self.input: Input
        self.listener: Listener
        self._own_pids = True
        self._deadline = 0.0
        self._exit: tuple[int | None, int] = (None, 0)

    # --- start ---

    def start(self, stub: Stub | None) -> dict[str, Any]:
        """Run the container; what the worker is answered. Raises what went wrong, undone."""
        request = self.request
        timings: list[tuple[str, float]] | None = [] if request.get("timings") else None
        begun = monotonic()
        # Every path of the run directory is relative from here on, and so short enough for a bind.
        os.chdir(request["dir"])
        fault("shim.started")
        spec = self.spec()
        seccomp = _read(request["seccomp"]) if request.get("seccomp") else None
        namespaces = (spec.get("linux") or {}).get("namespaces") or []
        self._own_pids = any(n["type"] == "pid" and not n.get("path") for n in namespaces)
        log = LogWriter(request["log_dir"], request["log_max_size"], request["log_max_files"])
        request["log_start"] = log.begin_run(self.run)
        self.recorder = Recorder(self.loop, log)
        streams = Streams(request["tty"], request["stdin"], self.recorder)
        rootfs = request.get("rootfs")
        size = request.get("console_size")
        stdin, stdout, stderr = streams.child
        if timings is not None:
            timings.append(("shim.prepare", monotonic() - begun))
        try:
            self.running = self._oci.run(
                spec,
                bundle=request["bundle"],
                rootfs=rootfs
                and self._oci.Overlay(rootfs["lowers"], rootfs["upper"], rootfs["work"]),
                cgroup_path=request["cgroup"],
                seccomp=seccomp,
                stub=stub,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                console_size=tuple(size) if size else None,
                before_exec=self._before_exec,
                **({"timings": timings} if timings is not None else {}),
            )
        except BaseException as error:
            self._undo(getattr(error, "exit_code", 128))
            raise
        fault("shim.after_exec")
        streams.close_child()
        if self.running.master is not None:
            streams.use_terminal(self.running.master, self.recorder)
        self.input = streams.open_input(self.loop, bool(request["stdin_once"]))
        self.recorder.start()
        self.loop.watch(self.running.pidfd, READ, self._init_exited)
        self.listener.start()
        answer = {"pid": self.running.pid, "started_ns": self.record["started_ns"]}
        if timings is not None:
            timings.append(("shim.start", monotonic() - begun))
            answer["timings"] = {name: round(seconds * 1000, 3) for name, seconds in timings}
        return answer

    def join_agent(self) -> None:
        """Say hello to the agent, if it is there; if not, it will find shim.sock."""
        if path := self.request.get("agent_socket"):
            agent = self.listener.connect(path)
            if agent is not None:
                agent.send({"event": "hello", **self.hello()})

    def mark_executed(self) -> None:
        """Leave the file that says: the program of this run was executed."""
        os.close(os.open("executed", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def spec(self) -> dict[str, Any]:
        """The bundle's config.json; not kept, for it is large."""
        spec: dict[str, Any] = parse(_read(self.request["bundle"] + "/config.json"))
        return spec

    def hello(self) -> dict[str, Any]:
        """shim.json and the state of the moment."""
        return {
            **self.record,
            "log_end": self.recorder.log.end,
            "paused": self.paused,
            "execs": [e.summary() for e in self.execs.values()],
        }

    def _before_exec(self, pid: int) -> None:
        """All is set up and the program has not been executed: from here on we can be found."""
        request = self.request
        self.listener = Listener(self.loop, "shim.sock", self._handle, self._disconnected)
        self.record = {
            "version": 1,
            "id": self.id,
            "run": self.run,
            "shim_pid": os.getpid(),
            "shim_start": start_time(os.getpid()),
            "init_pid": pid,
            "init_start": start_time(pid),
            "started_ns": time_ns(),
            "exec_marker": "executed",
        }
        for name in _KEPT:
            self.record[name] = request.get(name)
        fault("shim.before_exec")
        write_record("shim.json", self.record)

    def _undo(self, exit_code: int) -> None:
        """The program was not executed: as if this run had never been, but for its log."""
        for name in ("shim.json", "shim.sock"):
            try:
                os.unlink(name)
            except FileNotFoundError:
                pass
        try:
            self.recorder.log.end_run(dump({"run": self.run, "exit_code": exit_code}))
        except OSError:
            pass

    # --- conversations ---

    def _handle(self, connection: Connection, request: dict[str, Any], raw: bytes) -> None:
        operation = OPERATIONS.get(request.get("op", ""))
        if operation is None:
            text = f"the shim knows no operation {request.get('op')!r}"
            connection.refuse(request, "not_supported", text)
            return
        try:
            operation(self, connection, request, raw)
        except Refusal as refusal:
            connection.refuse(request, refusal.kind, str(refusal), refusal.exit_code)
        except (KeyError, TypeError, ValueError) as error:
            text = f"{request['op']}: {type(error).__name__}: {error}"
            connection.refuse(request, "invalid_parameter", text)
        except OSError as error:
            connection.refuse(request, "internal", f"{request['op']}: {error}")

    def _disconnected(self, connection: Connection) -> None:
        self.recorder.disarm(connection)
        for entry in self.execs.values():
            if entry.recorder is not None:
                entry.recorder.disarm(connection)

    # --- the end ---

    def begin_exec(self, entry: Exec, request: dict[str, Any]) -> None:
        """Start a process in the container; Refusal, and nothing left of it."""
        path = request["seccomp"] if "seccomp" in request else self.request.get("seccomp")
        size = request.get("console_size")
        streams = entry.open(bool(request.get("stdin")), bool(request.get("output", True)))
        stdin, stdout, stderr = streams.child
        try:
            process = self._oci.exec_process(
                self.running,
                self.spec(),
                request["process"],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                console_size=tuple(size) if size else None,
                seccomp=_read(path) if path else None,
            )
        except Exception as error:
            streams.close_child()
            streams.abandon()
            entry.discard()
            code = getattr(error, "exit_code", 128)
            kind = "internal" if code == 128 else "invalid_parameter"
            text = getattr(error, "message", None) or repr(error)
            raise Refusal(kind, text, code) from None
        streams.close_child()
        entry.started(streams, process.pid, process.pidfd, process.master)

    def exec_ended(self, entry: Exec) -> None:
        """An exec has ended, and its output is whole."""
        record = {"exec": entry.id, "exit_code": entry.exit_code, "pid": entry.pid}
        try:
            write_record(f"{entry.directory}/exit.json", {**record, "finished_ns": time_ns()})
        except FileNotFoundError:
            pass  # Forgotten while it ran.
        self.listener.tell({"event": "exec_exit", **record})

    def _init_exited(self, events: int) -> None:
        pidfd = self.running.pidfd
        self.loop.forget(pidfd)
        self._exit = exit_status(pidfd)
        fault("shim.exited")
        if not self._own_pids:
            # With a pid namespace, the kernel has killed the rest already.
            self.running.cgroup.kill()
        self._deadline = monotonic() + _DRAIN_SECONDS
        self.recorder.on_drained = self._finish
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
        for entry in list(self.execs.values()):
            entry.end()
        self.input.close()
        code, signal = self._exit
        error = self._end_log(code)
        record = {
            "version": 1,
            "id": self.id,
            "run": self.run,
            "pid": self.running.pid,
            "started_ns": self.record["started_ns"],
            "finished_ns": time_ns(),
            "exit_code": code,
            "signal": signal,
            "oom_killed": self.running.cgroup.oom_kills() > 0,
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
        try:
            self.running.cgroup.remove()
        except Exception:
            pass  # Something unkillable is in it; the worker's reaper looks again.
        self.loop.stop()

    def _end_log(self, code: int | None) -> str:
        left = sum(o.available() for o in self.recorder.outputs if o.fd >= 0)
        try:
            self.recorder.log.end_run(dump({"run": self.run, "exit_code": code}))
        except OSError as error:
            return f"the log is incomplete, {left} bytes of output were lost: {error.strerror}"
        self.recorder.notify()
        if left and self.recorder.error is not None:
            return f"the log is incomplete, {left} bytes of output were lost"
        return ""


_KEPT = (
    "bundle",
    "log_dir",
    "log_start",
    "log_max_size",
    "log_max_files",
    "cgroup",
    "tty",
    "stdin",
    "stdin_once",
    "seccomp",
    "agent_socket",
)
"""What shim.json repeats of the start command: all that another shim needs to take over."""


def serve(sock: socket, cgroup: str | None, oci: Any) -> None:
    """The life of a shim, from warm to the end; the launcher has just forked us. `sock` is the
    worker's side of it: one start command, one answer."""
    stub = oci.prepare(cgroup)
    packet = sock.recv(_START_BYTES)
    if not packet:
        if stub is not None:
            stub.abandon()
        return
    try:
        shim = Shim(parse(packet), oci)
    except (KeyError, TypeError, ValueError) as error:
        _refuse_start(sock, "invalid_parameter", f"not a start command: {error!r}", 128)
        stub.abandon()
        return
    del packet
    try:
        answer = shim.start(stub)
    except Exception as error:
        code = getattr(error, "exit_code", 128)
        kind = "internal" if code == 128 else "invalid_parameter"
        _refuse_start(sock, kind, getattr(error, "message", None) or repr(error), code)
        return
    shim.join_agent()
    _send(sock, answer)
    sock.close()
    shim.mark_executed()
    del answer, sock, stub
    shim.loop.run()


def _refuse_start(sock: socket, kind: str, message: str, exit_code: int) -> None:
    _send(sock, {"error": {"kind": kind, "message": message, "exit_code": exit_code}})


def _send(sock: socket, answer: dict[str, Any]) -> None:
    try:
        sock.send(dump(answer), MSG_NOSIGNAL)
    except OSError:
        pass  # The worker is gone; its successor finds shim.json.


def _read(path: str) -> bytes:
    with open(path, "rb", 0) as file:
        return file.read()

"""The helper of a shim: it waits warm for the start command, makes the container, and ends.

A shim lives as long as its container, and every page it writes to stays its own. So the shim
itself only sleeps, and this child of it does the work of starting; what it makes (descriptors and
a record) waits in a socket until something happens that the shim has to wake up for.

    worker          helper                 shim              agent
      | --- start --> |  makes everything    | (sleeps)
      |               | -- record, fds ----> |                        before the program runs
      |               |  executes the program
      |               | -- terminal, agent > |
      |               | --- hello --------------------------> |
      | <-- answer -- |
                     ends                    | is woken by whatever comes first
"""

from __future__ import annotations

import os
from _socket import MSG_NOSIGNAL
from time import monotonic, time_ns

from .control import connect, listen, send_with
from .log import LogWriter
from .loop import READ
from .packets import dump, join, parse
from .processes import Streams
from .record import claim, fault, mark_executed, start_time, write_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from select import epoll
    from typing import Any

    from mooring.runtime.oci.container import Running, Stub

_START_BYTES = 256 << 10
STARTED = 0
NOTHING_STARTED = 1
"""Exit codes of the helper."""

KEPT = (
    "id",
    "run",
    "bundle",
    "log_dir",
    "log_max_size",
    "log_max_files",
    "cgroup",
    "tty",
    "stdin",
    "stdin_once",
    "seccomp",
    "agent_socket",
    "code",
)
"""What shim.json repeats of the start command: all that another shim needs to take over."""

WAKING = ("stdout", "stderr", "master", "pidfd", "listener", "agent")
_SHARED = (
    *("pidfd", "listener", "stdin", "stdout", "stderr", "outlet", "inlet", "master"),
    *("stage_in", "stage_out"),
)


class Alone(Exception):
    """The shim was killed: nobody would be there for the container. Another one starts it."""


class Start:
    """One start command, from the packet to the running program."""

    def __init__(
        self, request: dict[str, Any], oci: Any, shim: socket, sleeper: epoll, stub: Stub | None
    ) -> None:
        self._request = request
        self._oci = oci
        self._shim = shim
        self._sleeper = sleeper
        self._stub = stub
        self._streams: Streams
        self._record: dict[str, Any] = {}
        self._fds: dict[str, int] = {}
        self._log: LogWriter | None = None
        self._log_end = 0
        self._listener: socket
        self._agent: socket | None = None

    def run(self) -> dict[str, Any]:
        """Run the container; what the worker is answered. Raises what went wrong, undone."""
        request = self._request
        timings: list[tuple[str, float]] | None = [] if request.get("timings") else None
        begun = monotonic()
        try:
            # Every path of the run directory is relative from here on, and short enough for bind.
            os.chdir(request["dir"])
            if not claim(request["inode"]):
                raise RuntimeError("the run was undone")
            fault("shim.started")
            spec = parse(read(request["bundle"] + "/config.json"))
            self._record = {"version": 1, **{name: request.get(name) for name in KEPT}}
            self._record["own_pids"] = own_pids(spec)
            self._streams = Streams(request["tty"], request["stdin"], True)
        except BaseException:
            if self._stub is not None:
                self._stub.abandon()
            raise
        if timings is not None:
            timings.append(("shim.prepare", monotonic() - begun))
        try:
            running = self._run(spec, timings)
        except BaseException as error:
            self._undo(getattr(error, "exit_code", 128), isinstance(error, Alone))
            raise
        fault("shim.after_exec")
        self._streams.close_child()
        self._executed(running)
        answer = {"pid": running.pid, "started_ns": self._record["started_ns"]}
        if timings is not None:
            timings.append(("shim.start", monotonic() - begun))
            answer["timings"] = {name: round(seconds * 1000, 3) for name, seconds in timings}
        return answer

    def _meanwhile(self) -> None:
        """What can be done while init sets itself up."""
        request = self._request
        log = LogWriter(request["log_dir"], request["log_max_size"], request["log_max_files"])
        self._log = log
        # Somebody may still read the run before: who may not, the shim asks (pins.py).
        log.hold = 0
        shim = os.getppid()
        self._record |= {
            "log_start": log.begin_run(request["run"]),
            "shim_pid": shim,
            "shim_start": start_time(shim),
            "exec_marker": "executed",
        }
        self._log_end = log.end
        self._listener = listen("shim.sock")

    def _run(self, spec: dict[str, Any], timings: list[tuple[str, float]] | None) -> Running:
        request = self._request
        rootfs = request.get("rootfs")
        size = request.get("console_size")
        stdin, stdout, stderr = self._streams.child
        running: Running = self._oci.run(
            spec,
            bundle=request["bundle"],
            rootfs=rootfs and self._oci.Overlay(rootfs["lowers"], rootfs["upper"], rootfs["work"]),
            cgroup_path=request["cgroup"],
            seccomp=read(request["seccomp"]) if request.get("seccomp") else None,
            stub=self._stub,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            console_size=tuple(size) if size else None,
            before_exec=self._before_exec,
            meanwhile=self._meanwhile,
            timings=timings,
        )
        return running

    def _before_exec(self, pid: int) -> None:
        """All is set up and the program has not been executed: from here on we can be found."""
        self._fds = {
            **self._streams.ours,
            "pidfd": os.pidfd_open(pid),
            "listener": self._listener.fileno(),
        }
        self._record |= {
            "init_pid": pid,
            "init_start": start_time(pid),
            "started_ns": time_ns(),
        }
        packet = join({**self._record, **self._place(), "names": list(self._fds)})
        try:
            send_with(self._shim, packet, list(self._fds.values()))
        except OSError as error:
            raise Alone from error
        fault("shim.before_exec")
        write_record("shim.json", self._record)

    def _place(self) -> dict[str, Any]:
        return {"path": f"{os.getcwd()}/", "inode": self._request["inode"]}

    def _executed(self, running: Running) -> None:
        """The program runs: the shim gets the rest, the agent hears of it."""
        more: dict[str, int] = {}
        if running.master is not None:
            more["master"] = running.master
        if running.root is not None:
            more["root"] = running.root
        agent = connect(self._request["agent_socket"]) if self._request["agent_socket"] else None
        if agent is not None:
            self._agent = agent
            more["agent"] = agent.fileno()
        try:
            send_with(self._shim, join({"names": list(more)}), list(more.values()))
        except OSError:
            pass  # It was killed: what the agent is sent is all that is left for a successor.
        fds = {**self._fds, **more}
        for name in WAKING:
            if name in fds:
                self._sleeper.register(fds[name], READ)
        fault("shim.untold")
        if agent is not None:
            state = {"log_end": self._log_end, "paused": False, "execs": []}
            held = shared(fds)
            hello = {"event": "hello", **self._record, **state, "names": list(held)}
            try:
                send_with(agent, join(hello), list(held.values()))
            except OSError:
                pass  # The next agent finds shim.sock.

    def forget(self) -> None:
        """Close what a helper leaves to its end."""
        for fd in self._fds.values():
            if fd != self._listener.fileno():
                os.close(fd)
        self._listener.close()
        if self._agent is not None:
            self._agent.close()
        if self._log is not None:
            self._log.close()

    def _undo(self, exit_code: int, undone: bool) -> None:
        """The program was not executed: as if this run had never been, but for its log.

        undone: it is made again.
        """
        for name in ("shim.json", "shim.sock"):
            try:
                os.unlink(name)
            except FileNotFoundError:
                pass
        if self._log is None:
            return
        ended = {"run": self._request["run"], "exit_code": exit_code}
        try:
            self._log.end_run(dump({**ended, "undone": True} if undone else ended))
        except OSError:
            pass


def serve(worker: socket, shim: socket, sleeper: epoll, cgroup: str | None, oci: Any) -> int:
    """The life of the helper; returns its exit code. `worker` is the worker's socket: one start
    command, one answer."""
    stub = oci.prepare(cgroup)
    packet = worker.recv(_START_BYTES)
    try:
        request = parse(packet) if packet else {}
        if request.get("op") != "start":
            raise ValueError("not a start command")
    except (AttributeError, ValueError) as error:
        stub.abandon()
        if packet:
            answer(worker, refusal("invalid_parameter", str(error), 128))
        return NOTHING_STARTED
    try:
        started = Start(request, oci, shim, sleeper, stub).run()
    except Alone:
        return NOTHING_STARTED
    except Exception as error:
        answer(worker, refused(error))
        return NOTHING_STARTED
    answer(worker, started)
    mark_executed()
    return STARTED


def shared(fds: dict[str, int]) -> dict[str, int]:
    """What an agent holds for another shim to take over: duplicates, by name, of these."""
    return {name: fds[name] for name in _SHARED if name in fds}


def own_pids(spec: dict[str, Any]) -> bool:
    """Whether the container has a pid namespace of its own: then the kernel ends all with init."""
    namespaces = (spec.get("linux") or {}).get("namespaces") or []
    return any(n["type"] == "pid" and not n.get("path") for n in namespaces)


def refused(error: Exception) -> dict[str, Any]:
    """The answer for a program that could not be executed."""
    code = getattr(error, "exit_code", 128)
    kind = "internal" if code == 128 else "invalid_parameter"
    message = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
    return refusal(kind, message, code)


def refusal(kind: str, message: str, exit_code: int) -> dict[str, Any]:
    """An error answer."""
    return {"error": {"kind": kind, "message": message, "exit_code": exit_code}}


def read(path: str) -> bytes:
    """A whole file."""
    with open(path, "rb", 0) as file:
        return file.read()


def answer(worker: socket, reply: dict[str, Any]) -> None:
    """Answer the worker, if it is still there."""
    try:
        worker.send(dump(reply), MSG_NOSIGNAL)
    except OSError:
        pass  # The worker is gone; its successor finds shim.json.

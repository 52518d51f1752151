"""Making a container by programs: the worker's part of a start, from the bundle to the program.

    worker                      its process (machine)            shim             agent
      | -- job: steps, fds ------> |  namespaces, root, user       | (sleeps)
      |  log, shim.sock, limits    |                               |
      | <------------------- R --- |                               |
      | -- record, fds -------------------------------------------> (not read before it wakes)
      |  shim.json                 |                               |
      | -- G --------------------> |  executes the program         |
      | <------ end of channel --- |                               |
      | -- hello ---------------------------------------------------------------> |
      | -- "tether": this end of the socket itself --------------> |

The shim wakes up when its socket closes, which it does with this process at any time before the
last packet. That one takes an end of the socket along, so that it never closes after it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import time
from collections.abc import Iterator
from typing import Any

from mooring.kit import faults
from mooring.shim.control import connect, listen, send_with
from mooring.shim.log import LogWriter
from mooring.shim.loop import READ
from mooring.shim.packets import dump, join
from mooring.shim.processes import Streams
from mooring.shim.record import start_time, write_record
from mooring.shim.warm import KEPT, WAKING, own_pids, shared

from .bare import BareShim, StepFailed
from .oci import ahead, machine
from .oci.cgroups import attach
from .oci.job import Job
from .oci.linux import CLONE_NEWPID
from .oci.mountspec import is_bind
from .oci.namespaces import Namespaces
from .oci.program import Program
from .oci.rootsource import Overlay, open_root
from .oci.starting import (
    check_supported,
    make_cgroup,
    name_cgroup,
    open_namespace,
    open_source,
)
from .oci.template import DEVICE_RULES

logger = logging.getLogger(__name__)

_UNUSED = -1


class Making:
    """One start of one container in a bare shim, from the message for a shim to its answer.

    Its two halves may be far apart: `make` can be done before the start is asked for (early.py).
    """

    def __init__(self, shim: BareShim, message: dict[str, Any], spec: dict[str, Any]) -> None:
        self.shim = shim
        self._message = message
        self._spec = spec
        self._directory: str = message["dir"]
        self.cgroup: str = message["cgroup"]
        self._cgroup = attach(self.cgroup)
        self._made_cgroup = False
        self._fds: list[int] = []
        self._streams: Streams | None = None
        self._log: LogWriter | None = None
        self._kept: dict[str, int] = {}
        self._record: dict[str, Any] = {}
        self._given = self._sent = False
        self._program: Program | None = None
        """That of its process, once it waits to be told to execute the container's."""
        self._steps: dict[str, float] = {}
        self._clock = time.monotonic()

    async def make(self, *, early: bool = False) -> None:
        """Make all but the execution of the program; early: it may never be asked for.

        Raises what went wrong, undone here as far as it is not the shim's to undo: wait for its
        end then.
        """
        with self._undoing():
            await self.shim.ready()
            self._step("ready")
            job = self._send_job()
            faults.point("runtime.start.sent")
            self._step("job")
            self._meanwhile()
            if not early:
                self._begin_log()
            self._step("meanwhile")
            await self.shim.expect(ahead.READY, job.program)
            self._step("init")
            self._program = job.program

    async def run(self) -> dict[str, Any]:
        """Run the container; the answer a shim would give. Raises like `make`."""
        if self._program is None:
            await self.make()
        assert self._program is not None
        with self._undoing():
            self._begin_log()
            self._limit_devices()
            self._before_exec()
            faults.point("runtime.start.written")
            self._step("before_exec")
            self.shim.channel.send(ahead.GO)
            self._sent = True
            await self.shim.expect(b"", self._program)
            self._step("execve")
            faults.point("runtime.start.executed")
            try:
                self._executed()
            except OSError as exc:
                # The program runs, whatever this was: the shim sees to it when its socket closes.
                logger.warning("a started container is left to its shim: %s", exc)
            self._step("executed")
        self._close()
        answer = {"pid": self.shim.init, "started_ns": self._record["started_ns"]}
        if self._message["timings"]:
            answer["timings"] = {k: round(s * 1000, 3) for k, s in self._steps.items()}
        return answer

    @property
    def whole(self) -> bool:
        """Whether what was made is still there, the shim and its process."""
        return self._program is not None and self.shim.alive()

    @property
    def cgroups(self) -> list[str]:
        """The paths of what there is of cgroups for this start alone."""
        found = [self.shim.cgroup.path] if self.shim.cgroup is not None else []
        return [*found, self.cgroup] if self._made_cgroup else found

    def abandon(self) -> None:
        """What was made is not wanted: wait for the end of the shim."""
        self._undo()
        self._close()

    @contextlib.contextmanager
    def _undoing(self) -> Iterator[None]:
        try:
            yield
        except StepFailed:
            self._sent = False
            self.abandon()
            raise
        except BaseException:
            self.abandon()
            raise

    def _send_job(self) -> Job:
        """All that the process has to know, in one packet."""
        spec, message = self._spec, self._message
        check_supported(spec.get("linux") or {})
        rootfs = message["rootfs"]
        overlay = Overlay(rootfs["lowers"], rootfs["upper"], rootfs["work"])
        root = open_root(spec, message["bundle"], overlay)
        self._kept["root"] = root
        self._streams = streams = Streams(False, message["stdin"], True)
        born_in = self._take_cgroup()
        job = Job(spec, streams.child, root)
        joined = [
            (flag, self._own(open_namespace(path)))
            for flag, path in Namespaces(spec).joined.items()
            if flag != CLONE_NEWPID
        ]
        binds = {
            number: self._own(open_source(mount, message["bundle"]))
            for number, mount in enumerate(spec.get("mounts") or ())
            if is_bind(mount)
        }
        filter_ = _read(message["seccomp"]) if message["seccomp"] else None
        packet = job.build(joined, binds, filter_, _permitted(), born_in)
        rights = b"".join(fd.to_bytes(4, "little") for fd in job.fds)
        self.shim.channel.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        return job

    def _take_cgroup(self) -> str:
        """Have the container's cgroup; on v2, its directory, for the process to be born there."""
        if self.shim.cgroup is not None:
            name_cgroup(self.shim.cgroup, self._cgroup)
            return ""
        make_cgroup(self._cgroup)
        self._made_cgroup = True
        return self._cgroup.directories()[0]

    def _own(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def _meanwhile(self) -> None:
        """What can be done while the process works at it: log, socket, limits."""
        message, shim = self._message, self.shim
        log = LogWriter(message["log_dir"], message["log_max_size"], message["log_max_files"])
        self._log = log
        # Somebody may still read the run before: who may not, the shim asks (pins.py).
        log.hold = 0
        self._record = {
            "version": 1,
            **{name: message.get(name) for name in KEPT},
            "code": shim.code,
            "own_pids": own_pids(self._spec),
            "shim_pid": shim.pid,
            "shim_start": shim.start,
            "exec_marker": "executed",
        }
        directory = os.open(self._directory, os.O_PATH | os.O_CLOEXEC)
        try:
            # The name in sun_path is short, whatever the directory's is.
            self._kept["listener"] = listen(f"/proc/self/fd/{directory}/shim.sock").detach()
        finally:
            os.close(directory)
        if resources := (self._spec.get("linux") or {}).get("resources"):
            self._cgroup.apply({**resources, "devices": None})

    def _begin_log(self) -> None:
        """Only once the start was asked for: readers wait for the run."""
        assert self._log is not None
        if "log_start" not in self._record:
            self._record["log_start"] = self._log.begin_run(self._message["run"])

    def _limit_devices(self) -> None:
        # Only now: the rules may forbid the very nodes that the container is to find in its /dev.
        rules = ((self._spec.get("linux") or {}).get("resources") or {}).get("devices")
        if rules and rules != DEVICE_RULES:
            self._cgroup.apply({"devices": rules})

    def _before_exec(self) -> None:
        """All is set up and the program has not been executed: from here on it can be found."""
        assert self._streams is not None
        pid = self.shim.init
        self._kept["pidfd"] = os.dup(self.shim.pidfd)
        self._record |= {
            "init_pid": pid,
            "init_start": start_time(pid),
            "started_ns": time.time_ns(),
        }
        named = {name: fd for name, fd in self._everything().items() if name != "root"}
        place = {"path": f"{self._directory}/", "inode": self._message["inode"]}
        packet = {**place, "unexecuted": machine.LINK, "names": list(named)}
        send_with(self.shim.socket, join({**self._record, **packet}), list(named.values()))
        self._given = True
        faults.point("runtime.start.given")
        write_record(f"{self._directory}/shim.json", self._record)

    def _everything(self) -> dict[str, int]:
        assert self._streams is not None
        return {**self._streams.ours, **self._kept}

    def _executed(self) -> None:
        """The program runs: the shim gets the rest, the agent hears of it."""
        path = self._message["agent_socket"]
        agent = connect(path) if path else None
        more = {"root": self._kept["root"], "tether": self.shim.socket.fileno()}
        if agent is not None:
            more["agent"] = agent.fileno()
        everything = {**self._everything(), **more}
        with select.epoll.fromfd(os.dup(self.shim.sleeper)) as sleeper:
            for name in WAKING:
                if name in everything:
                    sleeper.register(everything[name], READ)
        if agent is not None:
            assert self._log is not None
            held = shared(everything)
            state = {"log_end": self._log.end, "paused": False, "execs": []}
            hello = {"event": "hello", **self._record, **state, "names": list(held)}
            try:
                send_with(agent, join(hello), list(held.values()))
            except OSError:
                pass  # Its end wakes the shim; the next agent finds shim.sock.
        faults.point("runtime.start.told")
        # From here on the shim does not wake up for this process any more, so the agent is told
        # before. It may have been killed meanwhile: the agent has what a successor needs.
        killed: OSError | None = None
        try:
            send_with(self.shim.socket, join({"names": list(more)}), list(more.values()))
        except OSError as exc:
            killed = exc
        if agent is not None:
            agent.close()
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        os.close(os.open(f"{self._directory}/executed", flags, 0o600))
        if killed is not None:
            raise killed

    def _step(self, name: str) -> None:
        now = time.monotonic()
        self._steps[f"make.{name}"] = now - self._clock
        self._clock = now

    def _undo(self) -> None:
        """The program was not executed, or the shim finds out that it was."""
        if not self._sent:
            self.shim.kill()
        # The log is the shim's where it has the record: then that ends the run in it.
        if self._log is not None and not self._given:
            try:
                if "log_start" in self._record:
                    ended = {"run": self._message["run"], "exit_code": 128, "undone": True}
                    self._log.end_run(dump(ended))
            except OSError:
                pass
            try:
                os.unlink(f"{self._directory}/shim.sock")
            except FileNotFoundError:
                pass

    def _close(self) -> None:
        for fd in (*self._fds, *self._kept.values()):
            os.close(fd)
        self._fds, self._kept = [], {}
        if self._streams is not None:
            self._streams.close()
            self._streams = None
        if self._log is not None:
            self._log.close()
            self._log = None
        self.shim.close()


def _read(path: str) -> bytes:
    with open(path, "rb", 0) as file:
        return file.read()


_own_capabilities = _UNUSED


def _permitted() -> int:
    """What root has after an execve(2) here: the bounding set of this process."""
    global _own_capabilities
    if _own_capabilities == _UNUSED:
        with open("/proc/self/status") as file:
            mask = next(line.split()[1] for line in file if line.startswith("CapBnd:"))
        _own_capabilities = int(mask, 16)
    return _own_capabilities

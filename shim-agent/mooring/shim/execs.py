"""Execs: further processes in the container, each with a log of what it prints."""

from __future__ import annotations

import os
from time import monotonic, sleep, time_ns

from .frames import HEADER_SIZE
from .log import LogWriter
from .loop import READ, Loop
from .packets import dump
from .processes import (
    NOT_EXECUTED,
    Streams,
    executed,
    exit_status,
    open_input,
    record_streams,
    resize,
)
from .rawsignal import SIGKILL, pidfd_send_signal
from .record import remove_tree, start_time, write_record
from .stdin import Input
from .stdio import Output, Recorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

SEGMENT_BYTES = 4 << 20
UNREAD_BYTES = 64 << 20
"""An exec whose output is read no faster has its output left in the pipe beyond this."""
_UNDECIDED_SECONDS = 2.0
_FIRST_FRAME = HEADER_SIZE + len(b"1")
"""Bytes of a log in which nothing was printed."""
_LEFTOVER_SECONDS = 0.5
"""How long output of what an exec has left behind in the container is still waited for."""


class Exec:
    """One exec, running or exited; its directory is `execs/<id>` below the working directory."""

    __slots__ = (
        "_announced",
        "_ended",
        "_flooded",
        "_leaving",
        "_loop",
        "_recorded",
        "_waiting",
        "directory",
        "exit_code",
        "id",
        "input",
        "master",
        "pid",
        "pidfd",
        "recorder",
        "tty",
    )

    def __init__(
        self,
        loop: Loop,
        ident: str,
        tty: bool,
        ended: Callable[[Exec], None],
        flooded: Callable[[Recorder, Output], None],
    ) -> None:
        """ended: called at its end. flooded: when it prints at full speed."""
        self._loop = loop
        self._ended = ended
        self._flooded = flooded
        self._leaving = False
        self._waiting: list[Callable[[dict[str, Any]], None]] = []
        self._announced: dict[str, Any] | None = None
        self.id = ident
        self.tty = tty
        self.directory = f"execs/{ident}"
        self.pid = self._recorded = 0
        self.pidfd = self.master = -1
        self.exit_code: int | None = None
        """None while it runs."""
        self.recorder: Recorder | None = None
        self.input = Input(loop, -1, True)

    def open(self, wants_output: bool) -> None:
        """Make the directory, and the log if there is to be one."""
        os.makedirs(self.directory, 0o700, exist_ok=True)
        if wants_output:
            log = LogWriter(f"{self.directory}/log", SEGMENT_BYTES, 0)
            if not log.end:
                # Begun by another shim and never executed, it may have readers already.
                log.begin_run(1)
            self.recorder = self._recorder(log)

    def _recorder(self, log: LogWriter) -> Recorder:
        recorder = Recorder(self._loop, log, self.id, UNREAD_BYTES)
        recorder.on_flood = lambda output: self._flooded(recorder, output)
        return recorder

    def started(self, streams: Streams, pid: int, fds: dict[str, int], wants_input: bool) -> None:
        """The process runs: record it, read its output, wait for its end."""
        self.pid, self.pidfd = pid, fds["pidfd"]
        self.master = fds.get("master", -1)
        fds = {**streams.ours, **fds}
        self.input = open_input(self._loop, fds, wants_input, True, self.directory)
        if pid != self._recorded:
            self.record(pid, wants_input)
        if self.recorder is not None:
            record_streams(self.recorder, fds)
            self.recorder.start()
        self._loop.watch(self.pidfd, READ, self._exited)

    def record(self, pid: int, wants_input: bool, unexecuted: str = "") -> None:
        """Write exec.json. unexecuted: see `executed`; where it has not run its program yet."""
        self._recorded = pid
        record = {"version": 1, "exec": self.id, "pid": pid, "pid_start": start_time(pid)}
        record |= {"started_ns": time_ns(), "tty": self.tty, "stdin": wants_input}
        write_record(f"{self.directory}/exec.json", {**record, "unexecuted": unexecuted})

    def was_executed(self, record: dict[str, Any], pidfd: int) -> bool:
        """Whether the process that a shim before this one had made came to its program."""
        unexecuted = record.get("unexecuted") or ""
        deadline = monotonic() + _UNDECIDED_SECONDS
        while unexecuted and executed(record["pid"], unexecuted) is False:
            # It is on its way; or its channel has closed before it was told to go, and it ends.
            if monotonic() > deadline:
                pidfd_send_signal(pidfd, SIGKILL)
                return False
            sleep(0.001)
        if not unexecuted or executed(record["pid"], unexecuted):
            return True
        return exit_status(pidfd)[0] != NOT_EXECUTED or self._has_printed()

    def _has_printed(self) -> bool:
        try:
            names = os.listdir(f"{self.directory}/log")
        except FileNotFoundError:
            return False
        sizes = (os.stat(f"{self.directory}/log/{n}").st_size for n in names if n[-4:] == ".log")
        return sum(sizes) > _FIRST_FRAME

    def take_over(self, record: dict[str, Any], fds: dict[str, int]) -> None:
        """Go on with what a shim began that is no more."""
        self.pid, self.pidfd = record["pid"], fds["pidfd"]
        self.master = fds.get("master", -1)
        self.input = open_input(self._loop, fds, record["stdin"], True, self.directory)
        if "stdout" in fds or "stderr" in fds or "outlet" in fds:
            log = LogWriter(f"{self.directory}/log", SEGMENT_BYTES, 0)
            self.recorder = self._recorder(log)
            record_streams(self.recorder, fds)
            self.recorder.mend()
            self.recorder.start()
        self.announce({"pid": self.pid})
        self._loop.watch(self.pidfd, READ, self._exited)

    def descriptors(self) -> dict[str, int]:
        """What a successor would need to go on with it."""
        fds = {"pidfd": self.pidfd} if self.pidfd >= 0 else {}
        if fds and self.recorder is not None:
            fds |= self.recorder.descriptors()
        if fds:
            fds |= self.input.descriptors()
        if fds and self.master >= 0:
            # Its own descriptor of the terminal is one too many.
            fds.pop("stdin", None)
            fds["master"] = self.master
        return fds

    def when_started(self, callback: Callable[[dict[str, Any]], None]) -> None:
        """Call back with the result of its start, now or as soon as it is known."""
        if self._announced is None:
            self._waiting.append(callback)
        else:
            callback(self._announced)

    def announce(self, result: dict[str, Any]) -> None:
        """The result of its start is known: a pid, or an error."""
        self._announced = result
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback(result)

    @property
    def running(self) -> bool:
        """Not yet ended; also while it is being started."""
        return self.exit_code is None

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal; nothing without one."""
        if self.master >= 0:
            resize(self.master, rows, columns)

    def summary(self) -> dict[str, Any]:
        """What `hello` tells of it."""
        known: dict[str, Any] = {"exec": self.id, "pid": self.pid}
        if self.recorder is not None:
            known["log_end"] = self.recorder.log.end
        if self.exit_code is not None:
            known["exit_code"] = self.exit_code
        return known

    def end(self) -> None:
        """The container's end is its end: record it without waiting for anything."""
        if self.pidfd >= 0 and not self._leaving:
            try:
                pidfd_send_signal(self.pidfd, SIGKILL)
            except ProcessLookupError:
                pass
            self._exited(0)
        if self.pidfd >= 0:
            self._finish()

    def undo(self) -> None:
        """It was never executed, and may be started again: its log stays, for who reads it."""
        try:
            os.unlink(f"{self.directory}/exec.json")
        except FileNotFoundError:
            pass

    def discard(self) -> None:
        """Delete its directory; a process that runs on is left alone."""
        if self.recorder is not None:
            self.recorder.close()
            self.recorder = None
        remove_tree(self.directory)

    def _exited(self, events: int) -> None:
        self._loop.forget(self.pidfd)
        self._leaving = True
        code, _ = exit_status(self.pidfd)
        self.exit_code = 255 if code is None else code
        recorder = self.recorder
        if recorder is None or recorder.drained:
            self._finish()
            return
        # What is in the pipe is less than the pipe's size: no reason to wait for readers.
        recorder.bound = 0
        recorder.on_drained = self._finish
        recorder.start()
        self._loop.later(_LEFTOVER_SECONDS, self._finish)

    def _finish(self) -> None:
        self._loop.never(self._finish)
        if self.pidfd < 0:
            return
        os.close(self.pidfd)
        self.pidfd = -1
        self.input.close()
        recorder = self.recorder
        if recorder is not None:
            recorder.on_drained = None
            try:
                recorder.log.end_run(dump({"run": 1, "exit_code": self.exit_code}))
                recorder.notify()
            except OSError:
                pass  # The run directory is full; the exit record below says that it ended.
            recorder.close()
        if self.master >= 0:
            os.close(self.master)
            self.master = -1
        self._ended(self)

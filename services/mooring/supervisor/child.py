"""One child process: started, watched, started again with back-off, stopped."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from enum import StrEnum

from .notify import Notification
from .programs import Program, become
from .store import DescriptorStore

logger = logging.getLogger(__name__)

FIRST_DELAY, LONGEST_DELAY = 0.05, 5.0
"""Seconds; the first restart comes at once."""
GOOD_LIFE = 1.0
"""Seconds after which the life of a service that was ready counts as good: the back-off is for what
can't start, not for what is killed often, whose next restart comes at once."""
READY_TIMEOUT = 60.0
WATCHDOG = 30.0
"""Seconds without a sign from a service's event loop until it is killed."""
ABORT_TIMEOUT = 2.0
STOP_TIMEOUT = 10.0
_PROBE = 0.02


class State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    WAITING = "waiting"
    """Died too often too soon, or could not be forked: started again at `due`."""
    STOPPED = "stopped"
    IDLE = "idle"
    """Started when somebody connects to its socket."""


class Child:
    """The life of one program, started with its listeners.

    `tick` does what is due; the caller polls `pidfd` and the store, and `activator` while IDLE.
    """

    def __init__(
        self,
        program: Program,
        notify: str,
        listeners: list[tuple[str, socket.socket]],
        store: DescriptorStore | None = None,
    ) -> None:
        """store: what a life of it under another supervisor has left."""
        self.program = program
        self.name = program.name
        self.state = State.IDLE if program.activation else State.STOPPED
        self.pid = 0
        self.pidfd = -1
        self.start_time = 0
        self.restarts = 0
        self.status = ""
        self.due: float | None = None
        """When `tick` has something to do (monotonic)."""
        self.store = DescriptorStore() if store is None else store
        self._notify = notify
        self.listeners = listeners
        self._born = 0.0
        self._delay = 0.0
        self._killing = False
        self._gate = -1

    @property
    def activator(self) -> socket.socket | None:
        """Whose readability starts it; None for what always runs."""
        return self.listeners[0][1] if self.program.activation else None

    def uptime(self) -> float:
        """Seconds of the present life, 0 if there is none."""
        return time.monotonic() - self._born if self.pid else 0.0

    def start(self) -> None:
        """Fork it; it does nothing before `recorded`. Tried again later if that can't be now."""
        try:
            self._fork()
        except OSError as exc:
            logger.warning("cannot start %s now: %s", self.name, exc)
            self._wait(0.0, ready=False)
            return
        self.start_time = start_time(self.pid)
        self.state = State.STARTING
        self.status = ""
        self._born = time.monotonic()
        self._killing = False
        self.due = self._born + (_PROBE if self.program.port else READY_TIMEOUT)

    def _fork(self) -> None:
        descriptors = [(name, made.fileno()) for name, made in self.listeners]
        descriptors += self.store.items()
        watchdog = 0.0 if self.program.command else WATCHDOG
        gate, opened = os.pipe()
        pid = 0
        try:
            pid = os.fork()
            if pid == 0:
                os.close(opened)
                become(self.program, descriptors, self._notify, watchdog, gate)
            self.pidfd = os.pidfd_open(pid)
        except OSError:
            os.close(opened)
            if pid:
                # It ends: it never heard that it may begin.
                os.waitpid(pid, 0)
            raise
        finally:
            os.close(gate)
        self.pid, self._gate = pid, opened

    def recorded(self) -> None:
        """Whoever supervises next will find it: it may begin."""
        if self._gate >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._gate, b"!")
            os.close(self._gate)
            self._gate = -1

    def notified(self, notification: Notification) -> None:
        """What the child says of itself; the descriptors it sends are ours to keep or close."""
        fields = notification.fields
        if not self.store.told(fields, notification.descriptors):
            logger.warning("%s stores too many descriptors", self.name)
        if "STATUS" in fields:
            self.status = fields["STATUS"]
        if fields.get("READY") == "1" and self.state is State.STARTING:
            self._ready()
        if fields.get("WATCHDOG") == "1" and self.state is State.READY:
            self.due = time.monotonic() + WATCHDOG

    def stop(self) -> None:
        """Ask it to end; killed if it has not after STOP_TIMEOUT."""
        if self.state in (State.WAITING, State.IDLE):
            self.state, self.due = State.STOPPED, None
        if not self.pid or self.state is State.STOPPING:
            return
        self.state = State.STOPPING
        self.due = time.monotonic() + STOP_TIMEOUT
        self._signal(signal.SIGTERM)
        # It may have been stopped (SIGSTOP); only a running process can end by itself.
        self._signal(signal.SIGCONT)

    def exited(self) -> None:
        """Its pidfd is readable: collect it, and decide when it is started again."""
        _, status = os.waitpid(self.pid, 0)
        life = self.uptime()
        os.close(self.pidfd)
        self.pid, self.pidfd = 0, -1
        if self.state is State.STOPPING:
            self.state, self.due = State.STOPPED, None
            return
        if self.program.activation and status == 0:
            self.state, self.due = State.IDLE, None
            return
        logger.warning("%s %s after %.1f s, starting it again", self.name, how(status), life)
        self.restarts += 1
        self._wait(life, ready=self.state is State.READY)

    def _wait(self, life: float, *, ready: bool) -> None:
        pause, self._delay = pauses(self._delay, life, ready=ready)
        self.state = State.WAITING
        self.due = time.monotonic() + pause

    def tick(self) -> None:
        """Do what is due."""
        if self.state is State.WAITING:
            self.start()
        elif self.state is State.STARTING and self.program.port:
            self._probe()
        elif self.state is State.STOPPING or self._killing:
            self._signal(signal.SIGKILL)
            self.due = None
        elif self.state in (State.STARTING, State.READY):
            logger.error("%s does not answer, ending it", self.name)
            # The core dump of SIGABRT tells where it hung.
            self._signal(signal.SIGABRT)
            self._killing = True
            self.due = time.monotonic() + ABORT_TIMEOUT

    def _probe(self) -> None:
        with socket.socket() as probe:
            probe.settimeout(0.2)
            try:
                probe.connect(("127.0.0.1", self.program.port))
            except OSError:
                if self.uptime() > READY_TIMEOUT:
                    self._signal(signal.SIGKILL)
                self.due = time.monotonic() + _PROBE
            else:
                self._ready()

    def _ready(self) -> None:
        self.state = State.READY
        self.due = None if self.program.command else time.monotonic() + WATCHDOG

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)


def how(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        return f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exited with status {os.waitstatus_to_exitcode(status)}"


def start_time(pid: int) -> int:
    """Field 22 of /proc/<pid>/stat: with the pid it names a process for ever; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def pauses(delay: float, life: float, *, ready: bool) -> tuple[float, float]:
    """Seconds until a service that ended after `life` seconds is started again, and its next delay.

    delay: as returned when it ended before, at first 0; ready: whether it got as far.
    """
    now = 0.0 if ready and life >= GOOD_LIFE else delay
    return now, min(max(FIRST_DELAY, now * 2), LONGEST_DELAY)

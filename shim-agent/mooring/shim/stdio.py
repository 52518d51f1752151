"""Output of a process in a container: pipes and a pty into its log, and who waits for more."""

from __future__ import annotations

import os
from errno import EIO
from fcntl import F_SETPIPE_SZ, fcntl, ioctl
from time import monotonic, sleep

from .frames import STDERR
from .log import LogWriter
from .loop import EDGE, GONE, READ, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .control import Connection

FIONREAD = 0x541B
_PIPE_BYTES = 1 << 20
_FULL = 64 << 10
"""A pipe's size at first; one that was full is given _PIPE_BYTES."""
_RETRY_SECONDS = 0.25
_STREAK = 16
_IN_A_ROW_SECONDS = 0.002
_GATHER_SECONDS = 0.001
_NONBLOCK = os.SPLICE_F_NONBLOCK


class Recorder:
    """A log, the outputs that go into it, and connections to be told once that it has grown.

    `bound`: how many bytes may be unread (beyond `trim`) before the outputs are left waiting.
    """

    __slots__ = (
        "_loop",
        "_waiting",
        "_watchers",
        "bound",
        "error",
        "log",
        "name",
        "on_drained",
        "on_surplus",
        "outputs",
        "trimmed",
    )

    def __init__(self, loop: Loop, log: LogWriter, name: str = "", bound: int = 0) -> None:
        self.log = log
        self.name = name
        """The exec whose output this is; empty for the container's own."""
        self.bound = bound
        self.trimmed = log.end
        self.outputs: list[Output] = []
        self.error: OSError | None = None
        """Why nothing can be written just now."""
        self._loop = loop
        self._waiting = False
        self._watchers: list[tuple[int, Connection]] = []
        self.on_drained: Callable[[], None] | None = None
        self.on_surplus: Callable[[], None] | None = None
        """Called when the log has grown, and is larger than its limits."""

    def add(self, stream: int, fd: int, inlet: int = -1, master: int = -1) -> None:
        """Record what comes out of the pipe `fd`; for a pty, the pipe is filled from `master`."""
        self.outputs.append(Output(self, self._loop, stream, fd, inlet, master))

    def start(self) -> None:
        """Begin, or go on, reading."""
        self._waiting = False
        self.error = None
        for output in self.outputs:
            output.watch()

    def mend(self) -> None:
        """A frame that another shim was killed at: what is missing of it is still in its pipe."""
        log = self.log
        for output in self.outputs:
            if output.stream == log.torn:
                log.complete(output.fd)
        log.cut()

    def descriptors(self) -> dict[str, int]:
        """What a successor would need to go on reading."""
        fds: dict[str, int] = {}
        for output in self.outputs:
            if output.master >= 0:
                fds |= {"outlet": output.fd, "inlet": output.inlet, "master": output.master}
            elif output.fd >= 0:
                fds["stderr" if output.stream == STDERR else "stdout"] = output.fd
        return fds

    def arm(self, after: int, connection: Connection) -> None:
        """Tell `connection` once, as soon as the log's end is beyond `after`."""
        self.disarm(connection)
        if self.log.end > after:
            self._tell(connection)
        else:
            self._watchers.append((after, connection))

    def disarm(self, connection: Connection) -> None:
        """Forget what this connection wanted to be told."""
        if self._watchers:
            self._watchers = [w for w in self._watchers if w[1] is not connection]

    def moved(self) -> None:
        """The log has grown."""
        if self._watchers:
            self.notify()
        if self.bound:
            unread = self.log.end - self.trimmed
            if unread > self.bound:
                self._wait()
            elif unread < 0:
                self.log.trim(self.log.end)
        elif self.on_surplus is not None and self.log.surplus:
            self.on_surplus()

    def block(self, full: bool) -> None:
        """Leave the outputs unread while the log is `full`."""
        if full:
            self._wait()
        elif self._waiting and self.error is None:
            self.start()

    def notify(self) -> None:
        """Tell and disarm the watchers that the log's end has passed."""
        end = self.log.end
        due = [w for w in self._watchers if w[0] < end]
        self._watchers = [w for w in self._watchers if w[0] >= end]
        for _, connection in due:
            self._tell(connection)

    def trim(self, offset: int) -> None:
        """Everything below `offset` was read, or (beyond the end) never will be."""
        self.trimmed = max(self.trimmed, offset)
        self.log.trim(self.trimmed)
        if self._waiting and self.error is None and self.log.end - self.trimmed <= self.bound:
            self.start()

    def hold(self, error: OSError) -> None:
        """The log can't be written: the process blocks in its write until it can again."""
        self.error = error
        self._wait()
        self._loop.later(_RETRY_SECONDS, self.start)

    def ended(self) -> None:
        """One of the outputs came to its end."""
        if self.on_drained is not None and self.drained:
            self.on_drained()

    @property
    def waiting(self) -> bool:
        """The outputs are left unread for now."""
        return self._waiting

    @property
    def drained(self) -> bool:
        """Every output has come to its end."""
        return all(output.ended for output in self.outputs)

    def close(self) -> None:
        """Stop reading and close everything."""
        self._loop.never(self.start)
        for output in self.outputs:
            output.close()
        self.log.close()

    def _tell(self, connection: Connection) -> None:
        event: dict[str, object] = {"event": "log", "end": self.log.end}
        if self.name:
            event["exec"] = self.name
        connection.send(event)

    def _wait(self) -> None:
        self._waiting = True
        for output in self.outputs:
            output.leave()


class Output:
    """One stream of output. `ended`: nobody holds its other end any more."""

    __slots__ = (
        "_grown",
        "_last",
        "_loop",
        "_number",
        "_recorder",
        "_streak",
        "ended",
        "fd",
        "inlet",
        "master",
        "stream",
    )

    def __init__(
        self, recorder: Recorder, loop: Loop, stream: int, fd: int, inlet: int, master: int
    ) -> None:
        self.stream = stream
        self.fd = fd
        self.inlet = inlet
        self.master = master
        self.ended = False
        self._recorder = recorder
        self._loop = loop
        self._grown = False
        self._streak = 0
        self._last = 0.0
        self._number = bytearray(4)

    def watch(self) -> None:
        """Have the loop call when there is something to read."""
        if self.master >= 0:
            # A pty whose other side is closed for now is opened again by anyone who opens the
            # terminal: at its edges, the hang-up is told once instead of for ever.
            self._loop.watch(self.master, READ | EDGE, self._terminal_ready)
        elif self.fd >= 0:
            self._loop.watch(self.fd, READ, self._pipe_ready)

    def leave(self) -> None:
        """Leave unread what comes."""
        self._loop.forget(self.fd if self.master < 0 else self.master)

    def close(self) -> None:
        """Close the pipe; the master of a pty belongs to the process."""
        self.leave()
        for fd in (self.fd, self.inlet):
            if fd >= 0:
                os.close(fd)
        self.fd = self.inlet = self.master = -1
        self.ended = True

    def available(self) -> int:
        """Bytes in the pipe."""
        ioctl(self.fd, FIONREAD, self._number)
        return int.from_bytes(self._number, "little")

    def _pipe_ready(self, events: int) -> None:
        size = self.available()
        if size < _FULL and size:
            # Many small writes in a row: let them gather, a frame costs the same whatever it holds.
            now = monotonic()
            if now - self._last > _IN_A_ROW_SECONDS:
                self._streak = 0
            self._streak += 1
            if self._streak > _STREAK:
                sleep(_GATHER_SECONDS)
                size = self.available() or size
                now += _GATHER_SECONDS
            self._last = now
        if size:
            self._take(size)
        elif events & GONE:
            self.close()
            self._recorder.ended()

    def _terminal_ready(self, events: int) -> None:
        while self._recorder.error is None and self.master >= 0:
            more = self._fill()
            size = self.available()
            if size:
                self._take(size)
            elif not more:
                return

    def _fill(self) -> bool:
        """Move what the pty has into the pipe; whether there was anything."""
        try:
            moved = os.splice(self.master, self.inlet, 16 << 10, flags=_NONBLOCK)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != EIO:
                raise
            moved = 0
        if not moved and not self.ended:
            self.ended = True
            self._recorder.ended()
        self.ended = not moved
        return moved > 0

    def _take(self, size: int) -> None:
        if size >= _FULL and not self._grown:
            self._grown = True
            try:
                fcntl(self.fd, F_SETPIPE_SZ, _PIPE_BYTES)
            except OSError:
                pass  # Over the limit of this user: the pipe stays as it is.
        try:
            self._recorder.log.take(self.fd, self.stream, size)
        except OSError as error:
            self._recorder.hold(error)
        else:
            self._recorder.moved()

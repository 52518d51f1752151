"""Output of a process in a container: pipes and a pty into its log, and who waits for more.

Writing to a file takes time, and the pipe that is read for it is locked meanwhile: a process that
prints at full speed waits at each of its writes. So such a pipe is emptied into a **lane**, a pipe
of our own, which takes no copy and no time, and the file is written from there. A lane is used once
the agent has a duplicate of it, as it has of everything a successor needs:

    shim                          agent
      | --- lane, out, in -------> |   keeps it, also for the agent after it
      | <-- lane ----------------- |
"""

from __future__ import annotations

import os
from errno import EIO
from fcntl import F_SETPIPE_SZ, fcntl, ioctl
from time import monotonic, sleep

from .frames import STDERR, STDOUT
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
NAMES = {STDOUT: "stdout", STDERR: "stderr"}


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
        "on_flood",
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
        self.on_flood: Callable[[Output], None] | None = None
        """Called once for an output that had filled its pipe."""

    def add(self, stream: int, source: int, lane: tuple[int, int] = (-1, -1)) -> None:
        """Record what comes out of the pipe `source`, by way of a lane (outlet, inlet) if any."""
        self.outputs.append(Output(self, self._loop, stream, source, lane, terminal=False))

    def add_terminal(self, master: int, lane: tuple[int, int]) -> None:
        """Record what comes out of a pty: it goes through a lane always."""
        self.outputs.append(Output(self, self._loop, STDOUT, master, lane, terminal=True))

    def start(self) -> None:
        """Begin, or go on, reading."""
        self._waiting = False
        self.error = None
        for output in self.outputs:
            if not self._waiting:
                output.watch()

    def mend(self) -> None:
        """A frame that another shim was killed at: what is missing of it is still in its pipe."""
        log = self.log
        for output in self.outputs:
            if output.stream == log.torn:
                # Of a frame begun without a lane, none of it is in the lane.
                log.complete(*output.pipes)
        log.cut()

    def descriptors(self) -> dict[str, int]:
        """What a successor would need to go on reading."""
        fds: dict[str, int] = {}
        for output in self.outputs:
            fds |= output.descriptors()
        return fds

    def use_lane(self, stream: int) -> None:
        """Whoever goes on, should this process be killed, has the lane of this stream."""
        for output in self.outputs:
            if output.stream == stream:
                output.use_lane()

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
        "_flooded",
        "_lane_used",
        "_last",
        "_loop",
        "_number",
        "_recorder",
        "_streak",
        "_terminal",
        "ended",
        "inlet",
        "outlet",
        "source",
        "stream",
    )

    def __init__(
        self,
        recorder: Recorder,
        loop: Loop,
        stream: int,
        source: int,
        lane: tuple[int, int],
        *,
        terminal: bool,
    ) -> None:
        """source: the pipe, or the master of a pty. lane: its outlet and inlet, or -1."""
        self.stream = stream
        self.source = source
        self.outlet, self.inlet = lane
        self.ended = False
        self._recorder = recorder
        self._loop = loop
        self._terminal = terminal
        self._lane_used = self._flooded = self.outlet >= 0
        self._streak = 0
        self._last = 0.0
        self._number = bytearray(4)

    def descriptors(self) -> dict[str, int]:
        """What a successor would need, by name."""
        if self.source < 0:
            return {}
        if self._terminal:
            return {"outlet": self.outlet, "inlet": self.inlet, "master": self.source}
        name = NAMES[self.stream]
        return {name: self.source, **self.lane()}

    def lane(self) -> dict[str, int]:
        """Its lane, by name; nothing if it has none."""
        if self.outlet < 0:
            return {}
        name = NAMES[self.stream]
        return {f"{name}_outlet": self.outlet, f"{name}_inlet": self.inlet}

    def make_lane(self) -> None:
        """Have a lane, to be used when somebody else has it as well. OSError."""
        self.outlet, self.inlet = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        _widen(self.inlet)

    def use_lane(self) -> None:
        """From now on, or from before on."""
        self._lane_used = self.outlet >= 0

    @property
    def pipes(self) -> list[int]:
        """Where bytes may be that are not in the log, the next ones first."""
        source = -1 if self._terminal else self.source
        return [fd for fd in (self.outlet, source) if fd >= 0]

    def watch(self) -> None:
        """Have the loop call when there is something to read."""
        if self.source < 0:
            return
        if self._terminal:
            # A pty whose other side is closed for now is opened again by anyone who opens the
            # terminal: at its edges, the hang-up is told once instead of for ever.
            self._loop.watch(self.source, READ | EDGE, self._terminal_ready)
        else:
            self._loop.watch(self.source, READ, self._pipe_ready)
        if self._lane_used:
            # What had no room when it was read.
            self._empty_lane()

    def leave(self) -> None:
        """Leave unread what comes."""
        self._loop.forget(self.source)

    def close(self) -> None:
        """Close the pipes; the master of a pty belongs to the process."""
        self.leave()
        owned = (self.outlet, self.inlet, -1 if self._terminal else self.source)
        for fd in owned:
            if fd >= 0:
                os.close(fd)
        self.outlet = self.inlet = self.source = -1
        self.ended = True

    def available(self) -> int:
        """Bytes that are on their way into the log."""
        return sum(map(self._bytes_in, self.pipes))

    def _bytes_in(self, fd: int) -> int:
        ioctl(fd, FIONREAD, self._number)
        return int.from_bytes(self._number, "little")

    def _pipe_ready(self, events: int) -> None:
        size = self._bytes_in(self.source)
        if size < _FULL and size:
            # Many small writes in a row: let them gather, a frame costs the same whatever it holds.
            now = monotonic()
            if now - self._last > _IN_A_ROW_SECONDS:
                self._streak = 0
            self._streak += 1
            if self._streak > _STREAK:
                sleep(_GATHER_SECONDS)
                size = self._bytes_in(self.source) or size
                now += _GATHER_SECONDS
            self._last = now
        if size and self._lane_used:
            self._fill_lane(size)
            self._empty_lane()
        elif size:
            if size >= _FULL and not self._flooded:
                self._flood()
            self._take(self.source, size)
        elif events & GONE:
            self.close()
            self._recorder.ended()

    def _flood(self) -> None:
        self._flooded = True
        _widen(self.source)
        if self._recorder.on_flood is not None:
            self._recorder.on_flood(self)

    def _fill_lane(self, size: int) -> None:
        try:
            os.splice(self.source, self.inlet, size, flags=_NONBLOCK)
        except BlockingIOError:
            pass  # The container has read its own output, through /proc.

    def _empty_lane(self) -> None:
        # A frame may take less than there is: the rest is for the next one.
        while not self._recorder.waiting and (size := self._bytes_in(self.outlet)):
            self._take(self.outlet, size)

    def _terminal_ready(self, events: int) -> None:
        while not self._recorder.waiting and self.source >= 0:
            more = self._fill()
            size = self._bytes_in(self.outlet)
            if size:
                self._take(self.outlet, size)
            elif not more:
                return

    def _fill(self) -> bool:
        """Move what the pty has into the pipe; whether there was anything."""
        try:
            moved = os.splice(self.source, self.inlet, 16 << 10, flags=_NONBLOCK)
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

    def _take(self, pipe: int, size: int) -> None:
        try:
            self._recorder.log.take(pipe, self.stream, size)
        except OSError as error:
            self._recorder.hold(error)
        else:
            self._recorder.moved()


def _widen(pipe: int) -> None:
    try:
        fcntl(pipe, F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        pass  # Over the limit of this user: the pipe stays as it is.

"""What rotation must not delete yet: the log from the slowest attached reader on.

Who reads is the agent's to know, and a shim that sleeps is not woken to be told. So a shim asks,
once, when it is about to delete for the first time; from then on its agent tells what changes:

    shim                         agent
      | --- press ---------------> |      a segment is about to go
      | <-- pin {reader: offset} - |      all of them, and again whenever one went on, came or went

Until it is answered everything is kept, and for a while after an agent has gone what that one had
pinned: its readers come back by the same names. An agent that comes after the question does not
know all of them yet, so its word does not stand for an answer.
"""

from __future__ import annotations

from time import monotonic

from .log import FREE, SURPLUS_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .control import Connection, Listener
    from .loop import Loop
    from .stdio import Recorder

LEASE_SECONDS = 30.0
"""How long pins outlive their agent, and a question is waited for."""


class Pins:
    """The readers of one container's log, by the connection that told of them."""

    __slots__ = (
        "_freed",
        "_leases",
        "_listener",
        "_loop",
        "_patience",
        "_pins",
        "_recorder",
        "_told",
        "asked",
    )

    def __init__(self, loop: Loop, recorder: Recorder, listener: Listener) -> None:
        self._loop = loop
        self._recorder = recorder
        self._listener = listener
        self._pins: dict[Connection, dict[str, int]] = {}
        self._leases: dict[str, tuple[int, float]] = {}
        self.asked = False
        """Whether agents are to tell of readers without being asked again."""
        self._told: list[Connection] = []
        """Those that were asked."""
        self._patience = 0.0
        """Until when all is kept, as nobody said who reads."""
        self._freed = False
        recorder.log.hold = 0
        recorder.on_surplus = self._pressed

    def pin(self, connection: Connection, readers: dict[str, int]) -> int:
        """All readers that this agent knows of, and how far each is; where the log begins."""
        self._pins[connection] = readers
        if connection in self._told:
            self._patience = 0.0
        for name in readers:
            self._leases.pop(name, None)
        self._settle()
        return self._recorder.log.first

    def left(self, connection: Connection) -> None:
        """An agent is gone. Its readers get time to come back."""
        readers = self._pins.pop(connection, None)
        if readers is not None:
            until = monotonic() + LEASE_SECONDS
            self._leases |= {name: (offset, until) for name, offset in readers.items()}
            self._loop.later(LEASE_SECONDS, self._expire)
            self._settle()

    def free(self) -> None:
        """The container has ended: what its pipes hold is to be read, whoever is how far."""
        self._freed = True
        self._recorder.block(False)

    def _pressed(self) -> None:
        if not self.asked:
            self.asked = True
            self._told = self._listener.connections[:]
            self._patience = monotonic() + LEASE_SECONDS
            self._loop.later(LEASE_SECONDS, self._expire)
            self._listener.tell({"event": "press"})
        self._settle()

    def _expire(self) -> None:
        now = monotonic()
        self._leases = {name: one for name, one in self._leases.items() if one[1] > now}
        ends = [until for _, until in self._leases.values()]
        if self._patience > now:
            ends.append(self._patience)
        if ends:
            self._loop.later(min(ends) - now, self._expire)
        self._settle()

    def _lowest(self) -> int:
        if monotonic() < self._patience:
            return 0
        offsets = [offset for offset, _ in self._leases.values()]
        for readers in self._pins.values():
            offsets += readers.values()
        return min(offsets, default=FREE)

    def _settle(self) -> None:
        log = self._recorder.log
        log.hold = self._lowest()
        log.shed()
        if not self._freed:
            self._recorder.block(log.surplus > SURPLUS_BYTES)

"""How execs begin: by a machine, or by a helper where that can't do it.

A machine may be made before anybody asks for the exec's start: it waits in the container, and has
executed nothing there.
"""

from __future__ import annotations

from .helper import Helper
from .loop import READ
from .packets import parse
from .processes import Streams, fork_mark
from .record import fault
from .warm import read, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from mooring.runtime.oci.container import Running
    from mooring.runtime.oci.entering import Entering

    from .execs import Exec
    from .helper import Ask, Result
    from .loop import Loop

    Fields = dict[str, Any]

PREPARED = 8
"""How many machines wait at most: who makes execs and starts none gets no more than these."""
PREPARED_SECONDS = 2.0
"""How long one waits for the start command, which most clients send at once."""
_WORKING = ("process", "tty", "stdin", "output", "seccomp", "console_size")


class _Prepared:
    """A machine that waits in the container with its streams, and what it was made for."""

    __slots__ = ("entering", "expire", "fields", "streams")

    def __init__(
        self, fields: Fields, streams: Streams, entering: Entering, expire: Callable[[], None]
    ) -> None:
        self.fields = fields
        self.streams = streams
        self.entering = entering
        self.expire = expire
        """Called when nobody has started it in time."""


class Beginnings:
    """The starts of a container's execs."""

    __slots__ = ("_loop", "_oci", "_prepared", "_record", "_running")

    def __init__(
        self, oci: Any, loop: Loop, record: Fields, running: Callable[[], Running]
    ) -> None:
        """record: shim.json. running: the container, when it is needed."""
        self._oci = oci
        self._loop = loop
        self._record = record
        self._running = running
        self._prepared: dict[str, _Prepared] = {}

    def prepare(self, ident: str, request: Fields) -> None:
        """Make the machine of an exec that is likely to be started soon."""
        if ident in self._prepared or len(self._prepared) >= PREPARED:
            return
        streams, entering = self._make(request, early=True)
        if entering is None:
            streams.close()
            return

        def expire() -> None:
            self._abandon(ident)

        self._prepared[ident] = _Prepared(_working(request), streams, entering, expire)
        # A step may have failed. Or it is killed with the container's init, which does not end
        # before its dead are buried.
        self._loop.watch(entering.channel, READ, lambda _: expire())
        self._loop.later(PREPARED_SECONDS, expire)

    @property
    def prepared(self) -> set[int]:
        """The processes that wait; nobody has asked for them yet."""
        return {prepared.entering.pid for prepared in self._prepared.values()}

    def abandon(self) -> None:
        """Nobody is to start what was prepared."""
        for ident in list(self._prepared):
            self._abandon(ident)

    def begin(
        self,
        entry: Exec,
        request: Fields,
        about_to: Callable[[dict[str, int]], None],
        failed: Callable[[], object],
    ) -> None:
        """Start a process in the container; what the machine can't do, a helper does.

        about_to is called with its descriptors before anything is executed: from then on
        somebody else can go on with it, so it is not to be started a second time. failed is called
        if there is no process in the end.
        """
        streams, entering = self._machine(entry.id, request)
        wants_input = bool(request.get("stdin"))

        def done(result: Fields, fds: list[int]) -> None:
            if "error" in result:
                streams.close()
                failed()
                entry.discard()
            else:
                streams.close_child()
                entry.started(streams, result["pid"], _named(fds), wants_input)
            entry.announce(result)

        def hand_over(pid: int, unexecuted: str, fds: list[int], go: Callable[[], None]) -> None:
            # Recorded once somebody has them: what is found is what a successor is handed.
            about_to({**_named(fds), **streams.ours})
            fault("shim.exec.handed")
            entry.record(pid, wants_input, unexecuted)
            fault("shim.exec.recorded")
            go()
            fault("shim.exec.gone")

        def asked(fields: Fields, fds: list[int], go: Callable[[], None]) -> None:
            hand_over(fields["pid"], fork_mark(fields["pid"]), fds, go)

        def help_it() -> None:
            Helper(self._loop, self._work(request, streams), asked, done)

        def entered(events: int) -> None:
            assert entering is not None
            self._loop.forget(entering.channel)
            if entering.executed():
                done({"pid": entering.pid}, [entering.pidfd])
                return
            try:
                help_it()
            except OSError as error:
                # No room for a process more is no reason for this one to end.
                done(refused(error), [])

        try:
            entry.open(bool(request.get("output", True)))
            if entering is None:
                help_it()
            else:
                unexecuted = self._oci.UNEXECUTED
                hand_over(entering.pid, unexecuted, [entering.pidfd], entering.go)
        except BaseException:
            if entering is not None:
                entering.abandon()
            streams.close()
            entry.discard()
            raise
        if entering is not None:
            self._loop.watch(entering.channel, READ, entered)

    def _machine(self, ident: str, request: Fields) -> tuple[Streams, Entering | None]:
        prepared = self._prepared.get(ident)
        if prepared is not None:
            if prepared.fields == _working(request):
                self._take(ident)
                return prepared.streams, prepared.entering
            self._abandon(ident)
        return self._make(request)

    def _make(self, request: Fields, *, early: bool = False) -> tuple[Streams, Entering | None]:
        wants_output = bool(request.get("output", True))
        streams = Streams(bool(request["tty"]), bool(request.get("stdin")), wants_output)
        try:
            filter_ = self._filter(request)
            entering: Entering | None = self._oci.enter(
                self._running(), request["process"], streams.child, filter_, early=early
            )
        except BaseException:
            streams.close()
            raise
        return streams, entering

    def _work(self, request: Fields, streams: Streams) -> Callable[[Ask], Result]:
        """What a helper does instead of a machine."""
        running, filter_ = self._running(), self._filter(request)
        size = request.get("console_size")

        def work(ask: Ask) -> Result:
            def before_exec(pid: int, pidfd: int, master: int | None) -> None:
                ask({"pid": pid}, [pidfd] if master is None else [pidfd, master])

            stdin, stdout, stderr = streams.child
            process = self._oci.exec_process(
                running,
                parse(read(self._record["bundle"] + "/config.json")),
                request["process"],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                console_size=tuple(size) if size else None,
                seccomp=filter_,
                before_exec=before_exec,
            )
            fds = [process.pidfd] + ([process.master] if process.master is not None else [])
            return {"pid": process.pid}, fds

        return work

    def _filter(self, request: Fields) -> bytes | None:
        path = request["seccomp"] if "seccomp" in request else self._record["seccomp"]
        return read(path) if path else None

    def _abandon(self, ident: str) -> None:
        prepared = self._take(ident)
        prepared.entering.abandon()
        prepared.streams.close()

    def _take(self, ident: str) -> _Prepared:
        prepared = self._prepared.pop(ident)
        self._loop.forget(prepared.entering.channel)
        self._loop.never(prepared.expire)
        return prepared


def _named(fds: list[int]) -> dict[str, int]:
    """A process's descriptors by name: with a terminal there are two."""
    return dict(zip(("pidfd", "master"), fds, strict=False))


def _working(request: Fields) -> Fields:
    """What makes a difference to the process."""
    return {key: request[key] for key in _WORKING if key in request}

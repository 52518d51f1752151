"""What a container or an exec printed, as a stream: a cursor over the log, woken by the shim.

Offsets are the log's own, so a stream that broke for whatever reason is opened again at its byte.
"""

from __future__ import annotations

import asyncio
import os

from mooring.kit.errors import NotFound
from mooring.kit.models.host import OpenStream
from mooring.kit.streams import Moved, Source

from . import holding
from .logread import LogReader, RotatedAway
from .pinned import PinnedLog
from .runs import Container, Containers, Exec, Run
from .shims import Shims
from .work import Work

TRIM_EVERY = 4 << 20
"""Bytes that a reader of an exec goes on before what it has read is given up."""
PIN_EVERY = 1 << 20
"""Bytes that an attached reader goes on before what it has read is given up."""
TRIM_BEHIND = 2 << 20
"""Bytes that are kept for a reader that resumes: more than a stream has in flight."""
EXEC_SECONDS = 30.0
"""How long a stream waits for its exec to be started."""
REOPEN_SECONDS = 30.0
"""How long an exec's output waits for a reader that broke off."""


class Outputs:
    """Opens the streams of this host."""

    def __init__(self, state_dir: str, containers: Containers, shims: Shims, work: Work) -> None:
        self._state_dir = state_dir
        self._containers = containers
        self._shims = shims
        self._work = work

    async def open(self, request: OpenStream) -> tuple[Source, int]:
        """The source that a request names, and the offset that it begins at."""
        container = self._containers.get(request.id)
        if container.latest is None:
            self._shims.look(request.id)
        if request.exec_id:
            return self._open_exec(container, request)
        reader = LogReader(f"{self._state_dir}/containers/{request.id}/log")
        until = request.until_run or container.latest_number
        source = LogSource(container, reader, until, request.reader)
        try:
            if request.reader:
                # Its place is looked for while all that is there stays.
                await holding.settle(container)
            begin, head = _begin(reader, container, request)
            if request.offset is not None and self._shims.was_removed(request.id, begin):
                raise NotFound(f"No such container: {request.id}")
            source.place(begin, head, None if request.follow else reader.end())
            if request.follow and request.at_run is None:
                source.look(self._shims.directory_of(request.id, until))
        except BaseException:
            await source.close()
            raise
        return source, begin

    def _open_exec(self, container: Container, request: OpenStream) -> tuple[Source, int]:
        source = ExecSource(container, request.exec_id, request.run, self._work)
        return source, request.offset or 0


class LogSource:
    """The log of a container, to the end of the run `until`; `name`: of a reader it is kept for."""

    def __init__(self, container: Container, reader: LogReader, until: int, name: str) -> None:
        self.name = name
        self.needed = 0
        """Below this offset, its reader has everything."""
        self._container = container
        self._reader = reader
        self._until = until
        self._stop: int | None = None
        self._over = False
        """The run was over, and nothing is left of it but its log, when the stream was opened."""
        self._begin = self._offset = 0
        self._instead = b""
        self._pinned: PinnedLog | None = None
        container.users += 1
        if name:
            for former in container.sources:
                if former.name == name:
                    # Its reader has come back here.
                    former.name = ""
        container.sources.add(self)

    def place(self, begin: int, instead: bytes, stop: int | None) -> None:
        """Where it begins, and where it stops, if that is known.

        `instead` is what stands there in place of the log's bytes: a stream that begins inside a
        frame, at one of its lines, needs a frame's header there.
        """
        self._begin = self._offset = self.needed = begin
        self._instead, self._stop = instead, stop

    def look(self, run_directory: str) -> None:
        """Find out whether the run is over of which an agent knows that was started later."""
        if self._until <= self._container.latest_number or os.path.exists(run_directory):
            return
        # A start that was undone, of which the frame that begins the run is left, is made again.
        self._over = self._reader.has_run(self._until)

    async def read(self, offset: int, limit: int) -> bytes:
        """Log bytes from `offset` on; waits for the next ones; empty at the end."""
        self._offset = offset
        if self.name and offset - self.needed >= PIN_EVERY + TRIM_BEHIND:
            self.needed = offset - TRIM_BEHIND
            holding.tell(self._container)
        while self._pinned is None:
            if run := self._container.live:
                self._reader.known_end(run.watch.end)
            stop = self._stop
            if stop is None:
                # Before reading: nothing is written after the end that is found here.
                stop = self._stop = self._end()
            if stop is not None:
                if offset >= stop:
                    return b""
                limit = min(limit, stop - offset)
            data = self._read(offset, limit)
            if data or stop is not None:
                return data
            await self._more(offset)
        return self._pinned.read(offset, limit)

    def pin(self) -> None:
        """The log is about to be deleted: what there is will be read from open files."""
        if self._pinned is None:
            end = self._stop if self._stop is not None else self._reader.end()
            self._pinned = PinnedLog(self._reader.directory, self._offset, end)

    def _read(self, offset: int, limit: int) -> bytes:
        skipped = offset - self._begin
        try:
            data = self._reader.read(offset, limit)
        except RotatedAway as exc:
            # It goes on at what is there.
            raise Moved from exc
        if self._instead and 0 <= skipped < len(self._instead):
            instead = self._instead[skipped : skipped + len(data)]
            return instead + data[len(instead) :]
        return data

    async def close(self) -> None:
        """Nobody reads any more."""
        self._container.users -= 1
        self._container.sources.discard(self)
        if self.name:
            holding.tell(self._container)
        self._reader.close()
        if self._pinned is not None:
            self._pinned.close()

    def _end(self) -> int | None:
        """Where this stream ends, if that is known yet."""
        container = self._container
        run = container.runs.get(self._until)
        if run is not None:
            over = run.exit is not None
        else:
            over = self._over or self._until <= container.latest_number
        if not over:
            return None
        reader = self._reader
        end = reader.end_of_run(self._until) if self._until else None
        if end is None and container.latest_number > self._until:
            # Ended without a word, by a shim that was killed: it ends where the next one begins.
            end = reader.offset_of_run(self._until + 1)
        return reader.end() if end is None else end

    async def _more(self, offset: int) -> None:
        run = self._container.live
        if run is not None:
            await run.watch.beyond(offset)
        else:
            await self._container.changed.wait()


class ExecSource:
    """The output of one exec, which may not have been started yet, to its end."""

    name = ""
    needed = 0

    def __init__(self, container: Container, id_: str, number: int, work: Work) -> None:
        self._container = container
        self._id = id_
        self._number = number
        self._work = work
        self._run: Run | None = None
        self._entry: Exec | None = None
        self._reader: LogReader | None = None
        self._pinned: PinnedLog | None = None
        self._offset = 0
        self._trimmed = 0
        container.users += 1

    async def read(self, offset: int, limit: int) -> bytes:
        """Log bytes from `offset` on; waits for the next ones; empty at the end."""
        self._offset = offset
        entry = self._entry or await self._await_start()
        if entry is None:
            return b""
        while self._pinned is None:
            finished = entry.finished
            self._log().known_end(entry.watch.end)
            data = self._log().read(offset, limit)
            if data:
                self._trim(offset)
                return data
            if finished:
                return b""
            await entry.watch.beyond(offset)
        return self._pinned.read(offset, limit)

    def confirmed(self) -> None:
        """Its reader has all of it: nobody will come back for what there was."""
        if self._entry is not None:
            self._entry.read = True

    def pin(self) -> None:
        """The container has ended, and its run directory with this log will be deleted."""
        if self._pinned is None and self._entry is not None:
            self._pinned = PinnedLog(self._log().directory, self._offset, self._log().end())

    async def close(self) -> None:
        """Nobody reads this stream any more; the exec goes on, and may be read again."""
        container, entry, run = self._container, self._entry, self._run
        container.users -= 1
        for log in (self._reader, self._pinned):
            if log is not None:
                log.close()
        if entry is None or run is None:
            return
        run.sources.discard(self)
        entry.readers -= 1
        container.changed.fire()
        if not entry.finished and not entry.readers:
            self._work.start(_abandon(run, self._id, entry), name=f"abandon {self._id}")

    async def _await_start(self) -> Exec | None:
        """The exec once it runs or is over; None if it never will be."""
        try:
            async with asyncio.timeout(EXEC_SECONDS):
                while (run := self._container.latest) is not None:
                    if self._number not in (0, run.number) or self._id in run.ended_execs:
                        return None
                    entry = run.execs.get(self._id)
                    if entry.error if entry else not run.live:
                        return None
                    if entry is not None and (entry.started or entry.finished):
                        self._run, self._entry = run, entry
                        entry.readers += 1
                        run.sources.add(self)
                        return entry
                    await self._container.changed.wait()
        except TimeoutError:
            raise NotFound(f"No such exec instance: {self._id}") from None
        return None

    def _log(self) -> LogReader:
        if self._reader is None:
            assert self._run is not None
            self._reader = LogReader(f"{self._run.directory}/execs/{self._id}/log")
        return self._reader

    def _trim(self, offset: int) -> None:
        if offset - self._trimmed < TRIM_EVERY:
            return
        self._trimmed = offset
        if self._run is not None and self._run.channel is not None:
            self._run.channel.tell("exec_trim", exec=self._id, offset=offset - TRIM_BEHIND)


async def _abandon(run: Run, id_: str, entry: Exec) -> None:
    """An exec that nobody reads must not block on its output, as it would not under Docker."""
    try:
        async with asyncio.timeout(REOPEN_SECONDS):
            while run.live and not entry.readers and not entry.finished:
                await run.container.changed.wait()
    except TimeoutError:
        if run.channel is not None:
            run.channel.tell("exec_trim", exec=id_, offset=holding.ABANDONED)
            entry.read = True


def _begin(reader: LogReader, container: Container, request: OpenStream) -> tuple[int, bytes]:
    """The offset that a stream of a container's log begins at, and what stands there instead."""
    if request.offset is not None:
        begin = max(request.offset, reader.first())
        return begin, b"" if request.begun else reader.head_within(begin)
    if request.tail is not None:
        return reader.offset_of_tail(request.tail)
    if request.from_end:
        return reader.end(), b""
    if request.at_run is not None:
        return _begin_of_run(reader, container, request.at_run), b""
    if request.since_ns:
        return reader.offset_since(request.since_ns), b""
    return reader.first(), b""


def _begin_of_run(reader: LogReader, container: Container, number: int) -> int:
    """Where a run begins; for one that has not begun, the end of the log: there it will."""
    end = reader.end()
    latest = container.latest_number
    if not end or (latest and number > latest):
        return end
    found = reader.offset_of_run(number)
    return end if found is None else found

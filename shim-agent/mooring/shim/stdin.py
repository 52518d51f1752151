"""Input of a process in a container: chunks of clients' sessions, each byte written once."""

from __future__ import annotations

import os

from .loop import WRITE, Loop
from .staging import Staging

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Answer = Callable[[int, bool], None]
    """Called with the session's bytes written so far, and whether the input is closed."""

_SESSIONS = 64
_CHUNKS = 64


class Gap(Exception):
    """The chunk begins beyond what this session has written; `have` is where it should."""

    def __init__(self, have: int) -> None:
        super().__init__(f"the bytes from offset {have} of this session are missing")
        self.have = have


class Busy(Exception):
    """Too many chunks wait already for the process to read."""


class Input:
    """The write end of a process's stdin (-1: it has none). `once`: the end of a session ends it.

    A pty is never closed this way: it has one descriptor for both directions.
    """

    __slots__ = ("_chunks", "_directory", "_fd", "_loop", "_once", "_sessions", "_stage")

    def __init__(
        self,
        loop: Loop,
        fd: int,
        once: bool,
        directory: str = ".",
        fds: dict[str, int] | None = None,
    ) -> None:
        """directory: of the files that outlive a shim; fds: what a shim before this one had."""
        self._loop = loop
        self._fd = fd
        self._once = once
        self._directory = directory
        self._sessions: dict[str, int] = {}
        self._chunks: list[tuple[str, int, bytes, bool, Answer]] = []
        self._stage: Staging | None = None
        if fd >= 0:
            os.set_blocking(fd, False)
            if fds and "stage_out" in fds:
                self._stage = Staging(f"{directory}/stdin.state", fds)
                self._sessions.update(self._stage.sessions)
                self._pump(0)

    @property
    def fd(self) -> int:
        """The descriptor, -1 if closed."""
        return self._fd

    def descriptors(self) -> dict[str, int]:
        """What a successor would need to go on writing, but for a terminal."""
        if self._fd < 0:
            return {}
        return {"stdin": self._fd, **(self._stage.descriptors() if self._stage else {})}

    def stage(self) -> dict[str, int]:
        """Make what the next bytes go through, if it is not there yet; its descriptors if so."""
        if self._stage is not None or self._fd < 0:
            return {}
        self._stage = Staging(f"{self._directory}/stdin.state", {})
        return self._stage.descriptors()

    def staged(self) -> dict[str, int]:
        """The descriptors of what bytes go through."""
        return self._stage.descriptors() if self._stage is not None else {}

    def write(self, session: str, offset: int, data: bytes, eof: bool, answer: Answer) -> None:
        """Write what this session has not written yet, then answer. Gap, Busy."""
        have = self._sessions.get(session)
        if have is None:
            # New here: it begins where its client says.
            self._remember(session, offset)
        elif offset > have and not any(chunk[0] == session for chunk in self._chunks):
            raise Gap(have)
        if len(self._chunks) >= _CHUNKS:
            raise Busy
        self.stage()
        self._chunks.append((session, offset, data, eof, answer))
        if len(self._chunks) == 1:
            self._pump(0)

    def close(self) -> None:
        """Close the input; chunks that wait are answered as closed."""
        if self._fd >= 0:
            self._loop.forget(self._fd)
            os.close(self._fd)
            self._fd = -1
        if self._stage is not None:
            self._stage.close()
            self._stage = None
        chunks, self._chunks = self._chunks, []
        for session, _, _, _, answer in chunks:
            answer(self._sessions.get(session, 0), True)

    def _remember(self, session: str, offset: int) -> None:
        self._sessions.pop(session, None)
        self._sessions[session] = offset
        if len(self._sessions) > _SESSIONS:
            del self._sessions[next(iter(self._sessions))]

    def _pump(self, events: int) -> None:
        while (stage := self._stage) is not None:
            try:
                if not stage.move(self._fd):
                    self._loop.watch(self._fd, WRITE, self._pump)
                    return
            except OSError:
                break  # EPIPE, or EIO of a pty: nobody will read any more.
            if not self._chunks:
                self._loop.forget(self._fd)
                return
            session, offset, data, eof, answer = self._chunks[0]
            have = self._sessions.get(session, offset)
            rest = memoryview(data)[max(have - offset, 0) :]
            if rest:
                self._remember(session, have + stage.put(session, have, rest))
                continue
            del self._chunks[0]
            if eof and self._once:
                # An agent started after this holds a duplicate, and is to let it go.
                marker = f"{self._directory}/stdin.closed"
                os.close(os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
                self.close()
            answer(have, self._fd < 0)
        self.close()

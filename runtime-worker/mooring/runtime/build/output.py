"""What a build says to its client: lines of JSON, in the words of the classic builder."""

from __future__ import annotations

import asyncio
import json
from collections import deque

_AHEAD = 1 << 20
"""Bytes that may wait for the client before a build waits too."""
_BEHIND = 4 << 20
"""Bytes kept for a reader that opens again: more than a stream has in flight."""
_QUIET = 1 << 20
"""Bytes kept of what a quiet build would have said, for the case that it fails."""
_RED, _PLAIN = "\x1b[91m", "\x1b[0m"


class Output:
    """The lines of one build. Memory is bounded: who writes a lot calls `room` in between."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.started = False
        """Whether anything was said: from then on an error is a line, no HTTP status."""
        self.quiet = quiet
        self._kept: deque[str] = deque()
        self._kept_size = 0
        self._pieces: deque[tuple[int, bytes]] = deque()
        self._end = 0
        self._read = 0
        self._ended = False
        self._changed = asyncio.Event()
        self._drained = asyncio.Event()

    @property
    def silent(self) -> bool:
        """Whether there is nothing that would be said before an error: then it is a status."""
        return not self.started and not self._kept

    # --- the build's side ---

    def say(self, text: str) -> None:
        """Text on the builder's standard output."""
        if self.quiet:
            self._kept.append(text)
            self._kept_size += len(text)
            while self._kept_size > _QUIET:
                self._kept_size -= len(self._kept.popleft())
        else:
            self._line({"stream": text})

    def say_red(self, text: str) -> None:
        """Text on its standard error."""
        self.say(f"{_RED}{text}{_PLAIN}")

    def image_id(self, image_id: str) -> None:
        """What a stage made."""
        if not self.quiet:
            self._line({"aux": {"ID": image_id}})

    def result(self, image_id: str) -> None:
        """All that a quiet build says."""
        if self.quiet:
            self._line({"stream": f"{image_id}\n"})

    def raw(self, data: bytes) -> None:
        """Lines of JSON that are ready, of a pull."""
        if not self.quiet:
            self._append(data)

    def failed(self, message: str, code: int = 0) -> None:
        """Why the build ends here."""
        if self.quiet and self._kept:
            for text in self._kept:
                self._line({"stream": text})
        detail: dict[str, object] = {"code": code} if code else {}
        self._line({"errorDetail": {**detail, "message": message}, "error": message})

    def end(self) -> None:
        """That was all."""
        self._ended = True
        self._changed.set()

    async def room(self) -> None:
        """Wait until the client has read most of what was said."""
        while self._end - self._read > _AHEAD and not self._ended:
            self._drained.clear()
            await self._drained.wait()

    def _line(self, message: dict[str, object]) -> None:
        text = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
        text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
        self._append(text.encode("utf-8", "replace") + b"\r\n")

    def _append(self, data: bytes) -> None:
        self.started = True
        self._pieces.append((self._end, data))
        self._end += len(data)
        self._changed.set()

    # --- the client's side: a Source of kit.streams ---

    async def read(self, offset: int, limit: int) -> bytes:
        """See Source."""
        while offset >= self._end:
            if self._ended:
                return b""
            self._changed.clear()
            await self._changed.wait()
        self._read = max(self._read, offset)
        while self._pieces and self._pieces[0][0] + len(self._pieces[0][1]) < offset - _BEHIND:
            self._pieces.popleft()
        self._drained.set()
        found: list[bytes] = []
        for begin, data in self._pieces:
            if begin + len(data) <= offset:
                continue
            piece = data[max(0, offset - begin) :][:limit]
            found.append(piece)
            limit -= len(piece)
            offset += len(piece)
            if not limit:
                break
        return b"".join(found)

    async def close(self) -> None:
        """See Source; whether another reader comes is for the build to judge."""

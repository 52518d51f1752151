"""Log frames as a client wants them: one stream or two, multiplexed or raw, with timestamps."""

from __future__ import annotations

import struct
import time

from .frames import STDERR, STDOUT, FrameReader, Piece

_MUX = struct.Struct(">BxxxI")
_STATE = struct.Struct("<QIBQBBBBBB")
"""Offset in the log; what is left of the frame there, its stream and time; the flags."""
_ERROR_STREAM = 3
_USUAL = 1024
"""Heads of frames are kept for lines of up to so many bytes."""
_LINES_STEP = 24 * 1024
_FEW_LINES = 4608
"""Lines whose heads leave room for _LINES_STEP bytes in 60 KiB; also a step of lines only."""
_NEWLINE = 10


def multiplexed(stream: int, data: bytes) -> bytes:
    """One frame of Docker's multiplexed stream."""
    return _MUX.pack(stream, len(data)) + data


class _Heads(dict[int, bytes]):
    """The heads of one stream's frames by the length of a line without its newline."""

    def __init__(self, stream: int) -> None:
        super().__init__()
        self._stream = stream

    def __missing__(self, length: int) -> bytes:
        head = _MUX.pack(self._stream, length + 1)
        if length < _USUAL:
            self[length] = head
        return head


_HEADS = {STDOUT: _Heads(STDOUT), STDERR: _Heads(STDERR)}


def by_line(stream: int, payload: bytes | memoryview) -> bytes:
    """A frame for each line, and one for what is left after the last newline."""
    lines = bytes(payload).split(b"\n")
    rest = lines.pop()
    # No step of the interpreter to a line: there are hundreds in a piece.
    parts = [b"\n"] * (3 * len(lines))
    parts[::3] = map(_HEADS[stream].__getitem__, map(len, lines))
    parts[1::3] = lines
    if rest:
        parts.append(multiplexed(stream, rest))
    return b"".join(parts)


def error_text(message: str, *, raw: bool) -> bytes:
    """A message of the engine itself, after the stream has begun."""
    text = message.encode() + b"\n"
    return text if raw else multiplexed(_ERROR_STREAM, text)


def timestamp(time_ns: int) -> str:
    """RFC 3339 with all nine digits, as Docker prints it before a line."""
    whole, fraction = divmod(time_ns, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{fraction:09d}Z"


class Formatter:
    """Turns log bytes into what is sent to one client.

    Payloads are passed whole unless every line needs a prefix, or (lines) a frame of its own, as
    it has in Docker's logs: clients take a frame for a line. Frames outside [since_ns, until_ns]
    are left out; `finished` says that one after until_ns has come.
    """

    def __init__(
        self,
        *,
        raw: bool,
        lines: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        timestamps: bool = False,
        details: str | None = None,
        since_ns: int = 0,
        until_ns: int = 0,
    ) -> None:
        self.finished = False
        self.frames = FrameReader()
        self._raw = raw
        self._lines = lines and not raw
        self._wanted = {STDOUT} if stdout else set()
        if stderr:
            self._wanted.add(STDERR)
        self._timestamps = timestamps
        self._details = details
        self._prefixed = timestamps or details is not None
        self._since_ns = since_ns
        self._until_ns = until_ns
        self._simple = not (self._prefixed or since_ns or until_ns)
        self._cut = False
        self._next: int | None = None
        """The offset of the byte that comes next."""
        self._open_line = False
        """What was sent last is no whole line."""
        self._last = STDOUT
        """The stream that it was of."""
        self._fresh = {STDOUT: True, STDERR: True}
        """By stream: whether the next byte begins a line."""

    def step(self, data: bytes | memoryview) -> int:
        """How much of these bytes of the log comes to at most 60 KiB for the client."""
        if self._prefixed:
            return 1024
        if not self._lines:
            return 48 * 1024
        few = bytes(data[:_LINES_STEP]).count(b"\n") <= _FEW_LINES
        return _LINES_STEP if few else _FEW_LINES

    def state(self, offset: int) -> bytes:
        """How to go on when everything of the log before `offset` was fed; see `restore`."""
        left, stream, time_ns, held = self.frames.position()
        fresh = self._fresh
        flags = fresh[STDOUT], fresh[STDERR], self._cut, self.finished, self._open_line, self._last
        return _STATE.pack(offset - held, left, stream, time_ns, *flags)

    def restore(self, state: bytes) -> int:
        """Go on there; the offset to be fed from."""
        offset, left, stream, time_ns, out, err, cut, finished, line, last = _STATE.unpack(state)
        self.frames.go_on(left, stream, time_ns)
        self._next, self._open_line, self._last = offset, bool(line), last
        self._fresh = {STDOUT: bool(out), STDERR: bool(err)}
        self.finished = bool(finished)
        if cut:
            self.cut_first_line()
        return int(offset)

    def cut_first_line(self) -> None:
        """The log begins where it was rotated, perhaps inside a line: that one is left out."""
        self._cut, self._simple = True, False

    def feed(self, data: bytes | memoryview, offset: int | None = None) -> bytes:
        """The client's bytes for some more bytes of the log; `offset`: of the first of them."""
        out: list[bytes | memoryview] = []
        if offset is not None and offset != self._next:
            if self._next is not None:
                self._skip(offset, out)
            self._next = offset
        if self._next is not None:
            self._next += len(data)
        pieces = self.frames.feed(data)
        if self._simple:
            wanted = self._wanted
            for stream, _, payload, _, _ in pieces:
                if stream in wanted and payload:
                    self._add(stream, payload, out)
        else:
            for piece in pieces:
                self._piece(piece, out)
        if out:
            self._open_line = out[-1][-1] != _NEWLINE
        return b"".join(out)

    def _skip(self, offset: int, out: list[bytes | memoryview]) -> None:
        """The log was rotated away up to `offset`: what was begun ends here."""
        if self._open_line:
            out.append(b"\n" if self._raw else multiplexed(self._last, b"\n"))
        self._fresh = dict.fromkeys(self._fresh, True)
        self.frames = FrameReader(offset)
        self.cut_first_line()

    def _piece(self, piece: Piece, out: list[bytes | memoryview]) -> None:
        stream = piece.stream
        if stream not in self._fresh or not piece.data:
            return
        payload: bytes | memoryview = piece.data
        if self._cut:
            _, newline, payload = bytes(payload).partition(b"\n")
            self._cut = not newline
            if not payload:
                return
        if self._until_ns and piece.time_ns > self._until_ns:
            self.finished = True
            return
        if stream not in self._wanted or piece.time_ns < self._since_ns:
            return
        if self._prefixed:
            payload = self._with_prefix(stream, piece.time_ns, bytes(payload))
        self._add(stream, payload, out)

    def _add(self, stream: int, payload: bytes | memoryview, out: list[bytes | memoryview]) -> None:
        if self._lines:
            payload = by_line(stream, payload)
        elif not self._raw:
            out.append(_MUX.pack(stream, len(payload)))
        out.append(payload)
        self._last = stream

    def _with_prefix(self, stream: int, time_ns: int, payload: bytes) -> bytes:
        prefix = f"{timestamp(time_ns)} " if self._timestamps else ""
        if self._details is not None:
            prefix += f"{self._details} "
        before = prefix.encode()
        ends = payload.endswith(b"\n")
        body = payload[:-1] if ends else payload
        text = body.replace(b"\n", b"\n" + before)
        if self._fresh[stream]:
            text = before + text
        self._fresh[stream] = ends
        return text + b"\n" if ends else text

"""The body of a request as it arrives: by length, or chunked."""

from __future__ import annotations

from typing import Protocol

from .head import BadHead

_MAX_LINE = 4096


class Body(Protocol):
    """Takes what arrives after the head, in pieces of any size."""

    complete: bool

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """The body's bytes in data, and what follows the end of the body."""
        ...


class LengthBody:
    """A body of a stated number of bytes."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.complete = length == 0

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """See Body."""
        if len(data) < self._left:
            self._left -= len(data)
            return [data], b""
        mine, rest = data[: self._left], data[self._left :]
        self._left = 0
        self.complete = True
        return [mine] if mine else [], rest


class ChunkedBody:
    """A body in chunks; extensions and trailers are read and ignored."""

    def __init__(self) -> None:
        self._pending = b""
        self._left = 0
        self._state = "size"
        self.complete = False

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """See Body; BadHead if the framing is broken."""
        pieces: list[bytes] = []
        if self._pending:
            data = self._pending + data
            self._pending = b""
        at = 0
        while not self.complete:
            if self._state == "data":
                piece = data[at : at + self._left]
                if not piece:
                    break
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left == 0:
                    self._state = "crlf"
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                if len(data) - at > _MAX_LINE:
                    raise BadHead("chunk line too long")
                self._pending = data[at:]
                return pieces, b""
            line, at = data[at:end], end + 2
            self._line(line)
        return pieces, data[at:]

    def _line(self, line: bytes) -> None:
        if self._state == "crlf":
            if line:
                raise BadHead("chunk does not end where its size says")
            self._state = "size"
        elif self._state == "trailer":
            self.complete = not line
        else:
            digits = line.split(b";", 1)[0].strip(b" \t")
            if not digits or len(digits) > 15 or digits.strip(b"0123456789abcdefABCDEF"):
                raise BadHead("malformed chunk size")
            self._left = int(digits, 16)
            self._state = "data" if self._left else "trailer"

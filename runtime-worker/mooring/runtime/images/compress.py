"""Telling compressed streams apart by their first bytes, and reading them in bounded pieces."""

from __future__ import annotations

import bz2
import importlib
import lzma
from collections.abc import Callable, Generator
from enum import StrEnum
from typing import BinaryIO, Protocol, cast

Read = Callable[[int], bytes]

_PIECE = 1 << 18
_XZ_MEMORY = 1 << 30
"""A stream that asks for a larger dictionary is refused; `xz -9` needs 65 MiB."""


class Compression(StrEnum):
    """How a layer or an archive is compressed; the value is the suffix of its media type."""

    NONE = ""
    GZIP = "gzip"
    BZIP2 = "bzip2"
    XZ = "xz"
    ZSTD = "zstd"


class CompressionError(ValueError):
    """The compressed stream is damaged or ends too early."""


_MAGIC = (
    (b"\x1f\x8b\x08", Compression.GZIP),
    (b"BZh", Compression.BZIP2),
    (b"\xfd7zXZ\x00", Compression.XZ),
    (b"\x28\xb5\x2f\xfd", Compression.ZSTD),
)


def detect(start: bytes) -> Compression:
    """The compression of a stream that starts with these bytes (6 are enough)."""
    for magic, compression in _MAGIC:
        if start.startswith(magic):
            return compression
    # A skippable zstd frame: 0x184D2A50 to 0x184D2A5F, little-endian.
    if len(start) >= 4 and start[1:4] == b"\x2a\x4d\x18" and start[0] & 0xF0 == 0x50:
        return Compression.ZSTD
    return Compression.NONE


def prepare() -> None:
    """Load now what layers need, for a process that is going to fork or to change its root."""
    for module in ("zstandard", "isal.igzip_lib"):
        importlib.import_module(module)


def peek(read: Read) -> tuple[bytes, Read]:
    """The first bytes of a stream, and a `read` that gives the whole of it."""
    start = b""
    while len(start) < 6:
        piece = read(_PIECE)
        if not piece:
            break
        start += piece
    pending = start

    def again(limit: int) -> bytes:
        nonlocal pending
        if pending:
            piece, pending = pending[:limit], pending[limit:]
            return piece
        return read(limit)

    return start, again


def decompressed(read: Read, compression: Compression) -> Read:
    """A `read` of the decompressed bytes of a stream; it raises CompressionError."""
    if compression is Compression.NONE:
        return read
    if compression is Compression.ZSTD:
        return _zstd(read)
    decoders: dict[Compression, Callable[[], _Decoder]] = {
        Compression.GZIP: _gzip,
        Compression.BZIP2: bz2.BZ2Decompressor,
        Compression.XZ: _xz,
    }
    return _Members(read, decoders[compression], compression).read


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _gzip() -> _Decoder:
    # Loaded where it is used. Three times as fast as zlib, which does most of a pull otherwise.
    from isal import igzip_lib

    return cast(_Decoder, igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP))


def _xz() -> _Decoder:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


class _Members:
    """Several compressed streams one after the other are one, as gzip, bzip2 and xz have it."""

    def __init__(self, read: Read, make: Callable[[], _Decoder], name: str) -> None:
        self._read, self._make, self._name = read, make, name
        self._decoder: _Decoder | None = None
        self._rest = b""

    def read(self, limit: int) -> bytes:
        while True:
            if self._decoder is None and not self._begin():
                return b""
            decoder = self._decoder
            assert decoder is not None
            data = self._rest
            if not data and decoder.needs_input:
                data = self._read(_PIECE)
                if not data:
                    raise CompressionError("unexpected EOF")
            self._rest = b""
            try:
                piece = decoder.decompress(data, limit)
            except Exception as exc:
                # Every library has an error of its own for this.
                raise CompressionError(f"{self._name}: invalid data: {exc}") from exc
            if decoder.eof:
                self._rest = decoder.unused_data
                self._decoder = None
            if piece:
                return piece

    def _begin(self) -> bool:
        """Start on the next member; zeros between and behind them are padding."""
        while True:
            self._rest = self._rest.lstrip(b"\0")
            if self._rest:
                self._decoder = self._make()
                return True
            self._rest = self._read(_PIECE)
            if not self._rest:
                return False


def _zstd(read: Read) -> Read:
    # Loaded for zstd alone: most archives need none of it.
    import zstandard

    frames = _Frames()

    class Stream:
        def read(self, limit: int = -1) -> bytes:
            data = read(_PIECE if limit < 0 else limit)
            frames.follow(data)
            return data

    reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
        cast(BinaryIO, Stream()), read_size=_PIECE, read_across_frames=True
    )

    def pieces(limit: int) -> bytes:
        try:
            piece = reader.read(limit)
        except zstandard.ZstdError as exc:
            raise CompressionError(f"zstd: invalid data: {exc}") from exc
        if not piece and not frames.complete:
            raise CompressionError("unexpected EOF")
        return piece

    return pieces


class _Frames:
    """Follows the frames of a zstd stream: the library does not tell a cut stream from a whole one.

    Only headers are looked at, one of 3 bytes to a block of up to 128 KiB.
    """

    def __init__(self) -> None:
        self._steps = self._walk()
        self._header = bytearray()
        self._want = next(self._steps)
        self._skip = 0
        self.complete = True

    def follow(self, data: bytes) -> None:
        position, end = 0, len(data)
        while position < end:
            if self._skip:
                step = min(self._skip, end - position)
                self._skip -= step
                position += step
                continue
            step = min(self._want - len(self._header), end - position)
            self._header += data[position : position + step]
            position += step
            if len(self._header) == self._want:
                header, self._header = bytes(self._header), bytearray()
                self._want = self._steps.send(header)
        if data:
            self.complete = not self._skip and not self._header and self._between

    def _walk(self) -> Generator[int, bytes, None]:
        """Yields how many bytes the next header has; sets what is to be skipped before it."""
        while True:
            self._between = True
            magic = yield 4
            self._between = False
            if magic != b"\x28\xb5\x2f\xfd":
                self._skip = int.from_bytes((yield 4), "little")
                continue
            (flags,) = yield 1
            single = flags & 0x20
            content_size = (1 if single else 0, 2, 4, 8)[flags >> 6]
            self._skip = (0 if single else 1) + (0, 1, 2, 4)[flags & 3] + content_size
            last = False
            while not last:
                block = int.from_bytes((yield 3), "little")
                last = bool(block & 1)
                self._skip = 1 if (block >> 1) & 3 == 1 else block >> 3
            self._skip += 4 if flags & 4 else 0

"""Compressed streams: told apart, read in pieces, and noticed when they are damaged or cut."""

from __future__ import annotations

import io
import random

import pytest

from mooring.runtime.images.compress import (
    Compression,
    CompressionError,
    decompressed,
    detect,
    peek,
)

from .archives import COMPRESSORS

NAMES = {
    "plain": Compression.NONE,
    "gzip": Compression.GZIP,
    "bzip2": Compression.BZIP2,
    "xz": Compression.XZ,
    "zstd": Compression.ZSTD,
}
PACKED = [name for name in COMPRESSORS if name != "plain"]
DATA = random.Random(1).randbytes(300_000) + bytes(300_000)


def _read(data: bytes, piece: int = 1 << 20) -> bytes:
    stream = io.BytesIO(data)
    start, read = peek(lambda limit: stream.read(min(limit, piece)))
    read = decompressed(read, detect(start))
    result = b""
    while part := read(1 << 16):
        assert len(part) <= 1 << 16 or detect(start) is Compression.NONE
        result += part
    return result


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_stream_is_told_by_its_first_bytes(name: str) -> None:
    assert detect(COMPRESSORS[name](DATA)[:6]) is NAMES[name]


@pytest.mark.parametrize("piece", [5, 4096, 1 << 20])
@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_stream_is_read_whole(name: str, piece: int) -> None:
    assert _read(COMPRESSORS[name](DATA), piece) == DATA


@pytest.mark.parametrize("name", PACKED)
def test_streams_one_after_the_other_are_one(name: str) -> None:
    assert _read(COMPRESSORS[name](b"first,") + COMPRESSORS[name](b"second")) == b"first,second"


@pytest.mark.parametrize("name", ["gzip", "xz"])
def test_zeros_behind_the_end_are_padding(name: str) -> None:
    assert _read(COMPRESSORS[name](DATA) + bytes(1000)) == DATA


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("missing", [1, 9, 1000])
def test_a_cut_stream_is_noticed(name: str, missing: int) -> None:
    with pytest.raises(CompressionError, match="unexpected EOF"):
        _read(COMPRESSORS[name](DATA)[:-missing])


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz"])
def test_a_damaged_stream_is_noticed(name: str) -> None:
    """Not zstd's: without a checksum it delivers what it read, and the layer's digest tells."""
    packed = bytearray(COMPRESSORS[name](DATA))
    packed[len(packed) // 3] ^= 0xFF
    with pytest.raises(CompressionError):
        _read(bytes(packed))


def test_a_skippable_zstd_frame_is_skipped() -> None:
    frame = b"\x50\x2a\x4d\x18" + (300).to_bytes(4, "little") + b"s" * 300
    assert _read(frame + COMPRESSORS["zstd"](DATA)) == DATA


def test_nothing_is_an_empty_plain_stream() -> None:
    assert _read(b"") == b""

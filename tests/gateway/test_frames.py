"""Log frames in pieces of any size, and what clients get of them."""

from __future__ import annotations

import random
import struct

import pytest

from mooring.gateway.frames import STDERR, STDOUT, FrameError, FrameReader
from mooring.gateway.output import Formatter, error_text, multiplexed, timestamp

from .fakes import SECOND, frame

LOG = b"".join(
    [
        frame(16, b"1"),
        frame(STDOUT, b"one\ntwo\n", 1 * SECOND),
        frame(STDERR, b"err\n", 2 * SECOND),
        frame(STDOUT, b"", 2 * SECOND),
        frame(STDOUT, b"thr", 3 * SECOND),
        frame(STDOUT, b"ee\n", 4 * SECOND),
        frame(17, b"{}"),
    ]
)


def cuts(data: bytes, seed: int) -> list[bytes]:
    """data in pieces of random sizes."""
    rng = random.Random(seed)
    pieces = []
    while data:
        size = rng.choice((1, 2, 3, 7, 15, 16, 17, 40))
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def join(reader: FrameReader, pieces: list[bytes]) -> list[tuple[int, int, bytes]]:
    found: list[tuple[int, int, bytes]] = []
    for data in pieces:
        for piece in reader.feed(data):
            before = b"" if piece.first else found.pop()[2]
            found.append((piece.stream, piece.time_ns, before + bytes(piece.data)))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_frames_are_the_same_however_they_are_cut(seed: int) -> None:
    whole = join(FrameReader(), [LOG])
    assert [payload for _, _, payload in whole] == [
        b"1", b"one\ntwo\n", b"err\n", b"", b"thr", b"ee\n", b"{}"
    ]  # fmt: skip
    assert join(FrameReader(), cuts(LOG, seed)) == whole


def test_what_is_no_frame_is_an_error_that_says_where() -> None:
    reader = FrameReader()
    reader.feed(frame(1, b"abc"))
    with pytest.raises(FrameError, match="no log frame at 19"):
        reader.feed(b"\0" * 16)


def unmux(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while data:
        stream, size = struct.unpack_from(">BxxxI", data)
        found[stream] = found.get(stream, b"") + data[8 : 8 + size]
        data = data[8 + size :]
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {1: b"one\ntwo\nthree\n", 2: b"err\n"}),
        ({"stderr": False}, {1: b"one\ntwo\nthree\n"}),
        ({"stdout": False}, {2: b"err\n"}),
        ({"since_ns": 3 * SECOND}, {1: b"three\n"}),
        ({"until_ns": 2 * SECOND}, {1: b"one\ntwo\n", 2: b"err\n"}),
        ({"details": ""}, {1: b" one\n two\n three\n", 2: b" err\n"}),
        (
            {"timestamps": True, "stderr": False, "until_ns": SECOND},
            {1: b"1970-01-01T00:00:01.000000000Z one\n1970-01-01T00:00:01.000000000Z two\n"},
        ),
    ],
)
def test_a_client_gets_what_it_asked_for(
    seed: int, options: dict[str, object], expected: dict[int, bytes]
) -> None:
    formatter = Formatter(raw=False, **options)  # type: ignore[arg-type]
    out = b"".join(map(formatter.feed, cuts(LOG, seed)))
    assert unmux(out) == expected


def test_in_a_log_each_line_is_a_frame() -> None:
    out = Formatter(raw=False, lines=True).feed(frame(STDERR, b"one\n\ntwo") + LOG)
    frames = [multiplexed(STDERR, part) for part in (b"one\n", b"\n", b"two")]
    assert out.startswith(b"".join(frames))
    assert unmux(out[sum(map(len, frames)) :]) == {1: b"one\ntwo\nthree\n", 2: b"err\n"}
    out = Formatter(raw=False, lines=True, details="", stderr=False).feed(LOG)
    assert out.startswith(multiplexed(STDOUT, b" one\n"))
    assert Formatter(raw=True, lines=True, stderr=False).feed(LOG) == b"one\ntwo\nthree\n"


@pytest.mark.parametrize(
    "payload", [b"\n" * 60000, b"abc\n" * 15000, b"x" * 60000, b"y\nzz" * 9000]
)
@pytest.mark.parametrize("timestamps", [False, True])
def test_a_step_is_bounded_and_loses_nothing(payload: bytes, timestamps: bool) -> None:
    formatter = Formatter(raw=False, lines=True, timestamps=timestamps)
    log, at, found = frame(STDOUT, payload), 0, b""
    while at < len(log):
        piece = log[at : at + formatter.step(log[at:])]
        out = formatter.feed(piece)
        assert len(out) <= 60 * 1024
        found += out
        at += len(piece)
    assert timestamps or unmux(found) == {1: payload}


def test_a_line_over_two_frames_has_one_timestamp() -> None:
    formatter = Formatter(raw=True, timestamps=True, since_ns=3 * SECOND)
    assert formatter.feed(LOG) == b"1970-01-01T00:00:03.000000000Z three\n"


@pytest.mark.parametrize("seed", range(5))
def test_a_log_that_was_rotated_begins_with_a_whole_line(seed: int) -> None:
    formatter = Formatter(raw=True)
    formatter.cut_first_line()
    log = frame(STDOUT, b"rest") + frame(STDOUT, b" of it\none\n") + frame(STDERR, b"two\n")
    assert b"".join(map(formatter.feed, cuts(log, seed))) == b"one\ntwo\n"


def test_a_terminals_output_is_not_framed() -> None:
    assert Formatter(raw=True, stderr=False).feed(LOG) == b"one\ntwo\nthree\n"


def test_after_until_the_formatter_is_finished() -> None:
    formatter = Formatter(raw=True, until_ns=SECOND)
    formatter.feed(LOG[:-20])
    assert formatter.finished


def test_a_large_frame_is_passed_on_as_it_arrives() -> None:
    formatter = Formatter(raw=True)
    data = frame(STDOUT, b"x" * 100_000)
    assert len(formatter.feed(data[:50_000])) == 50_000 - 16
    assert len(formatter.feed(data[50_000:])) == 50_016


def test_timestamps_have_nine_digits() -> None:
    assert timestamp(1_700_000_000_000_000_001) == "2023-11-14T22:13:20.000000001Z"


def test_errors_have_a_stream_of_their_own() -> None:
    assert error_text("no", raw=False) == b"\3\0\0\0\0\0\0\3no\n"
    assert error_text("no", raw=True) == b"no\n"


def test_after_a_gap_the_line_that_was_begun_ends_and_the_next_whole_one_follows() -> None:
    formatter = Formatter(raw=True)
    before = frame(STDOUT, b"one\ntw") + frame(STDOUT, b"o, and more")[:20]
    out = formatter.feed(before, 0)
    out += formatter.feed(frame(STDOUT, b"hundred\nhundred and one\n"), 5000)
    assert out == b"one\ntwo, a\nhundred and one\n"

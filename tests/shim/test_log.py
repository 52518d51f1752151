"""The log: what the writer leaves in the files, and what a reader makes of them."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import pytest

from mooring.shim.frames import HEADER, HEADER_SIZE, read_index, segments
from mooring.shim.log import LogWriter
from mooring.shim.logread import LogReader, RotatedAway, frames

from .harness import everything, output


class Pipe:
    """A pipe to write output into, and a log to move it to."""

    def __init__(self, directory: Path, limit: int = 64 << 20, keep: int = 16) -> None:
        self.directory = str(directory)
        self.limit, self.keep = limit, keep
        self.read, self.write = os.pipe()
        self.log = LogWriter(self.directory, limit, keep)

    def put(self, data: bytes, stream: int = 1) -> None:
        os.write(self.write, data)
        left = len(data)
        while left:
            left -= self.log.take(self.read, stream, left)

    def reopen(self) -> LogWriter:
        self.log.close()
        self.log = LogWriter(self.directory, self.limit, self.keep)
        return self.log

    def reader(self) -> LogReader:
        return LogReader(self.directory)


@pytest.fixture
def pipe(tmp_path: Path) -> Pipe:
    return Pipe(tmp_path / "log")


def whole(reader: LogReader, start: int = 0) -> bytes:
    parts = []
    while data := reader.read(start, 1 << 20):
        parts.append(data)
        start += len(data)
    return b"".join(parts)


def test_what_was_in_the_pipe_is_in_the_log_with_its_stream(pipe: Pipe) -> None:
    pipe.log.begin_run(3)
    pipe.put(b"out\n")
    pipe.put(b"err\n", stream=2)
    pipe.log.end_run(b'{"run":3,"exit_code":0}')
    assert list(everything(pipe.reader())) == [
        (16, b"3"),
        (1, b"out\n"),
        (2, b"err\n"),
        (17, b'{"run":3,"exit_code":0}'),
    ]


def test_frames_carry_the_time_they_were_written(pipe: Pipe) -> None:
    before = time.time_ns()
    pipe.put(b"x")
    _, _, written, _ = next(frames(whole(pipe.reader())))
    assert before <= written <= time.time_ns()


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    reader = LogReader(str(tmp_path / "none"))
    assert (reader.first(), reader.end(), reader.read(0, 10)) == (0, 0, b"")
    assert reader.offset_of_tail(5) == (0, b"")
    assert reader.offset_of_run(1) is None


def test_segments_end_between_frames_and_the_oldest_go(tmp_path: Path) -> None:
    pipe = Pipe(tmp_path / "log", limit=1000, keep=3)
    for number in range(100):
        pipe.put(b"%04d" % number + b"." * 96)
    bases = segments(pipe.directory)
    assert len(bases) == 3
    for base in bases:
        assert (tmp_path / "log" / f"{base:020d}.log").read_bytes()[:2] == b"\x52\x4d"
    reader = pipe.reader()
    assert reader.first() == bases[0]
    assert reader.end() == 100 * (100 + HEADER_SIZE)
    numbers = [int(payload[:4]) for _, payload in everything(reader)]
    assert numbers == list(range(100 - len(numbers), 100))


def test_a_frame_does_not_outgrow_a_small_segment_by_more_than_64_kib(tmp_path: Path) -> None:
    pipe = Pipe(tmp_path / "log", limit=10_000, keep=100)
    pipe.put(b"y" * 65536)
    pipe.put(b"y" * 65536)
    sizes = [os.path.getsize(p) for p in (tmp_path / "log").glob("*.log")]
    assert max(sizes) <= 10_000 + (64 << 10) + HEADER_SIZE
    assert output(pipe.reader()) == b"y" * 131072


def test_reading_what_rotation_took_says_where_the_log_begins(tmp_path: Path) -> None:
    pipe = Pipe(tmp_path / "log", limit=100, keep=2)
    for _ in range(10):
        pipe.put(b"z" * 100)
    with pytest.raises(RotatedAway) as raised:
        pipe.reader().read(0, 10)
    assert raised.value.first == segments(pipe.directory)[0] > 0


def test_one_segment_kept_is_a_log_that_starts_afresh(tmp_path: Path) -> None:
    pipe = Pipe(tmp_path / "log", limit=100, keep=1)
    for number in range(5):
        pipe.put(b"%d" % number * 100)
    assert output(pipe.reader()) == b"4" * 100


def test_writing_goes_on_where_the_log_ended(pipe: Pipe) -> None:
    pipe.put(b"one")
    end = pipe.log.end
    log = pipe.reopen()
    assert (log.end, log.torn) == (end, 0)
    pipe.put(b"two")
    assert output(pipe.reader()) == b"onetwo"


def tear(pipe: Pipe, payload: bytes, moved: int, stream: int = 1) -> None:
    """As a shim killed in the middle of a splice leaves it: the rest is in the pipe."""
    os.write(pipe.write, payload)
    start = os.path.getsize(f"{pipe.directory}/{0:020d}.log")
    fd = os.open(f"{pipe.directory}/{0:020d}.log", os.O_RDWR)
    os.pwrite(fd, HEADER.pack(0x4D52, stream, 0, len(payload), 7), start)
    if moved:
        os.splice(pipe.read, fd, moved, offset_dst=start + HEADER_SIZE)
    os.close(fd)


@pytest.mark.parametrize("moved", [0, 1, 10])
def test_a_torn_frame_is_not_read_and_completed_from_the_pipe(pipe: Pipe, moved: int) -> None:
    pipe.put(b"before ")
    tear(pipe, b"the middle", moved, stream=2)
    reader = pipe.reader()
    expected = b"before " if moved < 10 else b"before the middle"
    assert output(reader) == expected
    log = pipe.reopen()
    if moved < 10:
        assert (log.torn, log.missing) == (2, 10 - moved)
        log.complete(pipe.read)
    pipe.put(b" after")
    assert output(reader) == b"before the middle after"


def test_a_torn_frame_of_a_pipe_that_was_drained_keeps_what_it_got(pipe: Pipe) -> None:
    tear(pipe, b"abcdef", 3)
    assert os.read(pipe.read, 3) == b"def"
    os.set_blocking(pipe.read, False)
    pipe.reopen().complete(pipe.read)
    pipe.put(b"!")
    assert output(pipe.reader()) == b"abc!"


def test_a_new_run_cuts_off_what_was_torn(pipe: Pipe) -> None:
    pipe.put(b"whole")
    tear(pipe, b"lost with the pipe", 4)
    log = pipe.reopen()
    log.begin_run(2)
    assert list(everything(pipe.reader())) == [(1, b"whole"), (16, b"2")]


@pytest.mark.parametrize("garbage", [b"", b"\x52", b"\x52\x4d\x01", b"\0" * 40, b"text" * 9])
def test_what_is_no_frame_at_the_end_is_cut_off(pipe: Pipe, garbage: bytes) -> None:
    pipe.put(b"good")
    with open(f"{pipe.directory}/{0:020d}.log", "ab") as file:
        file.write(garbage)
    assert output(pipe.reader()) == b"good"
    pipe.reopen().begin_run(2)
    assert list(everything(pipe.reader())) == [(1, b"good"), (16, b"2")]


def test_a_container_that_reads_its_own_pipe_does_not_stop_its_shim(pipe: Pipe) -> None:
    os.write(pipe.write, b"stolen")
    os.read(pipe.read, 6)
    assert pipe.log.take(pipe.read, 1, 6) == 0
    os.write(pipe.write, b"half")
    assert pipe.log.take(pipe.read, 1, 6) == 4
    assert output(pipe.reader()) == b"half"


def test_the_index_names_frames_about_every_256_kib(pipe: Pipe) -> None:
    for _ in range(100):
        pipe.put(b"i" * 20_000)
    entries = read_index(pipe.directory)
    starts = {position for position, *_ in frames(whole(pipe.reader()))}
    assert len(entries) == 100 * 20_016 // (256 << 10)
    assert {offset for offset, _ in entries} <= starts


def test_reopening_a_large_log_finds_its_end_by_the_index(pipe: Pipe) -> None:
    for _ in range(60):
        pipe.put(b"i" * 20_000)
    assert pipe.reopen().end == 60 * 20_016
    pipe.put(b"more")
    assert output(pipe.reader())[-5:] == b"imore"


def test_an_index_full_of_nonsense_harms_nobody(pipe: Pipe) -> None:
    for number in range(60):
        pipe.put(b"%02d" % number * 10_000)
    Path(pipe.directory, "index").write_bytes(os.urandom(999))
    assert pipe.reopen().end == 60 * 20_016
    reader = pipe.reader()
    assert reader.end() == 60 * 20_016
    offset, header = reader.offset_of_tail(1)
    assert (offset, header) == (0, b"")


def test_the_index_is_shortened_with_the_log(tmp_path: Path) -> None:
    pipe = Pipe(tmp_path / "log", limit=600_000, keep=2)
    directory = Path(pipe.directory)
    stale = b"".join(n.to_bytes(8, "little") + bytes(8) for n in range(10_000))
    pipe.put(b"x" * 60_000)
    (directory / "index").write_bytes(stale)
    pipe.reopen()
    for _ in range(40):
        pipe.put(b"x" * 60_000)
    assert (directory / "index").stat().st_size < 1000


class TestTail:
    def lines(self, pipe: Pipe, lines: int) -> bytes:
        """What a client sees of the tail: the stream begins with the header that was made."""
        reader = pipe.reader()
        offset, header = reader.offset_of_tail(lines)
        data = header + whole(reader, offset + len(header))
        return b"".join(bytes(payload) for _, s, _, payload in frames(data) if s in (1, 2))

    def test_in_one_frame(self, pipe: Pipe) -> None:
        pipe.put(b"1\n2\n3\n4\n5\n")
        assert self.lines(pipe, 2) == b"4\n5\n"
        assert self.lines(pipe, 5) == b"1\n2\n3\n4\n5\n"
        assert self.lines(pipe, 50) == b"1\n2\n3\n4\n5\n"
        assert self.lines(pipe, 0) == b""

    def test_over_frames_of_both_streams(self, pipe: Pipe) -> None:
        pipe.put(b"1\n2\n")
        pipe.put(b"3\n", stream=2)
        pipe.put(b"4\n5\n")
        pipe.put(b"6\n", stream=2)
        assert self.lines(pipe, 1) == b"6\n"
        assert self.lines(pipe, 2) == b"5\n6\n"
        assert self.lines(pipe, 3) == b"4\n5\n6\n"
        assert self.lines(pipe, 5) == b"2\n3\n4\n5\n6\n"

    def test_of_one_stream(self, pipe: Pipe) -> None:
        pipe.put(b"1\n2\n")
        pipe.put(b"e\n" * 100, stream=2)
        reader = pipe.reader()
        offset, header = reader.offset_of_tail(1, (1,))
        data = header + whole(reader, offset + len(header))
        assert [(s, bytes(p)) for _, s, _, p in frames(data)] == [(1, b"2\n"), (2, b"e\n" * 100)]

    def test_a_line_without_its_end_counts(self, pipe: Pipe) -> None:
        pipe.put(b"1\n2\nunfinished")
        assert self.lines(pipe, 1) == b"unfinished"
        assert self.lines(pipe, 2) == b"2\nunfinished"

    def test_a_line_over_many_frames_is_one(self, pipe: Pipe) -> None:
        pipe.put(b"first\nsec")
        for _ in range(50):
            pipe.put(b"o" * 20_000)
        pipe.put(b"nd\n")
        assert self.lines(pipe, 1) == b"sec" + b"o" * 1_000_000 + b"nd\n"

    def test_runs_are_no_lines(self, pipe: Pipe) -> None:
        pipe.put(b"1\n2\n")
        pipe.log.end_run(b'{"run":1,"exit_code":0}')
        pipe.log.begin_run(2)
        assert self.lines(pipe, 1) == b"2\n"

    def test_over_segments(self, tmp_path: Path) -> None:
        pipe = Pipe(tmp_path / "log", limit=500, keep=50)
        for number in range(200):
            pipe.put(b"line %d\n" % number)
        assert self.lines(pipe, 150) == b"".join(b"line %d\n" % n for n in range(50, 200))

    @pytest.mark.parametrize("seed", range(5))
    def test_against_random_frames(
        self, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        choose = random.Random(seed)
        monkeypatch.setattr("mooring.shim.logread._FEW", choose.choice([3, 1000]))
        pipe = Pipe(tmp_path / "log", limit=choose.choice([300, 70_000]), keep=10_000)
        text = b"".join(
            b"%d:" % n + b"." * choose.choice([0, 3, 900]) + b"\n"
            for n in range(choose.randrange(1000))
        )
        rest = text
        while rest:
            size = choose.choice([1, 7, 100, 4000])
            pipe.put(rest[:size])
            rest = rest[size:]
        for wanted in (1, 2, 10, 333):
            assert self.lines(pipe, wanted) == b"".join(text.splitlines(True)[-wanted:])


def test_since_begins_with_the_first_frame_of_that_time(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000, 10_000_000, 10))
    monkeypatch.setattr("mooring.shim.log.time_ns", lambda: next(clock))
    for _ in range(100):
        pipe.put(b"s" * 9_984)
    reader = pipe.reader()
    every = [(time_ns, position) for position, _, time_ns, _ in frames(whole(reader))]
    for time_ns, position in every[::9]:
        assert reader.offset_since(time_ns) == position
        assert reader.offset_since(time_ns - 9) == position
    assert reader.offset_since(every[-1][0] + 1) == reader.end()
    assert reader.offset_since(0) == 0


def test_runs_are_found_with_and_without_the_index(pipe: Pipe) -> None:
    begins, ends = {}, {}
    for run in range(1, 6):
        begins[run] = pipe.log.begin_run(run)
        for _ in range(20):
            pipe.put(b"r" * 30_000)
        if run < 5:
            pipe.log.end_run(b'{"run":%d,"exit_code":0}' % run)
            ends[run] = pipe.log.end
    for _ in range(2):
        reader = pipe.reader()
        assert {run: reader.offset_of_run(run) for run in range(1, 6)} == begins
        assert {run: reader.end_of_run(run) for run in range(1, 6)} == {**ends, 5: None}
        assert reader.offset_of_run(6) is None
        os.unlink(f"{pipe.directory}/index")
        Path(pipe.directory, "index").touch()


def test_a_run_that_was_killed_with_its_host_has_no_end(pipe: Pipe) -> None:
    pipe.log.begin_run(1)
    pipe.log.begin_run(2)
    pipe.log.end_run(b'{"run":2,"exit_code":0}')
    assert pipe.reader().end_of_run(1) is None
    assert pipe.reader().end_of_run(2) == pipe.log.end


def test_trimming_deletes_whole_segments_below_the_offset(tmp_path: Path) -> None:
    pipe = Pipe(tmp_path / "log", limit=1000, keep=0)
    for _ in range(50):
        pipe.put(b"t" * 100)
    pipe.log.trim(3000)
    assert pipe.reader().first() <= 3000 < segments(pipe.directory)[1]
    pipe.log.trim(1 << 60)
    assert len(segments(pipe.directory)) == 1


@pytest.mark.parametrize("keep", [0, 4])
def test_a_reader_beside_the_writer_sees_whole_frames_only(tmp_path: Path, keep: int) -> None:
    pipe = Pipe(tmp_path / "log", limit=200_000, keep=keep)
    total, step = 6_000_000, 7_919
    done = threading.Event()

    def write() -> None:
        sent = 0
        while sent < total:
            size = min(step, total - sent)
            pipe.put(b"".join(b"%07d\n" % n for n in range(sent // 8, (sent + size) // 8)))
            sent += size // 8 * 8 or 8
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    reader, offset, buffer = pipe.reader(), 0, b""
    lines: list[bytes] = []
    while True:
        finished = done.is_set()
        try:
            data = reader.read(offset, 100_000)
        except RotatedAway as rotated:
            assert keep
            offset, buffer, lines = rotated.first, b"", []
            continue
        if not data and finished:
            break
        offset += len(data)
        buffer += data
        used = 0
        for position, _, _, payload in frames(buffer):
            lines += bytes(payload).split()
            used = position + HEADER_SIZE + len(payload)
        buffer = buffer[used:]
    writer.join()
    assert not buffer
    numbers = [int(line) for line in lines]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert keep or numbers[0] == 0


def test_a_reader_far_behind_does_not_look_for_segments_at_each_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipe(tmp_path / "log", limit=300, keep=10_000)
    for number in range(500):
        pipe.put(b"line %d\n" % number * 40)
    looks = 0

    def look(directory: str) -> list[int]:
        nonlocal looks
        looks += 1
        return segments(directory)

    monkeypatch.setattr("mooring.shim.logread.segments", look)
    reader, offset = pipe.reader(), 0
    while data := reader.read(offset, 1 << 20):
        offset += len(data)
    assert offset == reader.end()
    assert len(segments(str(tmp_path / "log"))) > 200
    assert looks < 10

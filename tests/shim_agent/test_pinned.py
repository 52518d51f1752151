"""Logs that are being deleted while they are read."""

from __future__ import annotations

from pathlib import Path

from mooring.shim.pinned import PinnedLog


def test_a_log_without_any_segment_reads_as_empty(tmp_path: Path) -> None:
    log = PinnedLog(str(tmp_path), 0, 100)
    assert log.read(0, 10) == b""
    log.close()


def test_what_is_held_is_read_after_it_was_deleted(tmp_path: Path) -> None:
    for base in (0, 4):
        (tmp_path / f"{base:020d}.log").write_bytes(b"abcd")
    log = PinnedLog(str(tmp_path), 5, 8)
    for file in tmp_path.iterdir():
        file.unlink()
    assert log.read(5, 10) == b"bcd"
    assert log.read(0, 10) == b""
    log.close()

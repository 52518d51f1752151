"""Detach keys."""

from __future__ import annotations

import pytest

from mooring.gateway.detach import DEFAULT, Scanner, parse
from mooring.kit.errors import InvalidParameter


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("", DEFAULT),
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("ctrl-a,x,ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", b"\x01x\x00\x1b\x1c\x1d\x1e\x1f"),
        ("-", b"-"),
    ],
)
def test_keys_are_read(text: str, keys: bytes) -> None:
    assert parse(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "abc", "ctrl-A", "a,", "ä", "alt-a"])
def test_invalid_keys_are_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="Invalid detach keys"):
        parse(text)


@pytest.mark.parametrize(
    ("pieces", "passed", "detached"),
    [
        ([b"abc"], b"abc", False),
        ([b"a\x10\x11b"], b"a", True),
        ([b"a\x10", b"\x11"], b"a", True),
        ([b"a\x10", b"b"], b"a\x10b", False),
        ([b"\x10\x10\x11"], b"\x10", True),
        ([b"\x11\x10"], b"\x11", False),
    ],
)
def test_the_keys_are_found_wherever_they_are_cut(
    pieces: list[bytes], passed: bytes, detached: bool
) -> None:
    scanner = Scanner(DEFAULT)
    results = [scanner.feed(piece) for piece in pieces]
    assert b"".join(out for out, _ in results) == passed
    assert any(found for _, found in results) is detached

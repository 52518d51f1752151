"""Leases are files: what one worker claimed, the next one knows."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from mooring.runtime.network.leases import Leases

ONE = IPv4Address("10.9.0.2")


def test_a_lease_is_known_to_the_next_worker(tmp_path: Path) -> None:
    Leases(tmp_path).claim(ONE, "c0ffee.1")
    again = Leases(tmp_path)
    assert again.taken() == {ONE}
    assert again.of("c0ffee.1") == [ONE]


def test_an_address_is_claimed_once(tmp_path: Path) -> None:
    first, second = Leases(tmp_path), Leases(tmp_path)
    first.claim(ONE, "c0ffee.1")
    with pytest.raises(FileExistsError):
        second.claim(ONE, "decade.1")


def test_releasing_twice_is_the_same_as_once(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    leases.claim(ONE, "c0ffee.1")
    leases.release(ONE)
    leases.release(ONE)
    assert leases.taken() == set()
    assert list(tmp_path.iterdir()) == []

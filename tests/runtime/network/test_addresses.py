"""Which subnet, which address."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from mooring.kit.errors import EngineError
from mooring.runtime.network.addresses import CANDIDATES, free_subnet, next_address

SMALL = IPv4Network("10.9.0.0/29")  # hosts .1 (gateway) to .6


def test_a_subnet_that_overlaps_a_route_of_the_host_is_passed_over() -> None:
    taken = [IPv4Network("10.209.7.0/24"), IPv4Network("10.208.0.0/12")]
    assert not free_subnet(taken).overlaps(taken[0])
    assert not free_subnet(taken).overlaps(taken[1])


def test_no_free_subnet_is_said() -> None:
    with pytest.raises(EngineError, match="non-overlapping"):
        free_subnet([IPv4Network(str(candidate)) for candidate in CANDIDATES])


@pytest.mark.parametrize(
    ("after", "taken", "expected"),
    [
        ("0.0.0.0", [], "10.9.0.2"),
        ("10.9.0.2", [], "10.9.0.3"),
        ("10.9.0.6", [], "10.9.0.2"),
        ("10.9.0.4", ["10.9.0.5", "10.9.0.6"], "10.9.0.2"),
        ("10.9.0.5", ["10.9.0.6", "10.9.0.2"], "10.9.0.3"),
    ],
)
def test_addresses_are_given_out_going_round(after: str, taken: list[str], expected: str) -> None:
    got = next_address(SMALL, {IPv4Address(text) for text in taken}, IPv4Address(after))
    assert str(got) == expected


def test_an_exhausted_subnet_is_said() -> None:
    taken = {IPv4Address(f"10.9.0.{n}") for n in range(2, 7)}
    with pytest.raises(EngineError, match="no available IPv4 addresses"):
        next_address(SMALL, taken, IPv4Address("10.9.0.2"))


def test_the_subnet_of_last_time_is_taken_again_unless_somebody_has_it() -> None:
    kept = "10.200.0.0/24"
    assert free_subnet([], kept) == IPv4Network(kept)
    assert free_subnet([IPv4Network("10.200.0.0/16")], kept) == CANDIDATES[0]

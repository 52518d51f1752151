"""The default bridge itself: its subnet, chosen, kept and changed."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Network

import pytest

from mooring.runtime.network import links, setup

pytestmark = pytest.mark.kernel


@pytest.fixture
def names() -> Iterator[tuple[str, str]]:
    """What nobody else's bridges and tables are called."""
    one, other = (f"mrs{secrets.token_hex(3)}" for _ in range(2))
    yield one, other
    for name in (one, other):
        setup.remove(name, name)


def addresses(link: str) -> list[str]:
    command = ["ip", "-o", "-4", "addr", "show", "dev", link]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split()[3] for line in lines.splitlines()]


def test_a_subnet_is_chosen_once_and_another_one_takes_its_place(names: tuple[str, str]) -> None:
    name, _ = names
    chosen = setup.ensure(name, name, "")
    assert addresses(name) == [f"{chosen.gateway}/{chosen.subnet.prefixlen}"]
    assert setup.ensure(name, name, "") == chosen
    changed = setup.ensure(name, name, "198.18.7.0/24")
    assert changed.subnet == IPv4Network("198.18.7.0/24")
    assert addresses(name) == ["198.18.7.1/24"]


def test_the_subnet_of_last_time_is_taken_again_unless_somebody_has_it(
    names: tuple[str, str],
) -> None:
    one, other = names
    kept = "198.18.8.0/24"
    assert str(setup.ensure(one, one, "", kept).subnet) == kept
    assert str(setup.ensure(other, other, "", kept).subnet) != kept


def test_what_is_taken_away_may_be_gone(names: tuple[str, str]) -> None:
    name, _ = names
    setup.ensure(name, name, "198.18.9.0/24")
    for _ in range(2):
        setup.remove(name, name)
        assert not links.index_of(name)
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
    assert name not in tables

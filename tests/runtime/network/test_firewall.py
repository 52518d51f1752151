"""The engine's nftables table, in a network namespace of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network, IPv6Network

import pytest

from mooring.runtime.network import firewall, nft

from .namespace import leave_network

pytestmark = pytest.mark.kernel
TABLE = "mooring-test"


@pytest.fixture
def table() -> Iterator[nft.Nft]:
    """The table, made in a thread that has a namespace of its own."""

    def make() -> nft.Nft:
        # The thread ends with the fixture, and its namespace with the last socket.
        leave_network()
        run("-f", "-", text=firewall.text(TABLE))
        return nft.Nft(TABLE)

    def run(*args: str, text: str = "") -> None:
        subprocess.run(["nft", *args], input=text, text=True, check=True, capture_output=True)

    with ThreadPoolExecutor(1) as thread, contextlib.closing(thread.submit(make).result()) as made:
        yield made


def port(number: int, target: int = 80) -> nft.Element:
    key = nft.protocol_port("tcp", number)
    return nft.Element("ports4", key, nft.address_port("10.1.0.2", target))


def test_the_table_has_as_many_rules_as_the_check_expects(table: nft.Nft) -> None:
    assert table.rules() == firewall.RULES


def test_a_table_that_is_not_there_has_no_rules() -> None:
    with contextlib.closing(nft.Nft(f"none-{os.getpid()}")) as nothing:
        assert nothing.rules() == 0


def test_more_elements_than_a_message_holds_are_added_and_deleted(table: nft.Nft) -> None:
    many = [port(number) for number in range(1, 1801)]
    table.change(add=many)
    assert set(table.elements("ports4")) == {item.key for item in many}
    table.change(delete=many)
    assert table.elements("ports4") == {}


def test_a_set_that_is_rehashed_while_it_is_read_is_read_again(
    table: nft.Nft, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel then tells some elements twice and leaves others out."""
    table.change(add=[port(1), port(2)])
    real, readings = nft.Nft._dump, iter((True, True, False))

    def dump(self: nft.Nft, kind: int, body: bytes) -> Iterator[bytes]:
        first, *others = real(self, kind, body)
        yield from (first, first) if next(readings) else (first, *others)

    monkeypatch.setattr(nft.Nft, "_dump", dump)
    assert len(table.elements("ports4")) == 2
    assert next(readings, None) is None


def test_a_set_that_is_never_at_rest_is_an_error(
    table: nft.Nft, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.change(add=[port(1)])
    real = nft.Nft._dump
    monkeypatch.setattr(nft.Nft, "_dump", lambda *args: [*real(*args), *real(*args)])
    with pytest.raises(BlockingIOError, match="ports4"):
        table.elements("ports4")


def test_ranges_beside_each_other_are_no_sign_of_a_rehash(table: nft.Nft) -> None:
    low, high = IPv4Network("10.1.0.0/24"), IPv4Network("10.1.1.0/24")
    table.change(add=[*nft.subnet("masq4", low), *nft.subnet("masq4", high)])
    assert len(table.elements("masq4")) == 3


def test_a_change_is_made_whole_or_not_at_all(table: nft.Nft) -> None:
    table.change(add=[port(1)])
    with pytest.raises(FileNotFoundError):
        table.change(add=[port(2)], delete=[port(1), port(3)])
    assert table.elements("ports4") == {port(1).key: port(1).data}


def test_adding_again_is_fine_but_not_with_other_data(table: nft.Nft) -> None:
    table.change(add=[port(1)])
    table.change(add=[port(1)])
    with pytest.raises(OSError):
        table.change(add=[port(1, target=81)])


def test_a_target_can_be_replaced_in_one_change(table: nft.Nft) -> None:
    table.change(add=[port(1)])
    table.change(delete=[port(1)], add=[port(1, target=81)])
    assert table.elements("ports4") == {port(1).key: port(1, target=81).data}


def test_a_network_leaves_nothing_when_its_elements_go(table: nft.Nft) -> None:
    subnets: list[IPv4Network | IPv6Network] = [
        IPv4Network("10.1.0.0/16"),
        IPv6Network("fd00:1::/64"),
    ]
    mine = firewall.network_elements("br0", subnets, icc=False)
    other = firewall.network_elements("br1", [IPv4Network("10.2.0.0/16")], internal=True)
    table.change(add=mine)
    table.change(add=other)
    # Where one range ends and the next begins is one key with two meanings: both can go alone.
    table.change(delete=mine)
    assert len(table.elements("bridges")) == 1
    table.change(delete=other)
    names = ("bridges", "same", "noicc", "internal", "masq4", "masq6", "local4", "local6")
    assert not any(table.elements(name) for name in names)

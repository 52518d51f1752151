"""Names of containers, and the messages that ask for them."""

from __future__ import annotations

import socket
import struct

import pytest

from mooring.runtime.network.dns import wire
from mooring.runtime.network.dns.joining import servers_of
from mooring.runtime.network.dns.names import Names, Place, Sandbox


def packet(name: str, kind: int = wire.A, flags: int = 0x0100, extra: bytes = b"") -> bytes:
    head = struct.pack(">6H", 7, flags, 1, 0, 0, 1 if extra else 0)
    return head + wire.encode_name(name) + struct.pack(">HH", kind, wire.IN) + extra


def sandbox(holder: str, *addresses: str, names: tuple[str, ...], **links: str) -> Sandbox:
    return Sandbox(holder, (Place("n1", "front", addresses, names, links),))


def addresses(names: Names, asker: Sandbox, name: str, kind: int = wire.A) -> list[str] | None:
    """None for a name that is not ours."""
    answer = names.answer(asker, wire.parse(packet(name, kind)))
    if answer is None:
        return None
    family, length = (socket.AF_INET, 4) if kind == wire.A else (socket.AF_INET6, 16)
    count = struct.unpack_from(">H", answer, 6)[0]
    ends = [len(answer) - at * (12 + length) for at in range(count)]
    return [socket.inet_ntop(family, answer[end - length : end]) for end in reversed(ends)]


@pytest.fixture
def names() -> Names:
    made = Names()
    made.put(sandbox("web.1", "10.0.0.2", "fd00::2", names=("web", "www", "c0ffee000001")))
    made.put(sandbox("two.1", "10.0.0.3", names=("two", "www")))
    return made


@pytest.mark.parametrize("name", ["web", "WEB", "c0ffee000001", "web.front"])
def test_a_container_is_found_by_each_of_its_names(names: Names, name: str) -> None:
    asker = names.sandboxes["two.1"]
    assert addresses(names, asker, name) == ["10.0.0.2"]
    assert addresses(names, asker, name, wire.AAAA) == ["fd00::2"]


def test_who_shares_a_name_is_first_in_turn(names: Names) -> None:
    asker = names.sandboxes["web.1"]
    first = [(addresses(names, asker, "www") or [""])[0] for _ in range(4)]
    assert sorted(first) == ["10.0.0.2", "10.0.0.2", "10.0.0.3", "10.0.0.3"]


def test_a_name_of_ours_without_such_an_address_is_answered_empty(names: Names) -> None:
    asker = names.sandboxes["web.1"]
    assert addresses(names, asker, "two", wire.AAAA) == []
    empty = names.answer(asker, wire.parse(packet("two", 15)))
    assert empty is not None and wire.code(empty) == wire.NOERROR


def test_other_networks_and_other_names_are_not_ours(names: Names) -> None:
    elsewhere = Sandbox("far.1", (Place("n2", "back", ("10.1.0.2",), ("far",), {}),))
    names.put(elsewhere)
    assert addresses(names, elsewhere, "web") is None
    assert addresses(names, names.sandboxes["web.1"], "example.com") is None


def test_a_link_is_a_name_for_one_container_alone(names: Names) -> None:
    linked = sandbox("cli.1", "10.0.0.4", names=("cli",), db="web")
    names.put(linked)
    assert addresses(names, linked, "db") == ["10.0.0.2"]
    assert addresses(names, names.sandboxes["two.1"], "db") is None


@pytest.mark.parametrize(
    ("reverse", "name"),
    [
        ("2.0.0.10.in-addr.arpa", "web.front"),
        ("2." + "0." * 27 + "0.0.d.f.ip6.arpa", "web.front"),
    ],
)
def test_addresses_have_names(names: Names, reverse: str, name: str) -> None:
    answer = names.answer(names.sandboxes["two.1"], wire.parse(packet(reverse, wire.PTR)))
    assert answer is not None and answer.endswith(wire.encode_name(name))


def test_a_container_that_left_is_not_found(names: Names) -> None:
    names.drop("web.1")
    names.drop("web.1")
    assert addresses(names, names.sandboxes["two.1"], "web") is None
    assert addresses(names, names.sandboxes["two.1"], "www") == ["10.0.0.3"]


def test_an_answer_too_long_for_the_asker_is_cut_and_says_so() -> None:
    names = Names()
    for number in range(60):
        names.put(sandbox(f"c{number}.1", f"10.0.1.{number}", names=("many",)))
    asker = names.sandboxes["c0.1"]
    plain = wire.parse(packet("many"))
    cut = names.answer(asker, plain, plain.limit)
    assert cut is not None and cut[2] & 0x02 and len(cut) < 512
    opt = b"\0" + struct.pack(">HHIH", wire.OPT, 4096, 0, 0)
    extended = wire.parse(packet("many", extra=opt))
    whole = names.answer(asker, extended, extended.limit)
    assert whole is not None and struct.unpack_from(">H", whole, 6)[0] == 60


@pytest.mark.parametrize(
    "bad",
    [b"", b"\0" * 11, packet("web")[:-1], packet("web", flags=0x8100), packet("web", flags=0x2800),
     struct.pack(">6H", 7, 0, 2, 0, 0, 0) + b"\0" * 10, packet("web")[:12] + b"\xc0\x0c\0\1\0\1"],
)  # fmt: skip
def test_what_is_not_one_question_is_not_read(bad: bytes) -> None:
    with pytest.raises(wire.NotAQuery):
        wire.parse(bad)


def test_an_answer_is_believed_only_to_the_question_that_was_asked() -> None:
    query = wire.parse(packet("web"))
    right = wire.answer(query, [], wire.A)
    assert wire.same_question(query, 7, right)
    assert not wire.same_question(query, 8, right)
    assert not wire.same_question(query, 7, packet("web"))
    assert not wire.same_question(query, 7, wire.answer(wire.parse(packet("wet")), [], wire.A))


def test_servers_of_the_hosts_loopback_are_asked_from_the_host() -> None:
    text = "nameserver 127.0.0.53\n# nameserver 1.1.1.1\nnameserver fd00::53\nsearch a\n"
    assert servers_of(text, []) == ["host:127.0.0.53", "fd00::53"]
    assert servers_of(text, ["9.9.9.9"]) == ["9.9.9.9"]

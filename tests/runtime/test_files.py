"""What a container reads of names."""

from __future__ import annotations

from typing import Any

import pytest

from mooring.kit.errors import InvalidParameter
from mooring.runtime.files import has_only_loopback, hosts, resolv


def make_hosts(**fields: Any) -> str:
    given: dict[str, Any] = {
        "base": None,
        "extra": (),
        "gateway": "",
        "addresses": [],
        "hostname": "web",
        "domainname": "",
    }
    return hosts(**{**given, **fields})


def test_a_container_finds_itself_and_localhost() -> None:
    lines = make_hosts(addresses=["10.0.0.2"]).splitlines()
    assert lines[0] == "127.0.0.1\tlocalhost"
    assert lines[-1] == "10.0.0.2\tweb"


def test_with_a_domain_the_full_name_comes_first() -> None:
    assert make_hosts(addresses=["10.0.0.2"], hostname="web.test").endswith(
        "10.0.0.2\tweb.test web\n"
    )
    assert make_hosts(addresses=["10.0.0.2"], domainname="test").endswith(
        "10.0.0.2\tweb.test web\n"
    )


def test_extra_hosts_are_added_to_the_hosts_own_file_as_well() -> None:
    text = make_hosts(base="1.1.1.1 one", extra=["two:2.2.2.2"])
    assert text == "1.1.1.1 one\n2.2.2.2\ttwo\n"


def test_the_hosts_gateway_needs_a_gateway() -> None:
    assert "10.0.0.1\thost\n" in make_hosts(extra=["host:host-gateway"], gateway="10.0.0.1")
    with pytest.raises(InvalidParameter, match="host-gateway"):
        make_hosts(extra=["host:host-gateway"])


def make_resolv(text: str, **fields: Any) -> str:
    given = {"servers": (), "search": (), "options": (), "keep_loopback": False}
    return resolv(text, **{**given, **fields})


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("nameserver 9.9.9.9\n", {}, "nameserver 9.9.9.9\n"),
        (
            "# a comment\nsearch a b\nnameserver 127.0.0.53\nnameserver 9.9.9.9\noptions edns0",
            {},
            "nameserver 9.9.9.9\nsearch a b\noptions edns0\n",
        ),
        ("nameserver 127.0.0.1\n", {}, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"),
        ("nameserver ::1\n", {"keep_loopback": True}, "nameserver ::1\n"),
        ("", {}, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"),
        (
            "search a\nnameserver 9.9.9.9",
            {"servers": ["1.1.1.1"], "search": ["b"], "options": ["ndots:2"]},
            "nameserver 1.1.1.1\nsearch b\noptions ndots:2\n",
        ),
        ("search a\nnameserver 9.9.9.9", {"search": ["."]}, "nameserver 9.9.9.9\n"),
    ],
)
def test_resolv_conf(text: str, options: dict[str, Any], expected: str) -> None:
    assert make_resolv(text, **options) == expected


def test_a_resolv_conf_that_only_names_the_local_stub() -> None:
    assert has_only_loopback("nameserver 127.0.0.53\n")
    assert not has_only_loopback("nameserver 127.0.0.53\nnameserver 9.9.9.9\n")
    assert not has_only_loopback("search x\n")

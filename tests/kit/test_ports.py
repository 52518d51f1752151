"""Which ports a container publishes, as the user said it."""

from __future__ import annotations

import pytest

from mooring.kit.errors import InvalidParameter
from mooring.kit.models.container import ContainerConfig, HostConfig, PortBinding
from mooring.kit.ports import Wanted, exposed, wanted


def host(bindings: dict[str, list[tuple[str, str]] | None], every: bool = False) -> HostConfig:
    made = {
        port: None if given is None else [PortBinding(host_ip=a, host_port=p) for a, p in given]
        for port, given in bindings.items()
    }
    return HostConfig(port_bindings=made, publish_all_ports=every)


@pytest.mark.parametrize(
    ("bindings", "expected"),
    [
        ({"80/tcp": [("", "8080")]}, [Wanted("tcp", 80, "", 8080, 8080)]),
        ({"80": [("", "")]}, [Wanted("tcp", 80)]),
        ({"53/UDP": None}, [Wanted("udp", 53)]),
        ({"80/tcp": [("[::1]", "1-3")]}, [Wanted("tcp", 80, "::1", 1, 3)]),
        (
            {"80/tcp": [("127.0.0.1", "1"), ("10.0.0.1", "2")], "9/sctp": [("", "0")]},
            [
                Wanted("sctp", 9),
                Wanted("tcp", 80, "127.0.0.1", 1, 1),
                Wanted("tcp", 80, "10.0.0.1", 2, 2),
            ],
        ),
    ],
)
def test_bindings_are_read_as_clients_write_them(
    bindings: dict[str, list[tuple[str, str]] | None], expected: list[Wanted]
) -> None:
    assert wanted(ContainerConfig(), host(bindings)) == expected


def test_publish_all_takes_what_is_exposed_and_not_bound() -> None:
    config = ContainerConfig(exposed_ports={"80/tcp": {}, "90-92/udp": {}, "81": {}})
    found = wanted(config, host({"80/tcp": [("", "8080")]}, every=True))
    assert [(item.name, item.first) for item in found] == [
        ("80/tcp", 8080),
        ("81/tcp", 0),
        ("90/udp", 0),
        ("91/udp", 0),
        ("92/udp", 0),
    ]


@pytest.mark.parametrize("text", ["0", "65536", "x", "80/icmp", "90-80", "", "-1", "8 0", "٣"])
def test_a_port_that_is_none_is_named(text: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        exposed(ContainerConfig(exposed_ports={text: {}}))
    assert caught.value.message == f'invalid port specification: "{text}"'


def test_a_host_address_that_is_none_is_named() -> None:
    with pytest.raises(InvalidParameter) as caught:
        wanted(ContainerConfig(), host({"80": [("web", "1")]}))
    assert caught.value.message == "invalid IP address: web"


def test_a_network_says_where_ports_without_an_address_are() -> None:
    assert Wanted("tcp", 80).at("10.0.0.1") == Wanted("tcp", 80, "10.0.0.1")
    for default in ("", "0.0.0.0"):
        assert Wanted("tcp", 80).at(default) == Wanted("tcp", 80)
    assert Wanted("tcp", 80, "::1").at("10.0.0.1") == Wanted("tcp", 80, "::1")

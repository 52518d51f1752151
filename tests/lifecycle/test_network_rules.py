"""What networks may be, and which subnets they get: decisions without a host."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from mooring.kit.errors import EngineError, Forbidden, InvalidParameter
from mooring.kit.models.network import CreateNetwork, IpamPool
from mooring.lifecycle.network_rules import complete, draft, free_subnet

POOLS = "10.192.0.0/22:24"
ID = "c0ffee" * 10 + "c0ff"


def network(**fields: Any) -> list[tuple[str, str]]:
    """The subnets and gateways of a network of its own."""
    record = draft(CreateNetwork(name="mine", **fields), ID)
    return [(pool.subnet, pool.gateway) for pool in complete(record, [], [], POOLS).ipam]


def test_a_network_gets_the_first_free_subnet_and_its_first_address_as_gateway() -> None:
    assert network() == [("10.192.0.0/24", "10.192.0.1")]


@pytest.mark.parametrize(
    ("avoided", "expected"),
    [
        ([], "10.192.0.0/24"),
        (["10.192.0.0/24"], "10.192.1.0/24"),
        (["10.192.0.128/25"], "10.192.1.0/24"),
        (["10.192.0.0/23"], "10.192.2.0/24"),
        (["10.192.1.0/24"], "10.192.0.0/24"),
        (["10.192.0.5/32", "10.192.1.0/24", "10.192.2.255/32"], "10.192.3.0/24"),
        (["fd00::/8"], "10.192.0.0/24"),
    ],
)
def test_a_subnet_overlaps_nothing(avoided: list[str], expected: str) -> None:
    nets = [ipaddress.ip_network(text) for text in avoided]
    assert str(free_subnet(nets, POOLS, 4, "n1")) == expected


def test_when_all_subnets_are_taken_that_is_said() -> None:
    record = draft(CreateNetwork(name="mine"), ID)
    with pytest.raises(InvalidParameter, match="all predefined address pools have been fully"):
        complete(record, ["10.192.0.0/16"], [], POOLS)


def test_ipv6_comes_from_a_prefix_of_the_hosts_own() -> None:
    [(subnet, gateway)] = network(enable_ipv4=False, enable_ipv6=True)
    assert subnet.startswith("fd")
    assert subnet.endswith("::/64")
    assert gateway == subnet.replace("/64", "1")


def test_what_the_host_uses_is_avoided_but_not_forbidden() -> None:
    record = draft(CreateNetwork(name="mine", ipam=[IpamPool(subnet="10.0.0.0/24")]), ID)
    assert complete(record, ["10.0.0.0/16"], [], POOLS).ipam[0].subnet == "10.0.0.0/24"
    with pytest.raises(Forbidden, match="Pool overlaps with other one on this address space"):
        complete(record, [], ["10.0.0.0/16"], POOLS)


def test_a_gateway_is_not_one_of_the_auxiliary_addresses() -> None:
    aux = {"a": "10.5.0.1", "b": "10.5.0.2"}
    pool = IpamPool.model_validate({"Subnet": "10.5.0.0/24", "AuxiliaryAddresses": aux})
    assert network(ipam=[pool]) == [("10.5.0.0/24", "10.5.0.3")]


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ({"subnet": ""}, "invalid subnet : invalid CIDR block notation"),
        ({"subnet": "10.0.0.0"}, "invalid subnet 10.0.0.0: invalid CIDR block notation"),
        ({"subnet": "10.0.0.0/31"}, "it has no room for containers"),
        ({"subnet": "10.0.0.0/24", "ip_range": "x"}, "invalid ip-range x: invalid CIDR"),
        ({"subnet": "10.0.0.0/24", "ip_range": "10.0.0.0/16"}, "invalid ip-range 10.0.0.0/16"),
        ({"subnet": "10.0.0.0/24", "ip_range": "fd00::/64"}, "invalid ip-range fd00::/64"),
        ({"subnet": "10.0.0.0/24", "gateway": "fd00::1"}, "doesn't contain this address"),
        ({"subnet": "10.0.0.0/24", "aux_addresses": {"a": "b"}}, "invalid auxiliary address b"),
    ],
)
def test_bad_pools_are_named(pool: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        network(ipam=[IpamPool(**pool)])
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("driver", "option", "value", "accepted"),
    [
        ("bridge", "com.docker.network.bridge.enable_icc", "0", True),
        ("bridge", "com.docker.network.bridge.enable_icc", "no", False),
        ("bridge", "com.docker.network.driver.mtu", "9000", True),
        ("bridge", "com.docker.network.driver.mtu", "12", False),
        ("bridge", "com.docker.network.bridge.gateway_mode_ipv4", "routed", False),
        ("bridge", "com.docker.network.bridge.gateway_mode_ipv4", "isolated", False),
        ("bridge", "com.docker.network.container_iface_prefix", "net", True),
        ("bridge", "parent", "eth0", False),
        ("macvlan", "parent", "eth0.20", True),
        ("macvlan", "parent", "eth0.5000", False),
        ("macvlan", "macvlan_mode", "passthru", True),
        ("ipvlan", "ipvlan_mode", "l3s", True),
        ("ipvlan", "ipvlan_flag", "nope", False),
        ("macvlan", "ipvlan_flag", "bridge", False),
    ],
)
def test_options_are_known_and_sound(driver: str, option: str, value: str, accepted: bool) -> None:
    request = CreateNetwork(name="mine", driver=driver, options={option: value})
    if accepted:
        assert draft(request, ID).options == {option: value}
        return
    with pytest.raises(EngineError):
        draft(request, ID)

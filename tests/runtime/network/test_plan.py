"""What endpoints are made of and which way the default routes go."""

from __future__ import annotations

from pathlib import Path

import pytest

from mooring.kit.errors import Conflict, EngineError, Forbidden
from mooring.kit.models.network import (
    Endpoint,
    EndpointSettings,
    IpamPool,
    NetworkRecord,
    NetworkState,
)
from mooring.runtime.network import plan
from mooring.runtime.network.lan import Lan


def state(**points: Endpoint) -> NetworkState:
    return plan.routed(NetworkState(endpoints=points))


def test_the_first_network_by_name_is_the_way_out() -> None:
    found = state(b=Endpoint(gateway="10.2.0.1"), a=Endpoint(gateway="10.1.0.1"))
    assert (found.gateway4, found.gateway6) == ("a", "")


def test_a_priority_comes_before_the_name() -> None:
    found = state(
        a=Endpoint(gateway="10.1.0.1", ipv6_gateway="fd01::1"),
        b=Endpoint(gateway="10.2.0.1", gw_priority=1),
    )
    assert (found.gateway4, found.gateway6) == ("b", "a")


def test_a_network_without_a_way_out_is_none() -> None:
    found = state(a=Endpoint(internal=True), b=Endpoint(gateway="10.2.0.1", interface="eth1"))
    assert plan.gateways(found) == {"4": ["10.2.0.1", "eth1"]}


def test_interfaces_are_numbered_and_gaps_are_filled() -> None:
    network = NetworkRecord(id="n", name="n")
    assert plan.interface_name(network, EndpointSettings(), []) == "eth0"
    assert plan.interface_name(network, EndpointSettings(), ["eth0", "eth2"]) == "eth1"
    named = EndpointSettings(driver_opts={"com.docker.network.endpoint.ifname": "web0"})
    assert plan.interface_name(network, named, ["eth0"]) == "web0"
    with pytest.raises(EngineError, match="web0 is already in use"):
        plan.interface_name(network, named, ["web0"])


@pytest.fixture
def lan(tmp_path: Path) -> Lan:
    record = NetworkRecord(
        id="n",
        name="mine",
        enable_ipv6=True,
        ipam=[
            IpamPool(subnet="10.1.0.0/29", gateway="10.1.0.1"),
            IpamPool(subnet="fd01::/64", gateway="fd01::1"),
        ],
    )
    return Lan.open(record, tmp_path)


def fixed(four: str = "", six: str = "") -> EndpointSettings:
    addresses = {"IPv4Address": four, "IPv6Address": six}
    return EndpointSettings.model_validate({"IPAMConfig": addresses})


def test_addresses_of_both_families_are_claimed_and_given_back(lan: Lan, tmp_path: Path) -> None:
    assert lan.claim("a.1", EndpointSettings()) == ("10.1.0.2", "fd01::2")
    assert lan.claim("a.1", EndpointSettings()) == ("10.1.0.2", "fd01::2")
    again = Lan.open(lan.record, tmp_path)
    assert again.claim("b.1", EndpointSettings()) == ("10.1.0.3", "fd01::3")
    assert lan.release("a.1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10.1.0.3", "fd01::3"]


def test_an_address_in_use_leaves_nothing_of_the_other_family(lan: Lan) -> None:
    lan.claim("a.1", fixed(six="fd01::77"))
    with pytest.raises(Forbidden, match="Address already in use"):
        lan.claim("b.1", fixed(six="fd01::77"))
    with pytest.raises(Forbidden, match="Address already in use"):
        lan.claim("b.1", fixed(four="10.1.0.1"))
    assert lan.leases.of("b.1") == []


def test_a_mac_address_is_given_once(lan: Lan) -> None:
    lan.claim_mac("a.1", "02:00:00:00:00:01")
    with pytest.raises(Conflict, match="already in use on network mine by container a"):
        lan.claim_mac("b.1", "02:00:00:00:00:01")
    lan.claim("a.1", EndpointSettings())
    lan.release("a.1")
    lan.claim_mac("b.1", "02:00:00:00:00:01")


def test_a_full_subnet_is_named(lan: Lan) -> None:
    for number in range(5):
        lan.claim(f"c{number}.1", EndpointSettings())
    with pytest.raises(EngineError, match="no available IPv4 addresses on this network's address"):
        lan.claim("more.1", EndpointSettings())
    lan.release("c2.1")
    assert lan.claim("more.1", EndpointSettings())[0] == "10.1.0.4"

"""Networks as a user of the docker CLI sees them, with real containers on them."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest

from tests.engine.harness import Engine, until

from .conftest import endpoints, links, reaches, shown, sleeper

pytestmark = pytest.mark.kernel


def refused(docker: Engine, body: dict[str, Any]) -> tuple[int, str]:
    before = docker.links(), docker.out("network", "ls", "-q")
    answer = docker.api("POST", "/networks/create", body)
    assert (docker.links(), docker.out("network", "ls", "-q")) == before
    return answer.status, answer.message


def test_a_network_is_created_shown_used_and_removed(docker: Engine) -> None:
    made = docker.out("network", "create", "--label", "tier=front", "mine")
    assert f"br-{made[:12]}" in links()
    sleeper(docker, "web", "--network", "mine", "--network-alias", "www")
    point = endpoints(docker, "web")["mine"]
    network = shown(docker, "mine")
    config = network["IPAM"]["Config"][0]
    assert (network["Id"], network["Driver"], network["Labels"]) == (
        made, "bridge", {"tier": "front"},
    )  # fmt: skip
    [inside] = network["Containers"].values()
    assert inside == {
        "Name": "web",
        "EndpointID": point["EndpointID"],
        "MacAddress": point["MacAddress"],
        "IPv4Address": f"{point['IPAddress']}/24",
        "IPv6Address": "",
    }
    assert point["Gateway"] == config["Gateway"]
    assert point["NetworkID"] == made
    assert point["Aliases"] == ["www"]
    assert point["DNSNames"][:2] == ["web", "www"]
    out = docker.out("exec", "web", "sh", "-c", "ip -4 addr show eth0; ip route; cat /etc/hosts")
    assert f"inet {point['IPAddress']}/24" in out
    assert f"default via {config['Gateway']}" in out
    assert re.search(rf"^{point['IPAddress']}\t\w{{12}}$", out, re.MULTILINE)
    assert reaches(docker, "web", config["Gateway"])
    done = docker.docker("network", "rm", "mine", check=False)
    assert f"error while removing network: network mine id {made} has active" in done.stderr
    docker.docker("rm", "-f", "web")
    docker.docker("network", "rm", "mine")
    assert f"br-{made[:12]}" not in links()
    answer = docker.api("GET", "/networks/mine")
    assert (answer.status, answer.message) == (404, "network mine not found")


def test_the_events_of_a_network(docker: Engine) -> None:
    network = docker.out("network", "create", "mine")
    container = sleeper(docker, "web", "--network", "mine")
    docker.docker("rm", "-f", "web")
    docker.docker("network", "rm", "mine")

    def seen() -> list[tuple[str, str | None]]:
        events = docker.events(type="network", network=network)
        return [(e["Action"], e["Actor"]["Attributes"].get("container")) for e in events]

    wanted = [("create", None), ("connect", container), ("disconnect", container),
              ("destroy", None)]  # fmt: skip
    until("the events are there", lambda: seen() == wanted)


def test_networks_are_listed_by_filters(docker: Engine) -> None:
    docker.docker("network", "create", "--label", "a=b", "one")
    docker.docker("network", "create", "two")
    sleeper(docker, "web", "--network", "two")

    def names(*filters: str) -> set[str]:
        options = [part for text in filters for part in ("--filter", text)]
        return set(docker.out("network", "ls", "--format", "{{.Name}}", *options).split())

    assert names() == {"bridge", "host", "none", "one", "two"}
    assert names("type=custom") == {"one", "two"}
    assert names("type=builtin", "driver=bridge") == {"bridge"}
    assert names("label=a") == {"one"}
    assert names("name=tw") == {"two"}
    assert names("dangling=true") == {"one"}
    assert names(f"id={shown(docker, 'one')['Id'][:10]}") == {"one"}
    assert set(docker.out("ps", "--filter", "network=two", "--format", "{{.Names}}").split()) == {
        "web"
    }
    assert docker.out("network", "prune", "-f").split()[-1] == "one"


def test_containers_reach_each_other_on_one_network_and_not_across_two(docker: Engine) -> None:
    for name in ("left", "right"):
        docker.docker("network", "create", name)
    sleeper(docker, "one", "--network", "left")
    sleeper(docker, "two", "--network", "left")
    sleeper(docker, "three", "--network", "right")
    sleeper(docker, "four")
    two = endpoints(docker, "two")["left"]["IPAddress"]
    assert reaches(docker, "one", two)
    assert not reaches(docker, "three", two)
    assert not reaches(docker, "four", two)


def test_containers_of_a_network_without_icc_reach_only_the_host(docker: Engine) -> None:
    docker.docker("network", "create", "-o", "com.docker.network.bridge.enable_icc=false", "shy")
    sleeper(docker, "one", "--network", "shy")
    sleeper(docker, "two", "--network", "shy")
    point = endpoints(docker, "two")["shy"]
    assert not reaches(docker, "one", point["IPAddress"])
    assert reaches(docker, "one", point["Gateway"])


def test_an_internal_network_has_no_way_out(docker: Engine) -> None:
    docker.docker("network", "create", "--internal", "inner")
    docker.docker("network", "create", "outer")
    sleeper(docker, "one", "--network", "inner")
    sleeper(docker, "two", "--network", "inner")
    sleeper(docker, "three", "--network", "outer")
    assert docker.out("exec", "one", "ip", "route").split()[0] != "default"
    assert reaches(docker, "one", endpoints(docker, "two")["inner"]["IPAddress"])
    outside = endpoints(docker, "three")["outer"]["IPAddress"]
    gateway = shown(docker, "inner")["IPAM"]["Config"][0]["Gateway"]
    docker.docker(
        "run", "--rm", "--network", "container:one", "--cap-add", "NET_ADMIN", "bb",
        "ip", "route", "add", "default", "via", gateway,
    )  # fmt: skip
    assert not reaches(docker, "one", outside)


def test_ipv6_beside_ipv4_and_alone(docker: Engine) -> None:
    docker.docker("network", "create", "--ipv6", "both")
    docker.docker("network", "create", "--ipv6", "--ipv4=false", "six")
    sleeper(docker, "one", "--network", "both", "--network", "six")
    sleeper(docker, "two", "--network", "both", "--network", "six")
    both, six = (endpoints(docker, "two")[name] for name in ("both", "six"))
    assert both["IPAddress"] and both["GlobalIPv6Address"] and both["IPv6Gateway"]
    assert (six["IPAddress"], six["IPPrefixLen"]) == ("", 0)
    for address in (both["IPAddress"], both["GlobalIPv6Address"], six["GlobalIPv6Address"]):
        assert reaches(docker, "one", address)
    assert f"default via {both['IPv6Gateway']}" in docker.out("exec", "one", "ip", "-6", "route")
    assert "enable_ipv6" not in json.dumps(shown(docker, "six"))
    assert [shown(docker, "six")[key] for key in ("EnableIPv4", "EnableIPv6")] == [False, True]


def test_addresses_ranges_and_mac_addresses_are_as_asked_for(docker: Engine) -> None:
    docker.docker(
        "network", "create", "--subnet", "10.233.0.0/16", "--ip-range", "10.233.5.0/29",
        "--gateway", "10.233.255.254", "--aux-address", "printer=10.233.5.1",
        "--subnet", "fd99:1::/64", "--ipv6", "wide",
    )  # fmt: skip
    sleeper(docker, "one", "--network", "wide")
    sleeper(docker, "two", "--network", "wide", "--ip", "10.233.7.7", "--ip6", "fd99:1::77",
            "--mac-address", "02:42:00:00:aa:01")  # fmt: skip
    one, two = (endpoints(docker, name)["wide"] for name in ("one", "two"))
    assert (one["IPAddress"], one["Gateway"]) == ("10.233.5.0", "10.233.255.254")
    assert two["IPAddress"] == "10.233.7.7"
    assert two["GlobalIPv6Address"] == "fd99:1::77"
    assert two["MacAddress"] == "02:42:00:00:aa:01"
    assert two["IPAMConfig"] == {"IPv4Address": "10.233.7.7", "IPv6Address": "fd99:1::77"}
    assert "02:42:00:00:aa:01" in docker.out("exec", "two", "ip", "link", "show", "eth0")
    assert reaches(docker, "one", "10.233.7.7")
    for option in (("--ip", "10.233.7.7"), ("--ip", "10.233.255.254"), ("--ip", "10.233.5.1")):
        body = docker.docker("run", "-d", "--name", "more", "--network", "wide", *option, "bb",
                             check=False)  # fmt: skip
        assert "Address already in use" in body.stderr
        docker.docker("rm", "more")
    same = docker.docker("run", "--rm", "--network", "wide", "--mac-address", "02:42:00:00:aa:01",
                         "bb", check=False)  # fmt: skip
    assert "MAC address 02:42:00:00:aa:01 is already in use" in same.stderr
    docker.docker("rm", "-f", "two")
    sleeper(docker, "three", "--network", "wide", "--ip", "10.233.7.7")


def test_an_address_is_given_only_where_the_subnet_is_the_users(docker: Engine) -> None:
    docker.docker("network", "create", "mine")
    done = docker.docker("run", "--rm", "--network", "mine", "--ip", "10.232.0.9", "bb",
                         check=False)  # fmt: skip
    assert "only when connecting to networks with user configured subnets" in done.stderr


def test_a_full_network_says_so_and_gives_addresses_again(docker: Engine) -> None:
    docker.docker("network", "create", "--subnet", "10.234.0.0/30", "tiny")
    sleeper(docker, "one", "--network", "tiny")
    done = docker.docker("run", "--rm", "--network", "tiny", "bb", "true", check=False)
    assert "no available IPv4 addresses on this network's address pools: tiny" in done.stderr
    docker.docker("rm", "-f", "one")
    docker.docker("run", "--rm", "--network", "tiny", "bb", "true")


def test_address_pools_do_not_overlap_and_come_to_an_end(docker: Engine) -> None:
    first = [docker.out("network", "create", f"n{n}") for n in range(8)]
    subnets = {shown(docker, name)["IPAM"]["Config"][0]["Subnet"] for name in first}
    assert subnets == {f"10.232.{n}.0/24" for n in range(8)}
    assert refused(docker, {"Name": "more"}) == (
        400, "all predefined address pools have been fully subnetted",
    )  # fmt: skip
    assert refused(docker, {"Name": "o", "IPAM": {"Config": [{"Subnet": "10.232.3.0/25"}]}}) == (
        403, "invalid pool request: Pool overlaps with other one on this address space",
    )  # fmt: skip
    docker.docker("network", "rm", "n5")
    docker.docker("network", "create", "again")
    assert shown(docker, "again")["IPAM"]["Config"][0]["Subnet"] == "10.232.5.0/24"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"Name": ""}, 400, "name is empty"),
        ({"Name": "bridge"}, 403, "operation is not permitted on predefined bridge network"),
        ({"Name": "x", "Driver": "nope"}, 404, 'plugin "nope" not found'),
        ({"Name": "x", "Driver": "host"}, 403, 'only one instance of "host" network is allowed'),
        ({"Name": "x", "Driver": "overlay"}, 503, "not a swarm manager"),
        ({"Name": "x", "Ingress": True}, 403, "Ingress network can only be global scope"),
        ({"Name": "x", "ConfigOnly": True}, 501, "ConfigOnly"),
        ({"Name": "x", "IPAM": {"Config": [{"Subnet": "banana"}]}}, 400,
         "invalid subnet banana: invalid CIDR block notation"),
        ({"Name": "x", "IPAM": {"Config": [{"Subnet": "10.1.2.3/24"}]}}, 400,
         "invalid subnet 10.1.2.3/24: it should be 10.1.2.0/24"),
        ({"Name": "x", "IPAM": {"Config": [{"Subnet": "fd01::/64"}]}}, 400,
         "IPv6 has not been enabled for this network"),
        ({"Name": "x", "IPAM": {"Config": [{"Subnet": "10.1.0.0/16", "Gateway": "10.2.0.1"}]}},
         400, "invalid gateway 10.2.0.1: parent subnet 10.1.0.0/16 doesn't contain this address"),
        ({"Name": "x", "IPAM": {"Driver": "nope"}}, 404, 'plugin "nope" not found'),
        ({"Name": "x", "EnableIPv4": False}, 400, "IPv4 or IPv6 must be enabled"),
        ({"Name": "x", "Options": {"com.docker.network.driver.mtu": "a"}}, 400,
         "failed to parse com.docker.network.driver.mtu value: a"),
        ({"Name": "x", "Options": {"com.docker.network.bridge.enable_icc": "a"}}, 400,
         "failed to parse com.docker.network.bridge.enable_icc value: a"),
        ({"Name": "x", "Options": {"com.docker.network.bridge.name": "much-too-long-a-name"}},
         400, "invalid interface name"),
        ({"Name": "x", "Options": {"com.docker.network.bridge.nope": "a"}}, 501,
         "network option com.docker.network.bridge.nope is not supported"),
        ({"Name": "x", "Options": {"com.docker.network.bridge.name": "lo0/x"}}, 400,
         "invalid interface name"),
        ({"Name": "x", "Driver": "macvlan", "Options": {"parent": "nope0"}}, 400,
         "the parent interface nope0 was not found"),
        ({"Name": "x", "Driver": "macvlan", "Options": {"macvlan_mode": "nope"}}, 400,
         "requested macvlan mode 'nope' is not valid"),
        ({"Name": "x", "Driver": "ipvlan", "Options": {"parent": "lo.9999"}}, 400,
         "vlan id must be between 1-4094, received: 9999"),
    ],
)  # fmt: skip
def test_what_no_network_can_be_is_refused_and_leaves_nothing(
    docker: Engine, body: dict[str, Any], status: int, words: str
) -> None:
    code, message = refused(docker, body)
    assert (code, words in message) == (status, True), message


def test_a_name_is_given_once(docker: Engine) -> None:
    docker.docker("network", "create", "mine")
    assert refused(docker, {"Name": "mine"}) == (409, "network with name mine already exists")
    for name in ("bridge", "host", "none"):
        answer = docker.api("DELETE", f"/networks/{name}")
        assert answer.status == 403
        assert answer.message == f"{name} is a pre-defined network and cannot be removed"


def test_a_bridge_has_the_name_and_the_mtu_that_were_asked_for(docker: Engine) -> None:
    name = f"mt{os.getpid()}"
    docker.docker("network", "create", "-o", f"com.docker.network.bridge.name={name}",
                  "-o", "com.docker.network.driver.mtu=1280", "mine")  # fmt: skip
    assert name in links()
    assert "mtu 1280" in docker.out("run", "--rm", "--network", "mine", "bb", "ip", "link",
                                    "show", "eth0")  # fmt: skip
    docker.docker("network", "rm", "mine")
    assert name not in links()

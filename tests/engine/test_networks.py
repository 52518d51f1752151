"""Networks as a user of the docker CLI sees them, with real containers on them."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .harness import Engine, engine, kernel_leftovers, until

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def networked() -> Iterator[Engine]:
    with engine("--set", "address_pools=10.232.0.0/21:24") as made:
        yield made


@pytest.fixture
def docker(networked: Engine) -> Iterator[Engine]:
    yield networked
    networked.remove_all()
    networked.docker("network", "prune", "-f")


def links() -> set[str]:
    return set(os.listdir("/sys/class/net"))


def ours(docker: Engine) -> list[str]:
    """The links of this engine's networks; other engines come and go on the same host."""
    return [text for text in kernel_leftovers(docker) if text.startswith("link")]


def sleeper(docker: Engine, name: str, *options: str) -> str:
    return docker.out("run", "-d", "--name", name, *options, "bb", "sleep", "1000")


def endpoints(docker: Engine, name: str) -> Any:
    return docker.inspect(name)["NetworkSettings"]["Networks"]


def reaches(docker: Engine, name: str, address: str) -> bool:
    ping = ("exec", name, "ping", "-c1", "-W1", address)
    return docker.docker(*ping, check=False).returncode == 0


def shown(docker: Engine, name: str) -> Any:
    return json.loads(docker.out("network", "inspect", name))[0]


def refused(docker: Engine, body: dict[str, Any]) -> tuple[int, str]:
    before = ours(docker), docker.out("network", "ls", "-q")
    answer = docker.api("POST", "/networks/create", body)
    assert (ours(docker), docker.out("network", "ls", "-q")) == before
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


def test_a_running_container_is_connected_and_disconnected(docker: Engine) -> None:
    docker.docker("network", "create", "one")
    docker.docker("network", "create", "two")
    made = sleeper(docker, "web", "--network", "one")
    sleeper(docker, "other", "--network", "two")
    docker.docker("network", "connect", "--ip", "", "--alias", "db", "two", "web")
    point = endpoints(docker, "web")["two"]
    assert point["Aliases"] == ["db"]
    assert reaches(docker, "web", endpoints(docker, "other")["two"]["IPAddress"])
    assert f"{point['IPAddress']}\t{made[:12]}" in docker.out("exec", "web", "cat", "/etc/hosts")
    again = docker.docker("network", "connect", "two", "web", check=False)
    assert "endpoint with name web already exists in network two" in again.stderr
    docker.docker("network", "disconnect", "one", "web")
    assert list(endpoints(docker, "web")) == ["two"]
    out = docker.out("exec", "web", "sh", "-c", "ls /sys/class/net; ip route; cat /etc/hosts")
    assert "eth0" not in out
    assert f"default via {point['Gateway']} dev eth1" in out
    assert len(re.findall(r"^10\.232\..*$", out, re.MULTILINE)) >= 1
    docker.docker("restart", "-t", "0", "web")
    assert list(endpoints(docker, "web")) == ["two"]
    docker.docker("network", "disconnect", "two", "web")
    assert endpoints(docker, "web") == {} or "IPAddress" in str(endpoints(docker, "web"))
    missing = docker.docker("network", "disconnect", "one", "web", check=False)
    assert f"container {made} is not connected to the network one" in missing.stderr
    events = docker.events(type="network", network="two")
    actions = [e["Action"] for e in events if e["Actor"]["Attributes"].get("container") == made]
    assert actions[:3] == ["connect", "disconnect", "connect"]


def test_a_renamed_container_is_found_by_its_new_name(docker: Engine) -> None:
    docker.docker("network", "create", "mine")
    made = sleeper(docker, "web", "--network", "mine", "--network-alias", "www")
    docker.docker("rename", "web", "shop")
    assert endpoints(docker, "shop")["mine"]["DNSNames"] == ["shop", "www", made[:12]]
    stored = next((docker.run / "shims").glob(f"{made}.1/network.msgpack")).read_bytes()
    assert b"shop" in stored
    assert b"web" not in stored


def test_a_stopped_container_keeps_what_it_is_connected_to(docker: Engine) -> None:
    docker.docker("network", "create", "one")
    docker.docker("create", "--name", "web", "bb", "sleep", "1000")
    docker.docker("network", "connect", "one", "web")
    assert list(endpoints(docker, "web")) == ["bridge", "one"]
    docker.docker("start", "web")
    assert all(point["IPAddress"] for point in endpoints(docker, "web").values())
    docker.docker("stop", "-t", "0", "web")
    docker.docker("network", "disconnect", "bridge", "web")
    docker.docker("start", "web")
    assert list(endpoints(docker, "web")) == ["one"]


def test_the_way_out_follows_the_priority(docker: Engine) -> None:
    for name in ("a", "b"):
        docker.docker("network", "create", name)
    sleeper(docker, "web", "--network", "a", "--network", "name=b,gw-priority=5")
    gateway = endpoints(docker, "web")["b"]["Gateway"]
    assert f"default via {gateway} dev eth1" in docker.out("exec", "web", "ip", "route")
    sleeper(docker, "plain", "--network", "b", "--network", "a")
    gateway = endpoints(docker, "plain")["a"]["Gateway"]
    assert f"default via {gateway} dev eth1" in docker.out("exec", "plain", "ip", "route")
    docker.docker("network", "create", "c")
    docker.docker("network", "connect", "--gw-priority", "9", "c", "web")
    assert endpoints(docker, "web")["c"]["GwPriority"] == 9
    gateway = endpoints(docker, "web")["c"]["Gateway"]
    assert f"default via {gateway} dev eth2" in docker.out("exec", "web", "ip", "route")
    docker.docker("network", "disconnect", "c", "web")
    gateway = endpoints(docker, "web")["b"]["Gateway"]
    assert f"default via {gateway} dev eth1" in docker.out("exec", "web", "ip", "route")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--network", "host", "--name", "box"], "connected to host network"),
        (["--network", "none", "--name", "box"], "private (none) mode"),
    ],
)
def test_what_cannot_be_connected_says_why(docker: Engine, options: list[str], words: str) -> None:
    docker.docker("network", "create", "one")
    docker.docker("run", "-d", *options, "bb", "sleep", "1000")
    done = docker.docker("network", "connect", "one", "box", check=False)
    assert words in done.stderr
    assert docker.api("POST", "/networks/one/connect", {"Container": "nope"}).status == 404


def test_an_endpoint_has_the_sysctls_and_the_name_it_asked_for(docker: Engine) -> None:
    docker.docker("network", "create", "one")
    key = "com.docker.network.endpoint"
    option = (
        f'name=one,"driver-opt={key}.sysctls=net.ipv4.conf.IFNAME.log_martians=1",'
        f"driver-opt={key}.ifname=web0"
    )
    shell = "ls /sys/class/net; cat /proc/sys/net/ipv4/conf/web0/log_martians"
    out = docker.out("run", "--rm", "--network", option, "bb", "sh", "-c", shell)
    assert out.split() == ["lo", "web0", "1"]
    sleeper(docker, "late")
    option = f"{key}.sysctls=net.ipv4.conf.IFNAME.log_martians=1"
    docker.docker("network", "connect", "--driver-opt", option, "one", "late")
    shown_value = docker.out("exec", "late", "cat", "/proc/sys/net/ipv4/conf/eth1/log_martians")
    assert shown_value == "1"
    docker.docker("network", "create", "two")
    done = docker.docker("network", "connect", "--driver-opt", "a.b=c", "two", "late", check=False)
    assert "endpoint option a.b is not supported" in done.stderr


def test_a_link_names_a_container_of_the_default_bridge(docker: Engine) -> None:
    made = sleeper(docker, "db", "--expose", "5432", "-e", "DATABASE=shop")
    sleeper(docker, "web", "--link", "db:store")
    address = endpoints(docker, "db")["bridge"]["IPAddress"]
    told = [line for line in docker.out("exec", "web", "env").split() if "STORE_" in line]
    assert told == [
        "STORE_NAME=/web/store",
        f"STORE_PORT=tcp://{address}:5432",
        f"STORE_PORT_5432_TCP=tcp://{address}:5432",
        f"STORE_PORT_5432_TCP_ADDR={address}",
        "STORE_PORT_5432_TCP_PORT=5432",
        "STORE_PORT_5432_TCP_PROTO=tcp",
        "STORE_ENV_DATABASE=shop",
    ]
    assert f"{address}\tstore {made[:12]} db" in docker.out("exec", "web", "cat", "/etc/hosts")
    assert reaches(docker, "web", "store")
    assert docker.inspect("web")["HostConfig"]["Links"] == ["/db:/web/store"]
    docker.docker("stop", "-t", "0", "db", "web")
    done = docker.docker("start", "web", check=False)
    assert "Cannot link to a non running container: /db AS /web/store" in done.stderr
    done = docker.docker("run", "--link", "nope", "bb", check=False)
    assert "could not get container for nope: No such container: nope" in done.stderr


def test_a_link_on_a_network_of_ones_own_is_a_private_name(docker: Engine) -> None:
    docker.docker("network", "create", "mine")
    sleeper(docker, "db", "--network", "mine")
    sleeper(docker, "web", "--network", "mine", "--link", "db:store")
    assert endpoints(docker, "web")["mine"]["Links"] == ["db:store"]


def test_macvlan_gives_a_container_a_place_on_the_parents_wire(docker: Engine) -> None:
    parent = f"mt{os.getpid()}a"
    peer = f"mt{os.getpid()}b"
    subprocess.run(["ip", "link", "add", parent, "type", "veth", "peer", peer], check=True)
    try:
        subprocess.run(["ip", "link", "set", peer, "up"], check=True)
        docker.docker("network", "create", "-d", "macvlan", "-o", f"parent={parent}",
                      "--subnet", "10.236.0.0/24", "wire")  # fmt: skip
        sleeper(docker, "one", "--network", "wire")
        sleeper(docker, "two", "--network", "wire")
        assert reaches(docker, "one", endpoints(docker, "two")["wire"]["IPAddress"])
        assert "macvlan" not in docker.out("exec", "one", "ls", "/sys/class/net")
        docker.remove_all()
        docker.docker("network", "rm", "wire")
        assert parent in links()
    finally:
        subprocess.run(["ip", "link", "del", parent], check=True)


def test_a_vlan_of_a_parent_works_or_says_that_the_kernel_lacks_it(docker: Engine) -> None:
    parent = f"mv{os.getpid()}a"
    subprocess.run(["ip", "link", "add", parent, "type", "veth", "peer", f"{parent}b"], check=True)
    create = ("network", "create", "-d", "macvlan", "-o", f"parent={parent}.7", "--subnet",
              "10.237.1.0/24", "wire")  # fmt: skip
    try:
        done = docker.docker(*create, check=False)
        if done.returncode:
            assert "the kernel of this host has no VLAN (8021q)" in done.stderr
            assert docker.api("GET", "/networks/wire").status == 404
        else:
            docker.docker("run", "--rm", "--network", "wire", "bb", "true")
            docker.docker("network", "rm", "wire")
        assert f"{parent}.7" not in links()
    finally:
        subprocess.run(["ip", "link", "del", parent], check=True)


def test_ipvlan_works_or_says_that_the_kernel_lacks_it(docker: Engine) -> None:
    docker.docker("network", "create", "-d", "ipvlan", "-o", "parent=lo", "--subnet",
                  "10.237.0.0/24", "wire", check=False)  # fmt: skip
    done = docker.docker("run", "--rm", "--network", "wire", "bb", "true", check=False)
    if done.returncode:
        assert re.search(r"the kernel of this host has no ipvlan|cannot connect", done.stderr)


def test_a_deleted_bridge_is_made_again_by_the_next_start(docker: Engine) -> None:
    network = docker.out("network", "create", "mine")
    sleeper(docker, "old", "--network", "mine")
    bridge = f"br-{network[:12]}"
    subprocess.run(["ip", "link", "del", bridge], check=True)
    sleeper(docker, "new", "--network", "mine")
    assert reaches(docker, "new", endpoints(docker, "old")["mine"]["IPAddress"])
    assert f"the bridge {bridge} of network mine was gone" in docker.logs()


def test_the_default_bridge_is_made_again_as_well(docker: Engine) -> None:
    sleeper(docker, "old")
    name = shown(docker, "bridge")["Options"]["com.docker.network.bridge.name"]
    subprocess.run(["ip", "link", "del", name], check=True)
    sleeper(docker, "new")
    assert reaches(docker, "new", endpoints(docker, "old")["bridge"]["IPAddress"])
    assert f"the bridge {name} was gone" in docker.logs()


@pytest.mark.parametrize("damage", ["delete table", "flush table", "flush set"])
def test_a_damaged_table_is_made_again_by_the_next_start(docker: Engine, damage: str) -> None:
    network = docker.out("network", "create", "mine")
    sleeper(docker, "old", "--network", "mine")
    table = ["inet", docker.instance]
    what = [*table, "bridges"] if damage == "flush set" else table
    subprocess.run(["nft", *damage.split(), *what], check=True)
    sleeper(docker, "new")
    listed = subprocess.run(["nft", "list", "table", *table], capture_output=True, text=True)
    assert listed.stdout.count(f"br-{network[:12]}") >= 3
    assert "masquerade" in listed.stdout
    assert not reaches(docker, "new", endpoints(docker, "old")["mine"]["IPAddress"])
    assert f"the nftables table {docker.instance} was changed by somebody" in docker.logs()


def test_a_prepared_sandbox_whose_link_was_deleted_is_not_used(docker: Engine) -> None:
    docker.docker("network", "create", "mine")
    docker.docker("run", "--rm", "--network", "mine", "bb", "true")
    busy = {path.name for path in Path("/sys/class/net").glob("mrv*") if not _master(path)}
    for name in busy:
        subprocess.run(["ip", "link", "del", name], capture_output=True)
    sleeper(docker, "web", "--network", "mine")
    assert reaches(docker, "web", endpoints(docker, "web")["mine"]["Gateway"])


def _master(path: Path) -> bool:
    return (path / "master").exists()

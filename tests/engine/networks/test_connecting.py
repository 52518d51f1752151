"""Containers connected to networks: running ones, stopped ones, by which way, by which names."""

from __future__ import annotations

import re

import pytest

from tests.engine.harness import Engine

from .conftest import endpoints, reaches, sleeper

pytestmark = pytest.mark.kernel


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


@pytest.mark.parametrize("running", [True, False])
def test_who_was_disconnected_from_all_networks_stays_so(docker: Engine, running: bool) -> None:
    docker.docker("create", "--name", "web", "bb", "sleep", "1000")
    if running:
        docker.docker("start", "web")
    docker.docker("network", "disconnect", "bridge", "web")
    for _ in range(2):
        assert endpoints(docker, "web") == {}
        docker.docker("restart", "-t", "0", "web")
        assert docker.out("exec", "web", "ls", "/sys/class/net") == "lo"
        listed = docker.api("GET", "/containers/json").json
        assert listed[0]["NetworkSettings"]["Networks"] == {}
        assert docker.out("ps", "-q", "--filter", "network=bridge") == ""
    missing = docker.docker("network", "disconnect", "nowhere", "web", check=False)
    assert "network nowhere not found" in missing.stderr
    docker.docker("network", "connect", "bridge", "web")
    docker.docker("restart", "-t", "0", "web")
    assert list(endpoints(docker, "web")) == ["bridge"]
    assert "eth0" in docker.out("exec", "web", "ls", "/sys/class/net")


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

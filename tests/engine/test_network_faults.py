"""Kills in the middle of changes of networks: each is finished or undone, nothing is left."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from .harness import SERVICES, Engine, engine, until

pytestmark = [pytest.mark.kernel, pytest.mark.fault]


@pytest.fixture(scope="module")
def faulty() -> Iterator[Engine]:
    with engine("--set", "faults=true") as made:
        yield made


@pytest.fixture
def docker(faulty: Engine) -> Iterator[Engine]:
    yield faulty
    faulty.disarm()
    until("the API answers", faulty.answers)
    faulty.remove_all()
    faulty.retried("network", "prune", "-f")
    until("no lease is left", lambda: not faulty.held(), 75)
    until("no link is left", lambda: not faulty.links())


def on(docker: Engine, container: str) -> set[str]:
    return set(docker.inspect(container)["NetworkSettings"]["Networks"])


def inside(docker: Engine, container: str) -> set[str]:
    out = docker.out("exec", container, "ls", "/sys/class/net")
    return set(out.split()) - {"lo"}


CREATE = (
    "lifecycle.network.claimed",
    "lifecycle.network.made",
    "runtime.network.stored",
    "runtime.network.made",
)
REMOVE = ("lifecycle.network.removing", "lifecycle.network.unmade", "runtime.network.unlinked")
REWIRE = ("lifecycle.rewire.claimed", "lifecycle.rewire.hosted", "lifecycle.rewire.recorded")


@pytest.mark.parametrize("point", CREATE)
def test_a_network_is_created_once_through_a_kill(docker: Engine, point: str) -> None:
    docker.arm(point)
    made = docker.out("network", "create", "mine")
    assert docker.fired(point)
    assert docker.out("network", "ls", "-q", "--filter", "name=mine") == made[:12]
    assert docker.links() == [f"link br-{made[:12]}"]
    docker.docker("run", "--rm", "--network", "mine", "bb", "true")
    created = docker.events(type="network", network=made, event="create")
    assert len(created) == 1


@pytest.mark.parametrize("point", REMOVE)
def test_a_network_is_removed_through_a_kill(docker: Engine, point: str) -> None:
    made = docker.out("network", "create", "mine")
    docker.arm(point)
    docker.docker("network", "rm", "mine")
    assert docker.fired(point)
    assert not docker.links()
    assert docker.api("GET", "/networks/mine").status == 404
    docker.docker("network", "create", "mine")
    assert len(docker.events(type="network", network=made, event="destroy")) == 1


def test_the_name_of_a_network_that_is_being_removed_is_waited_for(docker: Engine) -> None:
    """Nobody finds the network any more: that its name were taken would be no answer."""
    docker.docker("network", "create", "mine")
    worker = docker.pids()["runtime"]
    os.kill(worker, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor() as pool:
            removed = pool.submit(docker.api, "DELETE", "/networks/mine")
            until("it is hidden", lambda: docker.api("GET", "/networks/mine").status == 404)
            body = {"Name": "mine"}
            made = pool.submit(docker.api, "POST", "/networks/create", body)
            until("both wait", lambda: removed.running() and made.running())
            os.kill(worker, signal.SIGCONT)
            assert removed.result().status == 204
            assert made.result().status == 201
    finally:
        os.kill(worker, signal.SIGCONT)


@pytest.mark.parametrize(
    "point",
    [*REWIRE, "runtime.network.claimed", "runtime.connect.plugged", "runtime.connect.recorded"],
)
def test_a_container_is_connected_through_a_kill(docker: Engine, point: str) -> None:
    network = docker.out("network", "create", "mine")
    docker.docker("run", "-d", "--name", "web", "bb", "sleep", "1000")
    docker.arm(point)
    docker.docker("network", "connect", "mine", "web")
    assert docker.fired(point)
    assert on(docker, "web") == {"bridge", "mine"}
    assert inside(docker, "web") == {"eth0", "eth1"}
    assert len(docker.events(type="network", network=network, event="connect")) == 1
    leases = list((docker.state / "network" / network / "leases").iterdir())
    assert len(leases) == 1


@pytest.mark.parametrize(
    "point", [*REWIRE, "runtime.disconnect.unplugged", "runtime.disconnect.recorded"]
)
def test_a_container_is_disconnected_through_a_kill(docker: Engine, point: str) -> None:
    network = docker.out("network", "create", "mine")
    docker.docker("run", "-d", "--name", "web", "--network", "mine", "bb", "sleep", "1000")
    docker.arm(point)
    docker.docker("network", "disconnect", "mine", "web")
    assert docker.fired(point)
    assert "mine" not in docker.inspect("web")["NetworkSettings"]["Networks"]
    assert inside(docker, "web") == set()
    assert not list((docker.state / "network" / network / "leases").iterdir())
    docker.docker("network", "rm", "mine")


def test_a_new_name_is_told_to_the_networks_though_nobody_asks_again(docker: Engine) -> None:
    docker.docker("network", "create", "mine")
    made = docker.out("run", "-d", "--name", "web", "--network", "mine", "bb", "sleep", "1000")
    docker.arm("lifecycle.rename.recorded")
    client = docker.popen("rename", "web", "shop")
    until("the name is recorded", lambda: docker.fired("lifecycle.rename.recorded"))
    old = docker.kill("gateway")
    docker.back("gateway", old)
    client.communicate(timeout=60)
    stored = docker.run / "shims" / f"{made}.1" / "network.msgpack"
    until("its networks know it", lambda: b"shop" in stored.read_bytes())
    assert on(docker, "shop") == {"mine"}


def asked_at_once(docker: Engine, path: str, body: dict[str, str]) -> list[int]:
    """What four of the same request are answered that come before the worker carries one out."""
    worker = docker.pids()["runtime"]
    os.kill(worker, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor() as pool:
            asked = [pool.submit(docker.api, "POST", path, body) for _ in range(4)]
            until("all wait", lambda: all(one.running() for one in asked))
            os.kill(worker, signal.SIGCONT)
            return sorted(one.result().status for one in asked)
    finally:
        os.kill(worker, signal.SIGCONT)


def test_a_change_of_a_network_waits_for_the_one_under_way(docker: Engine) -> None:
    """What is answered to it depends on how that ends."""
    docker.docker("network", "create", "mine")
    docker.docker("run", "-d", "--name", "web", "bb", "sleep", "1000")
    for change, refused in (("connect", 403), ("disconnect", 500)):
        statuses = asked_at_once(docker, f"/networks/mine/{change}", {"Container": "web"})
        assert statuses == [200, *[refused] * 3]
        assert on(docker, "web") == {"bridge", *(["mine"] if change == "connect" else [])}


@pytest.mark.parametrize("point", ["runtime.network.claimed", "runtime.start.sandbox",
                                   "runtime.start.prepared", "lifecycle.start.hosted"])  # fmt: skip
def test_a_start_on_a_network_survives_a_kill(docker: Engine, point: str) -> None:
    network = docker.out("network", "create", "mine")
    docker.arm(point)
    docker.docker("run", "-d", "--name", "web", "--network", "mine", "bb", "sleep", "1000")
    assert docker.fired(point)
    assert inside(docker, "web") == {"eth0"}
    leases = [path.name for path in (docker.state / "network" / network / "leases").iterdir()]
    assert leases == [docker.inspect("web")["NetworkSettings"]["Networks"]["mine"]["IPAddress"]]


@pytest.mark.parametrize("service", SERVICES)
def test_containers_keep_their_networks_through_a_kill(docker: Engine, service: str) -> None:
    docker.docker("network", "create", "mine")
    docker.docker("run", "-d", "--name", "two", "--network", "mine", "bb", "sleep", "1000")
    address = docker.inspect("two")["NetworkSettings"]["Networks"]["mine"]["IPAddress"]
    ping = ("ping", "-i", "0.1", address)
    docker.docker("run", "-d", "--name", "one", "--network", "mine", "bb", *ping)
    before = rules(docker)
    old = docker.kill(service)
    docker.back(service, old)
    docker.docker("run", "--rm", "--network", "mine", "bb", "ping", "-c1", "-W5", address)
    sequence = [int(n) for n in re.findall(r"seq=(\d+)", docker.out("logs", "one"))]
    assert sequence == list(range(len(sequence)))
    assert sequence
    assert rules(docker) == before


def rules(docker: Engine) -> str:
    """The chains of our table with the handles of their rules: the same as long as untouched."""
    command = ["nft", "-a", "list", "table", "inet", docker.instance]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return "\n".join(line for line in out.splitlines() if "handle" in line)


STEPS = (
    ("start", "web"),
    ("network", "connect", "mine", "web"),
    ("network", "disconnect", "mine", "web"),
    ("rm", "-f", "web"),
)


@pytest.mark.parametrize("service", SERVICES)
def test_whatever_is_killed_during_a_change_it_is_done_or_not_done(
    docker: Engine, service: str
) -> None:
    network = docker.out("network", "create", "mine")
    leases = docker.state / "network" / network / "leases"
    docker.docker("create", "--name", "web", "bb", "sleep", "1000")
    for step in STEPS:
        running = docker.popen(*step)
        old = docker.kill(service)
        said = running.communicate(timeout=60)
        docker.back(service, old)
        # The client of a gateway that died may not know; it asks again then, and may be too late.
        if running.returncode:
            assert service == "gateway", said
            docker.docker(*step, check=False)
        match step[0], step[-3:]:
            case "start", _:
                docker.in_state("web", "running")
                assert inside(docker, "web") == {"eth0"}
            case _, ("connect", *_):
                until("connected", lambda: on(docker, "web") == {"bridge", "mine"})
                until("it has its link", lambda: inside(docker, "web") == {"eth0", "eth1"})
                assert len(list(leases.iterdir())) == 1
            case _, ("disconnect", *_):
                until("disconnected", lambda: on(docker, "web") == {"bridge"})
                until("its link is gone", lambda: inside(docker, "web") == {"eth0"})
                until("its address is free", lambda: not list(leases.iterdir()))
            case _:
                until("it is gone", lambda: docker.api("GET", "/containers/web/json").status == 404)


def test_a_running_container_whose_link_was_deleted_gets_another_at_its_next_start(
    docker: Engine,
) -> None:
    docker.docker("network", "create", "mine")
    for name, network in (("one", "mine"), ("two", "bridge")):
        docker.docker("run", "-d", "--name", name, "--network", network, "bb", "sleep", "1000")
        subprocess.run(["ip", "link", "del", host_end(docker, name)], check=True)
        assert inside(docker, name) == set()
        docker.docker("restart", "-t", "0", name)
        assert inside(docker, name) == {"eth0"}
        gateway = docker.inspect(name)["NetworkSettings"]["Networks"][network]["Gateway"]
        docker.docker("exec", name, "ping", "-c1", "-W5", gateway)
    subprocess.run(["ip", "link", "del", host_end(docker, "one")], check=True)
    docker.docker("network", "disconnect", "mine", "one")
    docker.docker("network", "connect", "mine", "one")
    assert inside(docker, "one") == {"eth0"}


def host_end(docker: Engine, container: str) -> str:
    """The host's end of a container's eth0."""
    index = docker.out("exec", container, "cat", "/sys/class/net/eth0/iflink")
    return socket.if_indextoname(int(index))


def test_a_network_removed_while_a_start_is_in_flight(docker: Engine) -> None:
    for number in range(6):
        name = f"n{number}"
        docker.docker("network", "create", name)
        docker.docker("create", "--name", name, "--network", name, "bb", "sleep", "1000")
        with ThreadPoolExecutor(2) as pool:
            start = pool.submit(docker.docker, "start", name, check=False)
            remove = pool.submit(docker.docker, "network", "rm", name, check=False)
        started, removed = start.result(), remove.result()
        if started.returncode == 0:
            assert "has active endpoints" in removed.stderr
            assert inside(docker, name) == {"eth0"}
        else:
            assert f"network {name} not found" in started.stderr
            assert removed.returncode == 0
            assert docker.state_of(name) == "created"


def test_the_bridges_come_back_with_an_engine_that_was_down(docker: Engine) -> None:
    network = docker.out("network", "create", "mine")
    bridge = f"br-{network[:12]}"
    docker.down()
    assert bridge not in os.listdir("/sys/class/net")
    docker.up("--set", "faults=true")
    docker.docker("run", "--rm", "--network", "mine", "bb", "true")
    assert docker.links() == [f"link {bridge}"]

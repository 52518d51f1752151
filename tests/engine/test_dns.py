"""Names at 127.0.0.11: what containers find, whom others are asked of, and what a kill changes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mooring.runtime.network.dns import wire

from .harness import Engine, engine, until

pytestmark = pytest.mark.kernel

OPTIONS = ("--set", "faults=true", "--set", "bridge_subnet=10.253.12.0/24")
FRONT, BRIDGE = "10.253.13.1", "10.253.12.1"
"""Gateways: addresses of the host, where the tests' own name servers are."""
ASK = """
import json, socket, struct, sys
tcp, names = sys.argv[1] == "tcp", sys.argv[2:]
for name in names:
    text = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    packet = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + text + bytes([0, 0, 1, 0, 1])
    kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.settimeout(10)
        sock.connect(("127.0.0.11", 53))
        sock.send((struct.pack(">H", len(packet)) if tcp else b"") + packet)
        answer = sock.recv(65535)[2 if tcp else 0:]
    count = struct.unpack_from(">H", answer, 6)[0]
    print(json.dumps([answer[3] & 15, bool(answer[2] & 2), count, list(answer[-4:])]), flush=True)
"""


@pytest.fixture(scope="module")
def named() -> Iterator[Engine]:
    with engine(*OPTIONS) as made:
        made.docker("network", "create", "--subnet", "10.253.13.0/24", "front")
        yield made
        made.remove_all()
        made.docker("network", "rm", "front")


@pytest.fixture
def docker(named: Engine) -> Iterator[Engine]:
    yield named
    named.remove_all()
    names = named.run / "shims" / ".names"
    with contextlib.suppress(AssertionError):
        until("nothing is left", lambda: not named.held() and not os.listdir(names), 75)
    assert named.held() == os.listdir(names) == [], (named.run / "mooring.log").read_text()


def run(docker: Engine, name: str, *options: str) -> None:
    docker.docker("run", "-d", "--name", name, "--network", "front", *options, "bb", "sleep", "999")


def finds(docker: Engine, name: str, wanted: str) -> bool:
    return docker.docker("exec", name, "ping", "-c1", "-W5", wanted, check=False).returncode == 0


def command(docker: Engine, container: str, how: str, *names: str) -> list[str]:
    pid = str(docker.inspect(container)["State"]["Pid"])
    return ["nsenter", "-t", pid, "-n", sys.executable, "-c", ASK, how, *names]


def ask(docker: Engine, container: str, *names: str, how: str = "udp") -> list[Any]:
    """[code, truncated, answers, last four bytes] of each name."""
    done = subprocess.run(command(docker, container, how, *names), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_containers_of_a_network_find_each_other_by_every_name(docker: Engine) -> None:
    run(docker, "web", "--network-alias", "www", "--hostname", "host1")
    run(docker, "cli", "--link", "web:db")
    short = docker.inspect("web")["Id"][:12]
    for name in ("web", "www", "web.front", short, "db"):
        assert finds(docker, "cli", name), name
    assert docker.out("exec", "cli", "cat", "/etc/resolv.conf").startswith("nameserver 127.0.0.11")
    assert "ndots:0" in docker.out("exec", "cli", "cat", "/etc/resolv.conf")
    docker.docker("rm", "-f", "web")
    until("it is forgotten", lambda: not finds(docker, "cli", "web"))


def test_a_container_that_comes_to_a_network_later_finds_and_is_found(docker: Engine) -> None:
    run(docker, "web")
    docker.docker("run", "-d", "--name", "late", "bb", "sleep", "999")
    assert "127.0.0.11" not in docker.out("exec", "late", "cat", "/etc/resolv.conf")
    docker.docker("network", "connect", "--alias", "tardy", "front", "late")
    assert finds(docker, "late", "web") and finds(docker, "web", "tardy")
    docker.docker("rename", "late", "early")
    assert finds(docker, "web", "early") and not finds(docker, "web", "late")
    docker.docker("network", "disconnect", "front", "early")
    assert not finds(docker, "web", "early")


def test_a_container_may_be_a_name_server_itself(docker: Engine) -> None:
    run(docker, "dns")
    program = """
import socket
for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("0.0.0.0", 53))
        if kind == socket.SOCK_STREAM:
            sock.listen()
"""
    pid = str(docker.inspect("dns")["State"]["Pid"])
    subprocess.run(["nsenter", "-t", pid, "-n", sys.executable, "-c", program], check=True)


class Upstream(threading.Thread):
    """A name server of the tests' own: what it does depends on the name."""

    def __init__(self, address: str, last: int) -> None:
        super().__init__(daemon=True)
        self.data = bytes([192, 0, 2, last])
        self.asked: list[str] = []
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((address, 53))
        self.tcp = socket.create_server((address, 53))
        self.accepting = threading.Thread(target=self.over_tcp, daemon=True)
        self.accepting.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                packet, client = self.udp.recvfrom(4096)
                if not packet:
                    return
                for answer in self.answers(packet):
                    self.udp.sendto(answer, client)

    def over_tcp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.tcp.accept()
                with client:
                    packet = client.recv(4096)[2:]
                    query = wire.parse(packet)
                    answer = wire.answer(query, [self.data] * 100, wire.A)
                    client.sendall(struct.pack(">H", len(answer)) + answer)

    def answers(self, packet: bytes) -> list[bytes]:
        query = wire.parse(packet)
        self.asked.append(query.name)
        right = wire.answer(query, [self.data], wire.A)
        if query.name.startswith("silent") and self.data[3] == 1:
            return []
        if query.name.startswith("failing") and self.data[3] == 1:
            return [wire.refusal(query, wire.SERVFAIL)]
        if query.name.startswith("unknown"):
            return [wire.refusal(query, wire.NXDOMAIN)]
        if query.name.startswith("big"):
            return [wire.answer(query, [self.data] * 100, wire.A, 512)]
        if query.name.startswith("lied"):
            lie = wire.answer(query, [b"\6\6\6\6"], wire.A)
            other = packet.replace(b"\x04lied", b"\x04LiEe")
            false = wire.answer(wire.parse(other), [b"\6\6\6\6"], wire.A)
            return [wire.with_id(lie, (query.id + 1) % 65536), false, b"", b"\0" * 5, right]
        return [right]

    def close(self) -> None:
        # A thread that waits in a socket keeps it: wake it first.
        for sock in (self.udp, self.tcp):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.join()
        self.accepting.join()
        self.udp.close()
        self.tcp.close()


@pytest.fixture
def upstream(docker: Engine) -> Iterator[tuple[Upstream, Upstream]]:
    servers = Upstream(FRONT, 1), Upstream(BRIDGE, 2)
    for server in servers:
        server.start()
    yield servers
    for server in servers:
        server.close()


def test_other_names_are_asked_of_the_servers_in_order(
    docker: Engine, upstream: tuple[Upstream, Upstream]
) -> None:
    run(docker, "cli", "--dns", FRONT, "--dns", BRIDGE)
    names = ("plain.example", "silent.example", "failing.example", "lied.example")
    first, second = [192, 0, 2, 1], [192, 0, 2, 2]
    found = ask(docker, "cli", *names)
    assert found == [[0, False, 1, last] for last in (first, second, second, first)]
    assert ask(docker, "cli", "unknown.example")[0][0] == wire.NXDOMAIN
    assert ask(docker, "cli", "big.example")[0][1] is True
    assert ask(docker, "cli", "big.example", how="tcp")[0][:3] == [0, False, 100]


def test_names_of_ours_are_never_asked_of_others(
    docker: Engine, upstream: tuple[Upstream, Upstream]
) -> None:
    run(docker, "cli", "--dns", FRONT)
    run(docker, "web")
    assert ask(docker, "cli", "web")[0][2] == 1
    assert upstream[0].asked == []


def test_no_server_at_all_is_a_failure_that_is_told(docker: Engine) -> None:
    run(docker, "cli", "--dns", "10.253.13.250")
    assert ask(docker, "cli", "example.com")[0][0] == wire.SERVFAIL


@pytest.mark.fault
def test_queries_are_answered_through_every_kill(docker: Engine) -> None:
    run(docker, "web")
    run(docker, "cli")
    asking = command(docker, "cli", "udp", *["web"] * 3000)
    with subprocess.Popen(
        asking, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as loop:
        for service in ("network", "runtime", "nats", "network", "lifecycle", "network"):
            old = docker.kill(service)
            docker.back(service, old)
        out, err = loop.communicate(timeout=60)
    assert loop.returncode == 0, err
    assert out.count("[0, false, 1") == 3000


@pytest.mark.fault
@pytest.mark.parametrize(
    "point", ["network.join", "network.joined", "runtime.names.written", "runtime.names.joined"]
)
def test_a_start_that_is_killed_while_it_joins_is_done_again(docker: Engine, point: str) -> None:
    run(docker, "web")
    docker.arm(point)
    run(docker, "cli")
    assert docker.fired(point)
    assert finds(docker, "cli", "web") and finds(docker, "web", "cli")


@pytest.mark.fault
def test_names_are_served_again_after_the_whole_engine_was_killed(docker: Engine) -> None:
    run(docker, "web")
    run(docker, "cli")
    for victim in [docker.status()["pid"], *docker.pids().values()]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    docker.up(*OPTIONS)
    until("names are served", lambda: finds(docker, "cli", "web"))

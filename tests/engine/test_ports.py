"""Published ports: who reaches them, from where, and what a kill changes (nothing)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from .harness import SERVICES, Engine, engine, until

pytestmark = pytest.mark.kernel

SERVE = "mkdir -p /w; echo hello > /w/index.html; httpd -f -v -p 80 -h /w"
BIG = 24 << 20
# A subnet of its own: many engines may be up on a machine that tests.
OPTIONS = ("--set", "faults=true", "--set", "bridge_subnet=10.253.7.0/24")


@pytest.fixture(scope="module")
def published() -> Iterator[Engine]:
    with engine(*OPTIONS) as made:
        yield made


@pytest.fixture
def docker(published: Engine) -> Iterator[Engine]:
    yield published
    published.remove_all()
    with contextlib.suppress(AssertionError):
        until("nothing is left of the containers", lambda: not left(published), 75)
    assert not left(published), (published.run / "mooring.log").read_text()[-8000:]


def left(docker: Engine) -> list[str]:
    """What published ports have left behind, beside what containers leave."""
    claims = os.listdir(docker.run / "shims" / ".ports")
    listed = subprocess.run(
        ["nft", "-j", "list", "table", "inet", docker.instance], capture_output=True, text=True
    )
    maps = [item["map"] for item in json.loads(listed.stdout)["nftables"] if "map" in item]
    elements = [str(item["elem"]) for item in maps if "elem" in item]
    return [*docker.held(), *claims, *elements]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        return int(probe.getsockname()[1])


def get(address: str, port: int, path: str = "/", source: str = "") -> str:
    """The body of a GET request."""
    bound = (source, 0) if source else None
    with socket.create_connection((address, port), 10, bound) as client:
        client.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        received = b""
        while data := client.recv(1 << 16):
            received += data
    return received.partition(b"\r\n\r\n")[2].decode()


def serve(docker: Engine, name: str, *options: str) -> None:
    docker.docker("run", "-d", "--name", name, *options, "bb", "sh", "-c", SERVE)
    until("it serves", lambda: docker.out("exec", name, "wget", "-q", "-O-", "http://127.0.0.1/"))


def gateway(docker: Engine, name: str) -> str:
    return str(docker.inspect(name)["NetworkSettings"]["Gateway"])


def test_a_port_is_reached_from_everywhere(docker: Engine) -> None:
    port = free_port()
    serve(docker, "web", "-p", f"{port}:80")
    docker.docker("run", "-d", "--name", "other", "bb", "sleep", "1000")
    bridge = gateway(docker, "web")
    for address in ("127.0.0.1", "::1", bridge):
        assert get(address, port) == "hello\n"
    for name in ("other", "web"):
        url = f"http://{bridge}:{port}/"
        assert docker.out("exec", name, "wget", "-q", "-O-", url) == "hello"


HERE, THERE = "198.51.100.1", "198.51.100.2"
HERE6, THERE6 = "2001:db8:7::1", "2001:db8:7::2"


@pytest.fixture(scope="module")
def away() -> Iterator[list[str]]:
    """Another host, which has a route here: what a command is put behind to run there."""
    space, link = f"mrt-{os.getpid()}", f"mrt{os.getpid()}"

    def ip(*args: str) -> None:
        subprocess.run(["ip", *args], check=True, capture_output=True)

    ip("netns", "add", space)
    try:
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        for address in (f"{HERE}/24", f"{HERE6}/64"):
            ip("addr", "add", address, "dev", link, *(["nodad"] if ":" in address else []))
        ip("link", "set", link, "up")
        for address in (f"{THERE}/24", f"{THERE6}/64"):
            more = ["nodad"] if ":" in address else []
            ip("-n", space, "addr", "add", address, "dev", "eth0", *more)
        ip("-n", space, "link", "set", "eth0", "up")
        ip("-n", space, "route", "add", "default", "via", HERE)
        ip("-n", space, "-6", "route", "add", "default", "via", HERE6)
        yield ["ip", "netns", "exec", space]
    finally:
        ip("netns", "del", space)


def fetch(away: list[str], url: str) -> subprocess.CompletedProcess[str]:
    command = [*away, "curl", "-s", "-g", "-m", "2", url]
    return subprocess.run(command, capture_output=True, text=True)


def test_another_host_reaches_the_port_with_its_own_address_but_not_the_container(
    docker: Engine, away: list[str]
) -> None:
    port = free_port()
    serve(docker, "web", "-p", f"{port}:80")
    inside = docker.inspect("web")["NetworkSettings"]["IPAddress"]
    assert fetch(away, f"http://{HERE}:{port}/").stdout == "hello\n"
    assert THERE in docker.docker("logs", "web").stderr
    assert fetch(away, f"http://{inside}/").returncode == 28  # dropped, so it times out


@pytest.mark.parametrize("options", [["--ipv6"], ["--ipv6", "--ipv4=false"]])
def test_a_port_is_reached_over_ipv6_by_everybody(
    docker: Engine, away: list[str], options: list[str]
) -> None:
    docker.docker("network", "create", *options, "six")
    port = free_port()
    serve(docker, "web", "--network", "six", "-p", f"{port}:80")
    docker.docker("run", "-d", "--name", "other", "--network", "six", "bb", "sleep", "1000")
    endpoint = docker.inspect("web")["NetworkSettings"]["Networks"]["six"]
    assert get("::1", port) == get(endpoint["IPv6Gateway"], port) == "hello\n"
    assert fetch(away, f"http://[{HERE6}]:{port}/").stdout == "hello\n"
    assert THERE6 in docker.docker("logs", "web").stderr
    for name in ("other", "web"):
        url = f"http://[{endpoint['IPv6Gateway']}]:{port}/"
        assert docker.out("exec", name, "wget", "-q", "-O-", url) == "hello"
    assert fetch(away, f"http://[{endpoint['GlobalIPv6Address']}]/").returncode == 28
    docker.remove_all()
    docker.docker("network", "rm", "six")


SEND_INIT = """
import socket, struct, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, 132)
chunk = struct.pack(">BBHIIHHI", 1, 0, 20, 7, 65535, 1, 1, 1)
def crc32c(data):
    value = 0xffffffff
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82f63b78 if value & 1 else 0)
    return value ^ 0xffffffff
head = struct.pack(">HHI", 5000, int(sys.argv[2]), 0)
check = struct.pack("<I", crc32c(head + bytes(4) + chunk))
sock.sendto(head + check + chunk, (sys.argv[1], 0))
"""
HEAR_INIT = """
import socket, struct
sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, 132)
sock.settimeout(20)
print("ready", flush=True)
packet = sock.recv(2000)
print(socket.inet_ntoa(packet[12:16]), *struct.unpack(">HH", packet[20:24]), packet[32])
"""


def test_sctp_is_led_to_the_container_whether_or_not_the_host_has_sctp_sockets(
    docker: Engine, away: list[str]
) -> None:
    port = free_port()
    docker.docker("run", "-d", "--name", "web", "-p", f"{port}:80/sctp", "bb", "sleep", "1000")
    assert docker.out("port", "web").splitlines()[0] == f"80/sctp -> 0.0.0.0:{port}"
    pid = str(docker.inspect("web")["State"]["Pid"])
    hear = ["nsenter", "-t", pid, "-n", sys.executable, "-c", HEAR_INIT]
    with subprocess.Popen(hear, stdout=subprocess.PIPE, text=True) as hearing:
        assert hearing.stdout is not None and hearing.stdout.readline() == "ready\n"
        subprocess.run([*away, sys.executable, "-c", SEND_INIT, HERE, str(port)], check=True)
        assert hearing.stdout.readline() == f"{THERE} 5000 80 1\n"
    taken = docker.docker("run", "-p", f"{port}:80/sctp", "bb", check=False)
    assert "port is already allocated" in taken.stderr


def test_what_is_shown_of_ports(docker: Engine) -> None:
    one, two = free_port(), free_port()
    docker.docker(
        "run", "-d", "--name", "shown", "-p", f"{one}:80", "-p", f"127.0.0.1:{two}:81/udp",
        "--expose", "99", "bb", "sleep", "1000",
    )  # fmt: skip
    assert docker.out("port", "shown", "80") == f"0.0.0.0:{one}\n[::]:{one}"
    assert docker.inspect("shown")["NetworkSettings"]["Ports"] == {
        "80/tcp": [{"HostIp": ip, "HostPort": str(one)} for ip in ("0.0.0.0", "::")],
        "81/udp": [{"HostIp": "127.0.0.1", "HostPort": str(two)}],
        "99/tcp": None,
    }
    [listed] = docker.api("GET", "/containers/json").json
    assert {"PrivatePort": 99, "Type": "tcp"} in listed["Ports"]
    assert {"IP": "::", "PrivatePort": 80, "PublicPort": one, "Type": "tcp"} in listed["Ports"]
    docker.docker("stop", "-t", "0", "shown")
    assert docker.inspect("shown")["NetworkSettings"]["Ports"] == {}


def test_a_network_says_where_its_ports_are_that_name_no_address(docker: Engine) -> None:
    option = "com.docker.network.bridge.host_binding_ipv4=127.0.0.7"
    one, two = free_port(), free_port()
    docker.docker("network", "create", "-o", option, "narrow")
    serve(docker, "web", "--network", "narrow", "-p", f"{one}:80", "-p", f"127.0.0.8:{two}:80")
    assert docker.out("port", "web").splitlines() == [
        f"80/tcp -> 127.0.0.7:{one}", f"80/tcp -> 127.0.0.8:{two}"
    ]  # fmt: skip
    assert get("127.0.0.7", one) == get("127.0.0.8", two) == "hello\n"
    for address, port in (("127.0.0.1", one), ("127.0.0.7", two), ("::1", one)):
        assert not ok(address, port)
    docker.docker("rm", "-f", "web")
    docker.docker("network", "rm", "narrow")


def test_random_ports_and_ranges_are_all_different(docker: Engine) -> None:
    start = free_port() // 10 * 10
    docker.docker("run", "-d", "--name", "aa", "-p", "80", "-p", f"{start}-{start + 9}:1",
                  "-p", f"{start}-{start + 9}:2", "bb", "sleep", "1000")  # fmt: skip
    docker.docker("run", "-d", "--name", "bb", "-P", "--expose", "80-82", "bb", "sleep", "1000")
    shown = docker.out("port", "aa") + docker.out("port", "bb")
    ports = [int(number) for number in re.findall(r"0\.0\.0\.0:(\d+)", shown)]
    assert len(ports) == len(set(ports)) == 6
    assert sum(start <= port < start + 10 for port in ports) >= 2


def test_a_taken_port_is_refused_before_anything_runs(docker: Engine) -> None:
    port = free_port()
    docker.docker("run", "-d", "--name", "first", "-p", f"{port}:80", "bb", "sleep", "1000")
    done = docker.docker(
        "run", "-d", "--name", "second", "-p", f"{port}:80", "bb", "sleep", "1000", check=False
    )
    assert re.search(
        r"driver failed programming external connectivity on endpoint second \([0-9a-f]{64}\): "
        rf"Bind for 0\.0\.0\.0:{port} failed: port is already allocated",
        done.stderr,
    )
    assert docker.inspect("second")["State"]["Status"] == "created"
    docker.docker("rm", "-f", "first")
    docker.docker("start", "second")


def test_a_port_of_a_foreign_program_is_refused_and_ours_are_taken_for_it(docker: Engine) -> None:
    with socket.create_server(("0.0.0.0", 0)) as foreign:
        port = foreign.getsockname()[1]
        done = docker.docker("run", "--name", "web", "-p", f"{port}:80", "bb", "true", check=False)
        refusal = f"listen tcp4 0.0.0.0:{port}: bind: address already in use"
        assert refusal in done.stderr
    docker.docker("start", "web")
    docker.docker("run", "-d", "--name", "held", "-p", f"{port}:80", "bb", "sleep", "1000")
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with socket.socket(family) as other, pytest.raises(OSError, match="in use"):
            other.bind((address, port))


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        ({"80/icmp": []}, 'invalid port specification: "80/icmp"'),
        ({"80/tcp": [{"HostPort": "99999"}]}, 'invalid port specification: "99999"'),
        ({"80/tcp": [{"HostIp": "web"}]}, "invalid IP address: web"),
    ],
)
def test_bad_ports_are_refused_at_creation(
    docker: Engine, bindings: dict[str, object], message: str
) -> None:
    body = {"Image": "bb", "HostConfig": {"PortBindings": bindings}}
    answer = docker.api("POST", "/containers/create?name=bad", body)
    assert (answer.status, answer.message) == (400, message)


ECHO = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", 53))
while True:
    data, client = server.recvfrom(512)
    server.sendto(data.upper(), client)
"""


@contextlib.contextmanager
def echoing(docker: Engine, name: str, port: int) -> Iterator[None]:
    """A container with a published UDP port, and a program in its network that answers."""
    docker.docker("run", "-d", "--name", name, "-p", f"{port}:53/udp", "bb", "sleep", "1000")
    pid = str(docker.inspect(name)["State"]["Pid"])
    command = ["nsenter", "-t", pid, "-n", sys.executable, "-c", ECHO]
    with subprocess.Popen(command) as program:
        yield
        program.kill()
    docker.docker("rm", "-f", name)


def ask(client: socket.socket) -> bool:
    """Whether the program in a container answers this client."""
    with contextlib.suppress(OSError):
        client.send(b"hello")
        return client.recv(512) == b"HELLO"
    return False


def test_udp_goes_to_the_new_container_also_in_a_flow_that_was_there_before(
    docker: Engine,
) -> None:
    port = free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.2)
        client.connect(("127.0.0.1", port))
        for name in ("one", "two"):
            assert not ask(client)
            with echoing(docker, name, port):
                until("it answers", lambda: ask(client))


def test_udp_over_ipv6_is_relayed(docker: Engine) -> None:
    port = free_port()
    with (
        echoing(docker, "echo", port),
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(0.2)
        client.connect(("::1", port))
        until("it answers", lambda: ask(client))


class Downloads(threading.Thread):
    """Short requests in a loop, each of which must be answered."""

    def __init__(self, address: str, port: int) -> None:
        super().__init__()
        self.address, self.port = address, port
        self.ended = threading.Event()
        self.wrong: list[str] = []
        self.done = 0

    def run(self) -> None:
        while not self.ended.is_set():
            try:
                if get(self.address, self.port) != "hello\n":
                    self.wrong.append("another answer")
                self.done += 1
            except OSError as exc:
                self.wrong.append(repr(exc))


@pytest.mark.fault
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_no_kill_interrupts_a_connection(docker: Engine, address: str) -> None:
    port = free_port()
    serve(docker, "web", "-p", f"{port}:80")
    docker.docker("exec", "web", "sh", "-c", f"head -c {BIG} /dev/zero > /w/big")
    loop = Downloads(address, port)
    with socket.create_connection((address, port), 30) as long:
        long.sendall(b"GET /big HTTP/1.0\r\n\r\n")
        received = len(long.recv(1000))
        loop.start()
        for service in ("network", *SERVICES, "network"):
            old = docker.kill(service)
            received += len(long.recv(1 << 20))
            docker.back(service, old)
        while data := long.recv(1 << 20):
            received += len(data)
    loop.ended.set()
    loop.join()
    assert received > BIG
    assert loop.wrong == []
    assert loop.done > 0


@pytest.mark.fault
@pytest.mark.parametrize(
    "point",
    ["runtime.publish.bound", "runtime.publish.held", "runtime.publish.applied",
     "network.hold", "network.held"],
)  # fmt: skip
def test_a_start_that_is_killed_while_it_publishes_is_done_again(
    docker: Engine, point: str
) -> None:
    port = free_port()
    docker.arm(point)
    serve(docker, "web", "-p", f"{port}:80")
    assert docker.fired(point)
    assert get("127.0.0.1", port) == get("::1", port) == "hello\n"


@pytest.mark.fault
@pytest.mark.parametrize("point", ["runtime.unpublish.applied", "network.release"])
def test_a_release_that_is_killed_is_done_again(docker: Engine, point: str) -> None:
    port = free_port()
    serve(docker, "web", "-p", f"{port}:80")
    docker.arm(point)
    docker.docker("rm", "-f", "web")
    until("the point was reached", lambda: docker.fired(point))
    until("the port is free", lambda: not left(docker))
    with socket.create_server(("0.0.0.0", port)):
        pass


@pytest.mark.fault
@pytest.mark.parametrize("how", ["flush", "delete"])
def test_a_table_flushed_behind_our_back_is_repaired_at_the_next_start(
    docker: Engine, how: str
) -> None:
    one, two = free_port(), free_port()
    serve(docker, "one", "-p", f"{one}:80")
    subprocess.run(["nft", how, "table", "inet", docker.instance], check=True)
    serve(docker, "two", "-p", f"{two}:80")
    assert get(gateway(docker, "one"), one) == get(gateway(docker, "one"), two) == "hello\n"
    table = ["nft", "list", "map", "inet", docker.instance, "ports4"]
    listed = subprocess.run(table, capture_output=True, text=True, check=True).stdout
    assert f"tcp . {one} :" in listed and f"tcp . {two} :" in listed
    assert "made again" in docker.logs()


@pytest.mark.fault
def test_the_ports_of_a_container_outlive_the_whole_engine(docker: Engine) -> None:
    port = free_port()
    serve(docker, "web", "-p", f"{port}:80")
    for victim in [docker.status()["pid"], *docker.pids().values()]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    assert get("127.0.0.1", port) == "hello\n"
    docker.up(*OPTIONS)
    until("[::1] is served again", lambda: ok("::1", port))
    assert get("127.0.0.1", port) == "hello\n"


def ok(address: str, port: int) -> bool:
    with contextlib.suppress(OSError):
        return get(address, port) == "hello\n"
    return False

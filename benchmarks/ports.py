"""A published port: how soon it answers, how many requests and bytes it passes, 500 of them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from .engines import Engine

clock = time.perf_counter
_PORT = "8080/tcp"
_SIZE = 200 << 20
_CLIENTS = 16
_MANY = 500
_SMALL = ["sh", "-c", "mkdir /w; echo hello > /w/index.html; exec httpd -f -p 8080 -h /w"]
_LARGE = [
    "sh",
    "-c",
    f"mkdir /w; echo hello > /w/index.html; head -c {_SIZE} /dev/zero > /w/big; "
    "exec httpd -f -p 8080 -h /w",
]
# Of the addresses for documentation (RFC 5737): nobody has a route there.
_HERE, _THERE = "198.51.100.1", "198.51.100.2"


def ports(engine: Engine, scale: int) -> Iterator[tuple[str, float]]:
    """From 127.0.0.1 and from another namespace; best of several for rates."""
    yield "published port: start to first answer (ms)", _first_answers(engine, 7 * scale)
    with another_host() as prefix, _serving(engine, _LARGE, "") as port:
        for where, before, address in (
            ("127.0.0.1", [], "127.0.0.1"),
            ("another namespace", prefix, _HERE),
        ):
            rates = [_requests(before, f"{address}:{port}", 2 + scale) for _ in range(3)]
            yield f"published port, {where} (requests/s)", statistics.median(rates)
            speeds = [_download(before, f"{address}:{port}") for _ in range(3)]
            yield f"published port, {where}, 200 MiB (MB/s)", statistics.median(speeds)


def many_ports(engine: Engine, scale: int) -> Iterator[tuple[str, float]]:
    """A start and its first answer beside 500 ports that another container has published."""
    any_port = [{"HostIp": "127.0.0.1", "HostPort": ""}]
    bindings = {f"{10_000 + number}/tcp": any_port for number in range(_MANY)}
    began = clock()
    holder = engine.create(["sleep", "100000"], **_config(bindings))
    engine.start(holder)
    yield "500 published ports: start (ms)", (clock() - began) * 1000
    yield (
        "500 published ports: another start to first answer (ms)",
        _first_answers(engine, 5 * scale),
    )
    began = clock()
    engine.remove(holder)
    yield "500 published ports: removal (ms)", (clock() - began) * 1000


def _config(bindings: dict[str, list[dict[str, str]]]) -> dict[str, Any]:
    return {
        "ExposedPorts": {port: {} for port in bindings},
        "HostConfig": {"NetworkMode": "bridge", "PortBindings": bindings},
    }


@contextlib.contextmanager
def _serving(engine: Engine, command: list[str], address: str) -> Iterator[int]:
    """A container whose port is published and answers; the host's port."""
    port = _free_port()
    bindings = {_PORT: [{"HostIp": address, "HostPort": str(port)}]}
    container = engine.create(command, **_config(bindings))
    try:
        engine.start(container)
        _answer(port)
        yield port
    finally:
        engine.remove(container)


def _first_answers(engine: Engine, times: int) -> float:
    """ms from the start's request until the port answered, the median."""
    samples = []
    for turn in range(times + 1):
        port = _free_port()
        bindings = {_PORT: [{"HostIp": "127.0.0.1", "HostPort": str(port)}]}
        container = engine.create(_SMALL, **_config(bindings))
        began = clock()
        engine.start(container)
        ended = _answer(port)
        if turn:
            samples.append(ended - began)
        engine.remove(container)
    return statistics.median(samples) * 1000


def _answer(port: int) -> float:
    """The time at which 127.0.0.1 first answered with 200."""
    deadline = clock() + 30
    while clock() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as sock:
            sock.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
            if b" 200 " in sock.recv(1 << 16):
                return clock()
        time.sleep(0.001)
    raise TimeoutError(f"port {port} did not answer")


def _requests(prefix: list[str], address: str, seconds: int) -> float:
    """Requests per second of 16 clients, each on a new connection (busybox httpd keeps none)."""
    tool = shutil.which("hey")
    if tool is None:
        raise NotImplementedError("hey is not installed")
    command = [*prefix, tool, "-z", f"{seconds}s", "-c", str(_CLIENTS), f"http://{address}/"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    if rate is None or set(re.findall(r"\[(\d+)\]\t\d+ responses", done.stdout)) != {"200"}:
        raise RuntimeError(f"hey: {done.stdout[-500:]}")
    return float(rate[1])


def _download(prefix: list[str], address: str) -> float:
    """MB/s of one client."""
    command = [*prefix, "curl", "-s", "-o", "/dev/null", "-w", "%{size_download} %{time_total}"]
    url = f"http://{address}/big"
    done = subprocess.run([*command, url], capture_output=True, text=True, check=True, timeout=120)
    size, seconds = map(float, done.stdout.split())
    if size != _SIZE:
        raise RuntimeError(f"{size:.0f} of {_SIZE} bytes came")
    return size / 1e6 / seconds


@contextlib.contextmanager
def another_host() -> Iterator[list[str]]:
    """What a command is put behind to run in a network namespace that is routed to this one."""
    space, link = f"mrb-{os.getpid()}", f"mrb{os.getpid()}"
    _ip("netns", "add", space)
    try:
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("addr", "add", f"{_HERE}/24", "dev", link)
        _ip("link", "set", link, "up")
        _ip("-n", space, "addr", "add", f"{_THERE}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", space, "route", "add", "default", "via", _HERE)
        yield ["ip", "netns", "exec", space]
    finally:
        _ip("netns", "del", space)


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])

"""The name server at 127.0.0.11: queries per second, and how long the slowest of them take."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

from .engines import API, Engine

_QUERIES = 10_000
_PACE = 3000
"""Queries per second of the second part."""
# 16 sockets with one query on its way each. First a new one is sent as soon as an answer is there:
# how many a second. Then so many a second, whatever comes back: how long an answer takes.
_ASK = """
import json, select, socket, struct, sys, time
name, count, pace = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
text = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
packet = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + text + bytes([0, 0, 1, 0, 1])
poll, sockets, sent, clock = select.epoll(), {}, {}, time.perf_counter
for _ in range(16):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("127.0.0.11", 53))
    sockets[sock.fileno()] = sock
    poll.register(sock, select.EPOLLIN)

def send(number):
    sent[number] = clock()
    sockets[number].send(packet)

def answered(limit):
    for number, _ in poll.poll(limit):
        answer = sockets[number].recv(512)
        if answer[3] & 15 or answer[7] != 1:
            sys.exit(f"a wrong answer: {answer!r}")
        yield number, clock() - sent[number]

began, done = clock(), 0
for number in sockets:
    send(number)
while done < count:
    before = done
    for number, _ in answered(10):
        done += 1
        send(number)
    if done == before:
        sys.exit("no answer for 10 s")
rate = count / (clock() - began)
idle = [number for number, _ in answered(10)]
while len(idle) < len(sockets):
    idle += [number for number, _ in answered(10)]
began, asked, times = clock(), 0, []
while len(times) < count // 2:
    while idle and asked < (clock() - began) * pace and asked < count // 2:
        send(idle.pop())
        asked += 1
    for number, took in answered(0.001):
        times.append(took)
        idle.append(number)
times.sort()
print(json.dumps([rate, times[len(times) * 99 // 100] * 1000]))
"""


def names(engine: Engine, scale: int) -> Iterator[tuple[str, float]]:
    """Queries for the name of a neighbour, from a container's own namespace; best of several."""
    network = engine.wire.json("POST", f"{API}/networks/create", {"Name": "bench-names"})["Id"]
    containers = []
    try:
        for name in ("bench-one", "bench-two"):
            config = {"NetworkingConfig": {"EndpointsConfig": {"bench-names": {"Aliases": [name]}}}}
            container = engine.create(["sleep", "100000"], "bench-names", **config)
            containers.append(container)
            engine.start(container)
        inspected = engine.wire.json("GET", f"{API}/containers/{containers[0]}/json")
        pid = str(inspected["State"]["Pid"])
        command = ["nsenter", "-t", pid, "-n", sys.executable, "-c", _ASK, "bench-two"]
        found = []
        for _ in range(scale + 1):
            done = subprocess.run(
                [*command, str(_QUERIES), str(_PACE)], capture_output=True, text=True, timeout=120
            )
            if done.returncode:
                raise RuntimeError(done.stderr.strip())
            found.append(json.loads(done.stdout))
        yield "names (queries/s)", max(rate for rate, _ in found)
        yield f"names, slowest of 100 at {_PACE} queries/s (ms)", min(slow for _, slow in found)
    finally:
        for container in containers:
            engine.remove(container)
        engine.wire.call("DELETE", f"{API}/networks/{network}")

"""The name server at 127.0.0.11: queries per second, and how long the slowest of them take."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

from .engines import API, Engine

_QUERIES = 10_000
# 16 sockets, each with one query on its way: a new one is sent as soon as the answer is there.
_ASK = """
import json, select, socket, struct, sys, time
name, count = sys.argv[1], int(sys.argv[2])
text = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
packet = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + text + bytes([0, 0, 1, 0, 1])
poll, sockets, sent, times = select.epoll(), {}, {}, []
for _ in range(16):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("127.0.0.11", 53))
    sockets[sock.fileno()] = sock
    poll.register(sock, select.EPOLLIN)
began = time.perf_counter()
for number, sock in sockets.items():
    sent[number] = time.perf_counter()
    sock.send(packet)
while len(times) < count:
    ready = poll.poll(10)
    if not ready:
        sys.exit("no answer for 10 s")
    for number, _ in ready:
        answer = sockets[number].recv(512)
        now = time.perf_counter()
        if answer[3] & 15 or answer[7] != 1:
            sys.exit(f"a wrong answer: {answer!r}")
        times.append(now - sent[number])
        sent[number] = now
        sockets[number].send(packet)
seconds = time.perf_counter() - began
times.sort()
print(json.dumps([count / seconds, times[len(times) * 99 // 100] * 1000]))
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
                [*command, str(_QUERIES)], capture_output=True, text=True, timeout=120
            )
            if done.returncode:
                raise RuntimeError(done.stderr.strip())
            found.append(json.loads(done.stdout))
        yield "names (queries/s)", max(rate for rate, _ in found)
        yield "names, slowest of 100 (ms)", min(slow for _, slow in found)
    finally:
        for container in containers:
            engine.remove(container)
        engine.wire.call("DELETE", f"{API}/networks/{network}")

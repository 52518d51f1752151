"""The measures: each yields (key, value); lower is better unless it is so many `/s`."""

from __future__ import annotations

import os
import selectors
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from .archive import archive
from .build import build
from .engines import API, IMAGE, Engine
from .images import commit, images
from .memory import cpu, pss
from .names import names
from .ports import many_ports, ports
from .transfers import transfers
from .wire import READ, Refused

Found = Iterator[tuple[str, float]]
clock = time.perf_counter
NETWORKS = ("none", "bridge")
POLITE = ["sh", "-c", "trap 'exit 0' TERM; echo ready; sleep 100000 & wait"]
IDLE = ["sleep", "100000"]
CHUNKED = -1
"""An answer whose length is not known before its last chunk has arrived."""
LAST_CHUNK = b"\r\n0\r\n\r\n"


def _median_ms(samples: list[float]) -> float:
    return statistics.median(samples) * 1000


def start(engine: Engine, scale: int) -> Found:
    """create + attach + start until the first byte, and until wait answers. ms."""
    for network in NETWORKS:
        firsts, ends = [], []
        for turn in range(10 * scale + 2):
            first, end = _one_start(engine, network)
            if turn > 1:
                firsts.append(first)
                ends.append(end)
        yield f"start to output, {network} (ms)", _median_ms(firsts)
        yield f"start to wait's answer, {network} (ms)", _median_ms(ends)


def _one_start(engine: Engine, network: str) -> tuple[float, float]:
    began = clock()
    container = engine.create(["echo", "hello"], network)
    attached = engine.stream("POST", f"/containers/{container}/attach?stream=1&stdout=1&stderr=1")
    opened = clock() - began
    other, waited = engine.another(), 0.0

    def wait() -> None:
        nonlocal waited
        other.wait(container, "next-exit")
        waited = clock()

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.005)  # the wait has to be in before the start
    began = clock()
    engine.start(container)
    size, first, _ = attached.drain()
    waiter.join()
    other.wire.close()
    engine.remove(container)
    if first is None or size < 6:
        raise RuntimeError(f"no output: {size} bytes")
    return opened + first - began, opened + waited - began


def command(engine: Engine, scale: int) -> Found:
    """The whole `docker run --rm IMAGE true`. ms."""
    env = {**os.environ, "DOCKER_HOST": f"unix://{engine.socket}", "DOCKER_CLI_HINTS": "0"}
    for network in NETWORKS:
        samples = []
        for _ in range(5 * scale + 1):
            began = clock()
            words = ["docker", "run", "--rm", "--network", network, IMAGE, "true"]
            subprocess.run(words, env=env, check=True, capture_output=True)
            samples.append(clock() - began)
        yield f"docker run --rm true, {network} (ms)", _median_ms(samples[1:])


def execs(engine: Engine, scale: int) -> Found:
    """exec create + start until the first byte. ms."""
    container = engine.run(IDLE)
    samples = []
    for turn in range(10 * scale + 2):
        began = clock()
        body = {"AttachStdout": True, "AttachStderr": True, "Cmd": ["echo", "hello"]}
        made = engine.wire.json("POST", f"{API}/containers/{container}/exec", body)["Id"]
        stream = engine.stream("POST", f"/exec/{made}/start", {"Detach": False, "Tty": False})
        _, first, _ = stream.drain()
        if turn > 1 and first is not None:
            samples.append(first - began)
    engine.remove(container)
    yield "exec to output (ms)", _median_ms(samples)


def stop(engine: Engine, scale: int) -> Found:
    """stop of what handles SIGTERM, kill, forced removal. ms."""
    stops, kills, removals = [], [], []
    for _ in range(5 * scale):
        container = engine.run(POLITE)
        time.sleep(0.15)  # the trap has to be set
        began = clock()
        engine.wire.call("POST", f"{API}/containers/{container}/stop?t=10")
        stops.append(clock() - began)
        engine.start(container)
        began = clock()
        engine.wire.call("POST", f"{API}/containers/{container}/kill")
        engine.wait(container)
        kills.append(clock() - began)
        engine.start(container)
        began = clock()
        engine.remove(container)
        removals.append(clock() - began)
    yield "stop, SIGTERM handled (ms)", _median_ms(stops)
    yield "kill until wait answers (ms)", _median_ms(kills)
    yield "forced removal of a running one (ms)", _median_ms(removals)


def throughput(engine: Engine, scale: int) -> Found:
    """Whole lifecycles (create, start, wait, remove) per second."""
    total = 40 * scale
    for network in NETWORKS:
        for clients in (1, 16):
            local = threading.local()

            def one(_: int, network: str = network, local: threading.local = local) -> None:
                if not hasattr(local, "engine"):
                    local.engine = engine.another()
                container = local.engine.run(["true"], network)
                local.engine.wait(container)
                local.engine.remove(container)

            with ThreadPoolExecutor(clients) as pool:
                began = clock()
                list(pool.map(one, range(total)))
                seconds = clock() - began
            yield f"lifecycles/s, {network}, {clients} at a time", total / seconds


def logs(engine: Engine, scale: int) -> Found:
    """200 MB of lines into the log, out of it, and through an attached client. MB/s."""
    size = 70_000_000 * scale
    writer = ["sh", "-c", f"yes {'x' * 99} | head -c {size}"]
    container = engine.create(writer, "none")
    began = clock()
    engine.start(container)
    engine.wait(container)
    yield "container to log (MB/s)", size / 1e6 / (clock() - began)
    began = clock()
    got, _, _ = engine.follow(f"/containers/{container}/logs?stdout=1&stderr=1").drain()
    yield "GET logs (MB/s)", size / 1e6 / (clock() - began)
    if got < size:
        raise RuntimeError(f"the log has {got} bytes of {size}")
    began = clock()
    engine.follow(f"/containers/{container}/logs?stdout=1&tail=100").drain()
    yield "GET logs, tail=100 (ms)", (clock() - began) * 1000
    engine.remove(container)
    container = engine.create(writer, "none")
    attached = engine.stream("POST", f"/containers/{container}/attach?stream=1&stdout=1&stderr=1")
    began = clock()
    engine.start(container)
    got, _, end = attached.drain()
    if got < size:
        raise RuntimeError(f"the attached client got {got} bytes of {size}")
    yield "attach (MB/s)", size / 1e6 / (end - began)
    engine.wait(container)
    engine.remove(container)


def density(engine: Engine, scale: int) -> Found:
    """Memory at rest and per idle container, and answers per second with them. scale 3: 100."""
    count = 33 * scale + 1
    time.sleep(3)  # helpers of earlier containers end
    rest = pss(engine.pids())
    yield "engine memory at rest (MiB)", rest
    made: list[str] = []
    local = threading.local()

    def one(_: int) -> None:
        if not hasattr(local, "engine"):
            local.engine = engine.another()
        made.append(local.engine.run(IDLE))

    with ThreadPoolExecutor(4) as pool:
        began = clock()
        list(pool.map(one, range(count)))
        yield f"start {count} idle containers (s)", clock() - began
    time.sleep(3)
    pids = engine.pids()
    yield "engine memory per idle container (KiB)", (pss(pids) - rest) * 1024 / count
    used, began = cpu(pids), clock()
    time.sleep(5)
    yield "engine CPU at rest (% of a core)", (cpu(pids) - used) / (clock() - began) * 100
    for label, path in (
        ("/_ping", "/_ping"),
        ("/containers/json", f"{API}/containers/json"),
        ("inspect", f"{API}/containers/{made[0]}/json"),
    ):
        samples = []
        for _ in range(30):
            began = clock()
            engine.wire.call("GET", path)
            samples.append(clock() - began)
        yield f"{label}, 1 client (ms)", _median_ms(samples)
        yield f"{label}, 16 clients (requests/s)", hammer(engine.socket, path, 16, 3.0)
    with ThreadPoolExecutor(4) as pool:
        began = clock()
        list(pool.map(lambda container: engine.another().remove(container), made))
        yield f"forced removal of {count} (s)", clock() - began


def hammer(path: str, target: str, clients: int, seconds: float) -> float:
    """Answers per second to keep-alive clients that ask again as soon as they have one."""
    request = f"GET {target} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
    select = selectors.DefaultSelector()
    due: dict[socket.socket, int] = {}
    for _ in range(clients):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        sock.sendall(request)
        select.register(sock, selectors.EVENT_READ)
        due[sock] = 0
    done, began = 0, clock()
    while clock() - began < seconds:
        for key, _ in select.select(1):
            peer = key.fileobj
            assert isinstance(peer, socket.socket)
            data = peer.recv(READ)
            if not data:
                raise ConnectionError("the engine closed the connection")
            if due[peer] == CHUNKED:
                due[peer] = 0 if data.endswith(LAST_CHUNK) else CHUNKED
            else:
                due[peer] = _rest(data) if due[peer] == 0 else due[peer] - len(data)
            if due[peer] == 0:
                done += 1
                peer.sendall(request)
    elapsed = clock() - began
    for sock in due:
        sock.close()
    return done / elapsed


def _rest(data: bytes) -> int:
    """Bytes of this answer that are still to come after the first read of it, or CHUNKED."""
    head, _, body = data.partition(b"\r\n\r\n")
    lower = head.lower()
    if not lower.startswith(b"http/1.1 200"):
        raise RuntimeError(f"refused: {head[:100]!r}")
    mark = lower.find(b"content-length:")
    if mark < 0:
        return 0 if body.endswith(LAST_CHUNK) else CHUNKED
    return int(lower[mark + 15 :].split(b"\r\n", 1)[0]) - len(body)


def recovery(engine: Engine, scale: int) -> Found:
    """All services killed at once with 100 idle containers: until the API lists them, and until
    another one has been started and has ended. s."""
    containers = {engine.run(IDLE) for _ in range(100)}
    before, samples, starts, alive = _pids(engine, containers), [], [], []
    for _ in range(2 * scale + 1):
        engine.kill()
        began = clock()
        while _running(engine) != containers:
            time.sleep(0.005)
        samples.append(clock() - began)
        while not _works(engine):
            time.sleep(0.005)
        starts.append(clock() - began)
        alive.append(sum(a == b for a, b in zip(before, _pids(engine, containers), strict=True)))
        # A service that is killed as soon as it is ready is taken for one that can't start.
        time.sleep(2)
    yield "services killed, 100 containers: API back (s)", statistics.median(samples)
    yield "services killed, 100 containers: another one has run (s)", statistics.median(starts)
    yield "services killed, 100 containers: alive", float(min(alive))
    for container in containers:
        engine.remove(container)


def _running(engine: Engine) -> set[str]:
    try:
        return {item["Id"] for item in engine.wire.json("GET", f"{API}/containers/json")}
    except (OSError, ValueError, Refused):
        engine.wire.close()
        return set()


def _works(engine: Engine) -> bool:
    try:
        container = engine.run(["true"])
        engine.wait(container)
        engine.remove(container)
    except (OSError, ValueError, Refused):
        engine.wire.close()
        return False
    return True


def _pids(engine: Engine, containers: set[str]) -> list[int]:
    paths = (f"{API}/containers/{container}/json" for container in sorted(containers))
    return [int(engine.wire.json("GET", path)["State"]["Pid"]) for path in paths]


def networks(engine: Engine, scale: int) -> Found:
    """A network of one's own: made and removed, one start on it, 100 containers 16 at once."""
    makes, removals = [], []
    for turn in range(5 * scale):
        began = clock()
        made = engine.wire.json("POST", f"{API}/networks/create", {"Name": f"bench{turn}"})["Id"]
        makes.append(clock() - began)
        began = clock()
        engine.wire.call("DELETE", f"{API}/networks/{made}")
        removals.append(clock() - began)
    yield "network create (ms)", _median_ms(makes)
    yield "network remove (ms)", _median_ms(removals)
    made = engine.wire.json("POST", f"{API}/networks/create", {"Name": "bench"})["Id"]
    firsts = [_one_start(engine, "bench")[0] for _ in range(10 * scale + 2)]
    yield "start to output, own network (ms)", _median_ms(firsts[2:])
    local = threading.local()

    def one(_: int) -> str:
        if not hasattr(local, "engine"):
            local.engine = engine.another()
        return str(local.engine.run(IDLE, "bench"))

    with ThreadPoolExecutor(16) as pool:
        began = clock()
        containers = list(pool.map(one, range(100)))
        seconds = clock() - began
    yield "containers/s, own network, 100 with 16 at once", 100 / seconds
    connects = []
    for container in containers[:5]:
        body = {"Container": container}
        began = clock()
        engine.wire.call("POST", f"{API}/networks/bridge/connect", body)
        connects.append(clock() - began)
    yield "network connect (ms)", _median_ms(connects)
    for container in containers:
        engine.remove(container)
    engine.wire.call("DELETE", f"{API}/networks/{made}")


ALL = {
    "start": start,
    "command": command,
    "exec": execs,
    "stop": stop,
    "throughput": throughput,
    "networks": networks,
    "ports": ports,
    "many-ports": many_ports,
    "names": names,
    "logs": logs,
    "density": density,
    "recovery": recovery,
    "archive": archive,
    "images": images,
    "commit": commit,
    "transfers": transfers,
    "build": build,
}

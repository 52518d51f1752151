"""`python -m benchmarks.continuity`: how long clients wait while the engine is killed or replaced.

An engine of its own, or (`--installed`) this machine's; `--host` boots a systemd host and measures
both in it, and the latency of a start in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from image import busybox_layer

from .engines import Engine, Mooring, mooring
from .measures import IDLE, Found, _one_start, _running, clock
from .wire import Refused, Wire

SERVICES = ("nats", "lifecycle", "runtime", "shim-agent", "gateway")
CONTAINERS, CLIENTS = 100, 20
TICK = "while :; do echo tick; usleep 50000; done"
"""A line every 50 ms: what a reader waits for longer is a stall."""
CEILINGS = {
    "all services killed: API answers (s)": 1.5,
    "gateway killed: attached stream stalls, p95 (s)": 0.5,
    "upgrade: longest gap of an attached client (s)": 1.0,
    "start to output, systemd / embedded, none": 1.2,
    "start to output, systemd / embedded, bridge": 1.2,
}
console = Console(width=110)


class Installed(Engine):
    """The engine of `mooring install`."""

    def another(self) -> Engine:
        return Installed(self.name, self.socket, self.version)

    def main_pids(self, *services: str) -> list[int]:
        """Of the services' units."""
        units = [f"mooring-{name}.service" for name in services]
        command = ["systemctl", "show", "--value", "--property=MainPID", *units]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return [int(word) for word in out.split()]

    def pids(self) -> list[int]:
        return self.main_pids(*SERVICES)

    def kill(self) -> None:
        for pid in self.main_pids(*SERVICES):
            os.kill(pid, signal.SIGKILL)


def kill_gateway(engine: Engine) -> None:
    """SIGKILL it."""
    if isinstance(engine, Mooring):
        listed = json.loads((engine.folder / "run" / "supervisor.json").read_text())
        pid = next(item["pid"] for item in listed["services"] if item["name"] == "gateway")
    else:
        assert isinstance(engine, Installed)
        (pid,) = engine.main_pids("gateway")
    os.kill(pid, signal.SIGKILL)


class Reader(threading.Thread):
    """Attached to a container that prints all the time; notes when something arrived."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(daemon=True)
        self.container = engine.create(["sh", "-c", TICK], "none")
        path = f"/containers/{self.container}/attach?stream=1&stdout=1"
        self.stream = engine.stream("POST", path)
        engine.start(self.container)
        self.arrived = [clock()]
        self.broken = False

    def run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            while self.stream.fill():
                self.stream.pending = b""
                self.arrived.append(clock())
        self.broken = True

    def gap(self, since: float, until: float) -> float:
        """The longest time without a byte between two moments."""
        times = [since, *(at for at in self.arrived if since < at < until), until]
        return max(b - a for a, b in itertools.pairwise(times))


@contextlib.contextmanager
def readers(engine: Engine, count: int) -> Iterator[list[Reader]]:
    """Attached clients, each to a container of its own."""
    made = [Reader(engine) for _ in range(count)]
    try:
        for reader in made:
            reader.start()
        time.sleep(1)  # all that is started at first is over
        yield made
        if any(reader.broken for reader in made):
            raise RuntimeError("an attached client was cut off")
    finally:
        # The connection of before went with its gateway.
        engine.wire.close()
        for reader in made:
            engine.remove(reader.container)


def all_killed(engine: Engine, turns: int) -> Found:
    """Every service at once: until the API lists the running containers again."""
    containers = {engine.run(IDLE) for _ in range(CONTAINERS)}
    running, pings = [], []
    for _ in range(turns):
        engine.kill()
        began = clock()
        while not _answers(engine):
            time.sleep(0.005)
        pings.append(clock() - began)
        while _running(engine) != containers:
            time.sleep(0.005)
        running.append(clock() - began)
        time.sleep(3)  # what is killed as soon as it is ready is taken for broken
    for container in containers:
        engine.remove(container)
    yield "all services killed: /_ping (s)", statistics.median(pings)
    yield "all services killed: API answers (s)", statistics.median(running)
    yield "all services killed: API answers, slowest (s)", max(running)


def _answers(engine: Engine) -> bool:
    try:
        engine.wire.call("GET", "/_ping")
    except (OSError, ValueError, Refused):
        engine.wire.close()
        return False
    return True


def gateway_killed(engine: Engine, turns: int) -> Found:
    """Attached streams while the gateway is killed: the longest silence of each."""
    gaps = []
    with readers(engine, CLIENTS) as attached:
        for _ in range(turns):
            began = clock()
            kill_gateway(engine)
            time.sleep(2)  # within which all go on
            gaps += [reader.gap(began, clock()) for reader in attached]
    engine.wire.close()
    gaps.sort()
    yield "gateway killed: attached stream stalls, median (s)", statistics.median(gaps)
    yield "gateway killed: attached stream stalls, p95 (s)", gaps[int(len(gaps) * 0.95)]
    yield "gateway killed: attached stream stalls, slowest (s)", gaps[-1]


def upgraded(engine: Engine, turns: int) -> Found:
    """`mooring upgrade` (of nothing: every part is replaced by itself) under attached clients."""
    if not isinstance(engine, Installed):
        return
    idle = [engine.run(IDLE) for _ in range(CONTAINERS - CLIENTS)]
    gaps, answers, times = [], [], []
    with readers(engine, CLIENTS) as attached:
        for _ in range(turns):
            asked = Asking(engine)
            asked.start()
            began = clock()
            subprocess.run([sys.executable, "-m", "mooring.cli", "upgrade"], check=True)
            times.append(clock() - began)
            time.sleep(1)  # what was replaced last is replaced
            asked.ended.set()
            asked.join()
            gaps += [reader.gap(began, clock()) for reader in attached]
            answers.append(asked.longest)
    for container in idle:
        engine.remove(container)
    yield "upgrade: whole command (s)", statistics.median(times)
    yield "upgrade: longest gap of an attached client (s)", max(gaps)
    yield "upgrade: longest wait for an answer of the API (s)", max(answers)


class Asking(threading.Thread):
    """Asks for the list of containers all the time; how long an answer took at most."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(daemon=True)
        self.wire = Wire(engine.socket)
        self.ended = threading.Event()
        self.longest = 0.0

    def run(self) -> None:
        since = clock()
        while not self.ended.wait(0.01):
            try:
                self.wire.call("GET", "/v1.41/containers/json")
            except (OSError, ValueError, Refused):
                self.wire.close()
                continue
            self.longest = max(self.longest, clock() - since)
            since = clock()


def starts(engine: Engine, turns: int) -> Found:
    """create + attach + start until the first byte."""
    for network in ("none", "bridge"):
        samples = [_one_start(engine, network)[0] for _ in range(10 * turns + 2)]
        yield f"start to output, {network} (ms)", statistics.median(samples[2:]) * 1000


MEASURES: dict[str, Callable[[Engine, int], Found]] = {
    "killed": all_killed,
    "gateway": gateway_killed,
    "upgrade": upgraded,
    "start": starts,
}


def measure(engine: Engine, names: list[str], turns: int) -> dict[str, float]:
    """Run the measures; what fails is said."""
    found = {}
    for name in names:
        for key, value in MEASURES[name](engine, turns):
            found[key] = value
            console.print(f"  {engine.name:9} {key:54} {value:9.3f}", highlight=False)
        engine.wire.close()
    return found


def compared(engines: list[Engine], turns: int) -> dict[str, float]:
    """Starts of both in turns, so that whatever else the machine does is shared."""
    found = {}
    for network in ("none", "bridge"):
        samples: dict[str, list[float]] = {engine.name: [] for engine in engines}
        for turn in range(20 * turns + 2):
            for engine in engines:
                first, _ = _one_start(engine, network)
                if turn > 1:
                    samples[engine.name].append(first * 1000)
        medians = {name: statistics.median(times) for name, times in samples.items()}
        for name, value in medians.items():
            console.print(f"  {name:9} start to output, {network} (ms) {value:.2f}")
        key = f"start to output, systemd / embedded, {network}"
        found[key] = medians["systemd"] / medians["embedded"]
    return found


def table(found: dict[str, dict[str, float]]) -> Table:
    """Every figure beside its target."""
    keys = list(dict.fromkeys(key for values in found.values() for key in values))
    shown = Table("figure", *found, "at most", "")
    for key in keys:
        ceiling, values = CEILINGS.get(key), [column.get(key) for column in found.values()]
        met = all(value is None or ceiling is None or value <= ceiling for value in values)
        cells = ["–" if value is None else f"{value:.3f}" for value in values]
        limit = "" if ceiling is None else f"{ceiling}"
        shown.add_row(key, *cells, limit, "" if ceiling is None else "ok" if met else "missed")
    return shown


@contextlib.contextmanager
def chosen(installed: bool) -> Iterator[Engine]:
    """The engine, with the image."""
    with (
        tempfile.TemporaryDirectory(prefix="mooring-c-") as folder,
        contextlib.ExitStack() as stack,
    ):
        if installed:
            engine: Engine = Installed("systemd", "/run/mooring/docker.sock")
        else:
            engine = stack.enter_context(mooring(Path(folder) / "e"))
            engine.name = "embedded"
        engine.prepare(busybox_layer())
        yield engine


def in_a_host(arguments: list[str]) -> int:
    """The same command in a systemd host with the engine installed."""
    from tests.systemd.host import REPOSITORY, booted

    with (
        tempfile.TemporaryDirectory(prefix="mooring-c-") as folder,
        booted("mooring-c", Path(folder)) as host,
    ):
        host.run("mooring", "install")
        # Where the disk is no overlay, which layers of ours could not lie on.
        host.run("mkdir", "-p", "/var/lib/mooring/tmp")
        path = f"PYTHONPATH={REPOSITORY}:{REPOSITORY}/demo"
        command = ["env", path, "TMPDIR=/var/lib/mooring/tmp", "python", "-m"]
        command += ["benchmarks.continuity", *arguments]
        return subprocess.run(host.entered(*command), check=False).returncode


def main() -> None:
    """Measure, print, and keep what was found in a file where one is named."""
    parser = argparse.ArgumentParser(prog="benchmarks.continuity", description=__doc__)
    parser.add_argument("--only", default=",".join(MEASURES), help="measures, by commas")
    parser.add_argument("--turns", type=int, default=5)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--installed", action="store_true", help="this machine's own engine")
    modes.add_argument("--both", action="store_true", help="that, and one beside it")
    modes.add_argument("--host", action="store_true", help="both, in a systemd host")
    options = parser.parse_args()
    names = options.only.split(",")
    if options.host:
        arguments = ["--both", "--only", options.only, "--turns", str(options.turns)]
        sys.exit(in_a_host(arguments))
    found: dict[str, dict[str, float]] = {}
    if options.both:
        with chosen(True) as systemd, chosen(False) as embedded:
            for engine in (systemd, embedded):
                rest = [name for name in names if name != "start"]
                found[engine.name] = measure(engine, rest, options.turns)
            if "start" in names:
                found["systemd"] |= compared([systemd, embedded], options.turns)
    else:
        with chosen(options.installed) as engine:
            found[engine.name] = measure(engine, names, options.turns)
    console.print(table(found))


if __name__ == "__main__":
    main()

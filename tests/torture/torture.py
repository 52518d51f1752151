"""Clients of every kind against one engine, a killer, and the reckoning."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tests.engine.harness import Engine, until

from .clients import IMAGE, LABEL, Client, Context
from .killer import Killer
from .lives import Life, Policy, Relay
from .reading import Attached, Follow, Foreground, Stats
from .traces import more, traces
from .watching import LAST, Watching, WatchingByCli, check, compare
from .writing import Exec, Stdin

KINDS: tuple[type[Client], ...] = (
    Follow, Foreground, Attached, Stats, Stdin, Exec, Life, Policy, Relay,
)  # fmt: skip
JOIN = 300.0
"""Seconds that a client may need to end what it is at."""
SETTLED = 75.0
"""Seconds after which the engine has nothing more of what is over."""
NETWORK, PROBE = "torture-net", "torture-probe"


@dataclass
class Report:
    """What came of it."""

    seed: int
    seconds: float
    killed: Counter[str]
    counts: Counter[str]
    events: int
    wrong: list[str]
    times: list[str]
    """When what was killed."""

    def __str__(self) -> str:
        done = {kind.kind: self.counts[kind.kind] for kind in KINDS}
        rest = {name: n for name, n in self.counts.items() if name not in done and name != "bytes"}
        lines = [
            f"torture of {self.seconds:.0f} s, seed {self.seed}",
            f"  killed {self.killed.total()} processes: {listed(self.killed)}",
            f"  {self.counts['bytes']:,} bytes compared, {self.events} events",
            f"  clients: {listed(done)}",
            f"  {listed(rest)}",
            f"  {len(self.wrong)} deviations",
        ]
        return "\n".join(lines + self.wrong)


def listed(counts: dict[str, int]) -> str:
    """`name 12, other 3`, the largest first."""
    pairs = sorted(counts.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {count}" for name, count in pairs)


def torture(
    engine: Engine,
    seconds: float,
    clients: int,
    seed: int,
    *,
    shims: bool = True,
    kinds: tuple[type[Client], ...] = KINDS,
    victims: tuple[str, ...] = (),
) -> Report:
    """`clients` of each kind for some seconds under kills; what they and the engine say after.

    victims: of `Engine.pids`, those that are killed beside the services.
    """
    with prepared(engine, seed) as context:
        watchers = [Watching(engine, "GET /events"), WatchingByCli(engine, "docker events")]
        for watcher in watchers:
            watcher.start()
            watcher.began.wait(30)
        before = settled(engine)
        load = [kind(context, n) for kind in kinds for n in range(clients)]
        killer = Killer(engine, random.Random(seed), shims=shims, rest=victims)
        for thread in (*load, killer):
            thread.start()
        begun = time.monotonic()
        wrong: list[str] = []
        try:
            time.sleep(seconds)  # the torture itself
        finally:
            # Interrupted, too: an engine that is taken down is to have no clients any more.
            for client in load:
                client.ended.set()
            for client in load:
                client.join(JOIN)
                if client.is_alive():
                    wrong.append(f"{client.name} has not ended")
            killer.ended.set()
            killer.join()
        until("the API answers", engine.answers)
        counts: Counter[str] = Counter()
        for client in load:
            counts += client.counts
            wrong += client.wrong
        wrong += told(engine, load, watchers)
        wrong += free(engine, load)
        wrong += kept(engine, before)
    wrong += left(engine)
    seen, took = len(watchers[0].seen), time.monotonic() - begun
    return Report(seed, took, killer.killed, counts, seen, wrong, killer.times)


@contextlib.contextmanager
def prepared(engine: Engine, seed: int) -> Iterator[Context]:
    """The image, a network with addresses to choose, and a container that asks for names."""
    engine.load(IMAGE)
    labels = ("--label", f"{LABEL}={seed}")
    subnet = ""
    # Addresses may be chosen where the subnet was: take the one that the engine would choose.
    for chosen in ([], ["--subnet"]):
        engine.docker("network", "create", *labels, *chosen, *([subnet] if chosen else []), NETWORK)
        found = engine.api("GET", f"/networks/{NETWORK}").json
        subnet = found["IPAM"]["Config"][0]["Subnet"]
        if not chosen:
            engine.docker("network", "rm", NETWORK)
    try:
        run = ("run", "-d", "--name", PROBE, *labels, "--network", NETWORK)
        engine.docker(*run, IMAGE, "sleep", "100000")
        prefix = str(ipaddress.ip_network(subnet).network_address).rpartition(".")[0] + "."
        yield Context(engine, seed, NETWORK, prefix, PROBE)
    finally:
        until("the API answers", engine.answers)
        mine = json.dumps({"label": [LABEL]}).replace(" ", "")
        for item in engine.api("GET", f"/containers/json?all=1&filters={mine}").json:
            engine.api("DELETE", f"/containers/{item['Id']}?force=1&v=1")
        engine.docker("network", "rm", NETWORK, check=False)


def settled(engine: Engine) -> Counter[str]:
    """What the engine has, once its pools are full: the most that is seen in some seconds."""
    found: Counter[str] = Counter()
    for _ in range(10):
        found |= traces(engine)
        time.sleep(0.5)  # pools fill by themselves
    return found


def told(engine: Engine, load: list[Client], watchers: list[Watching]) -> list[str]:
    """Every event once and in order, to whoever watched and to whoever asks now."""
    engine.docker("create", "--name", LAST, "--label", f"{LABEL}=last", IMAGE, "true")
    for watcher in watchers:
        watcher.join(60)
    late = [f"{watcher.name}: no last event" for watcher in watchers if watcher.is_alive()]
    events = [e for e in engine.events(type="container") if LABEL in e["Actor"]["Attributes"]]
    past = [one for client in load for one in client.past]
    execs = [one for client in load for one in client.execs]
    return late + compare(watchers, events) + check(events, past, execs)


def free(engine: Engine, load: list[Client]) -> list[str]:
    """Every name may be given again."""
    wrong = []
    for name in (one.name for client in load for one in client.past):
        body = {"Image": IMAGE, "Labels": {LABEL: "again"}}
        answer = engine.api("POST", f"/containers/create?name={name}", body)
        if answer.status != 201:
            wrong.append(f"{name} is not free again: {answer.message}")
    return wrong


def kept(engine: Engine, before: Counter[str]) -> list[str]:
    """Nothing is held of what is over: descriptors, links, elements of the filter, processes."""
    with contextlib.suppress(AssertionError):
        until("nothing is held", lambda: not more(before, traces(engine)), SETTLED)
    return [f"held: {line}" for line in more(before, traces(engine))]


def left(engine: Engine) -> list[str]:
    """Nothing is left of containers that have gone."""
    with contextlib.suppress(AssertionError):
        until("nothing is left", lambda: not engine.leftovers(), SETTLED)
    return [f"left behind: {what}" for what in engine.leftovers()]

"""Clients of every kind against one engine, a killer, and the reckoning."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass

from tests.engine.harness import Engine, until

from .clients import Attached, Client, Foreground, Typing, Watching
from .killer import Killer

KINDS: tuple[type[Client], ...] = (Foreground, Attached, Typing)
JOIN = 240.0
"""Seconds that a client may need to end what it is at."""


@dataclass
class Report:
    """What came of it."""

    seed: int
    seconds: float
    killed: Counter[str]
    done: Counter[str]
    events: int
    wrong: list[str]

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}, {self.seconds:.0f} s; killed: {dict(self.killed)}",
            f"done: {dict(self.done)}; {self.events} events",
            f"{len(self.wrong)} deviations",
        ]
        return "\n".join(lines + self.wrong)


def torture(engine: Engine, seconds: float, clients: int, seed: int, *, shims: bool) -> Report:
    """`clients` of each kind for some seconds under kills; what they and the engine say after."""
    watching = Watching(engine, 0, seed)
    watching.start()
    watching.began.wait(30)
    load = [kind(engine, n, seed) for kind in KINDS for n in range(clients)]
    killer = Killer(engine, random.Random(seed), shims=shims)
    for thread in (*load, killer):
        thread.start()
    begun = time.monotonic()
    time.sleep(seconds)  # the torture itself
    for client in load:
        client.ended.set()
    wrong: list[str] = []
    for client in load:
        client.join(JOIN)
        if client.is_alive():
            wrong.append(f"{client.name} has not ended")
    killer.ended.set()
    killer.join()
    until("the API answers", engine.answers)
    wrong += [line for client in load for line in client.wrong]
    wrong += reckon(engine, load, watching)
    done: Counter[str] = Counter()
    for client in load:
        done[client.kind] += client.done
    return Report(
        seed, time.monotonic() - begun, killer.killed, done, len(watching.seen), wrong
    )  # fmt: skip


def reckon(engine: Engine, load: list[Client], watching: Watching) -> list[str]:
    """Every event once and in order, every name free again, nothing left in the kernel."""
    wrong = []
    engine.docker("create", "--name", "the-last", "bb", "true")
    watching.join(60)
    if watching.is_alive():
        wrong.append("the last event did not arrive")
    wrong += watching.wrong
    actions = watching.actions()
    for client in load:
        for name, _ in client.containers:
            found = actions.get(name, [])
            if found != ["create", "start", "die", "destroy"]:
                wrong.append(f"{name}: events {found}")
            again = engine.docker("create", "--name", name, "bb", "true", check=False)
            if again.returncode:
                wrong.append(f"{name} is not free again: {again.stderr.strip()}")
    engine.remove_all()
    with contextlib.suppress(AssertionError):
        until("nothing is left", lambda: not engine.leftovers(), 75)
    wrong += [f"left behind: {what}" for what in engine.leftovers()]
    return wrong

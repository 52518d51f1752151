"""Kills a random process of the engine, again and again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
from collections import Counter

from tests.engine.harness import SERVICES, Engine


class Killer(threading.Thread):
    """SIGKILL for a service, nats-server or (one time in five) a shim, every 0.2 to 2 s."""

    def __init__(self, engine: Engine, chance: random.Random, *, shims: bool) -> None:
        super().__init__(name="killer", daemon=True)
        self.engine, self.chance, self.shims = engine, chance, shims
        self.ended = threading.Event()
        self.killed: Counter[str] = Counter()

    def run(self) -> None:
        while not self.ended.wait(self.chance.uniform(0.2, 2.0)):
            with contextlib.suppress(KeyError, ProcessLookupError, OSError, ValueError):
                if self.shims and self.chance.random() < 0.2:
                    self.kill_shim()
                else:
                    service = self.chance.choice(SERVICES)
                    self.engine.kill(service)
                    self.killed[service] += 1

    def kill_shim(self) -> None:
        """Any shim of a running container."""
        found = sorted((self.engine.run / "shims").glob("[!.]*/shim.json"))
        runs = [path for path in found if not (path.parent / "exit.json").exists()]
        if runs:
            pid = json.loads(self.chance.choice(runs).read_text())["shim_pid"]
            os.kill(pid, signal.SIGKILL)
            self.killed["shim"] += 1

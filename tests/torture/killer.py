"""Kills random processes of the engine, again and again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from mooring.runtime.runs import start_time
from tests.engine.harness import SERVICES, Engine

from .installed import Installed
from .traces import shims

SHORTEST, LONGEST = 0.2, 2.0
"""Seconds between two kills."""
_GONE = (KeyError, IndexError, OSError, ValueError, StopIteration)
"""What looking for a victim may come upon."""


class Killer(threading.Thread):
    """SIGKILL for a service, the launcher, a shim or several at once, every 0.2 to 2 s."""

    def __init__(
        self, engine: Engine, chance: random.Random, *, shims: bool, rest: tuple[str, ...] = ()
    ) -> None:
        """rest: what else `Engine.pids` knows of that may be killed."""
        super().__init__(name="killer", daemon=True)
        self.engine, self.chance = engine, chance
        self.ended = threading.Event()
        self.killed: Counter[str] = Counter()
        self.times: list[str] = []
        self._single = (*SERVICES, "network", *rest)
        ways: list[tuple[int, Callable[[], None]]] = [
            (50, self._one),
            (8, self._twice),
            (8, self._two),
            (8, self._all),
            (8, self._launcher),
            (4, self._warm),
        ]
        if not isinstance(engine, Installed):
            ways += [(3, self._supervisor), (3, self._keeper)]
        if shims:
            ways += [(16, self._shim), (6, self._shim_and_agent)]
        self._weights, self._ways = zip(*ways, strict=True)

    def run(self) -> None:
        while not self.ended.wait(self.chance.uniform(SHORTEST, LONGEST)):
            with contextlib.suppress(*_GONE):
                (way,) = self.chance.choices(self._ways, self._weights)
                way()

    def kill(self, pid: int, what: str) -> None:
        """SIGKILL, counted."""
        os.kill(pid, signal.SIGKILL)
        self.killed[what] += 1
        self.times.append(f"{time.strftime('%H:%M:%S')}.{time.time_ns() // 10**6 % 1000:03} {what}")

    def _one(self) -> None:
        service = self.chance.choice(self._single)
        self.kill(self.engine.pids()[service], service)

    def _twice(self) -> None:
        """A service, and its successor in the middle of its start."""
        service = self.chance.choice(SERVICES)
        pid = self.engine.pids()[service]
        self.kill(pid, service)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and not self.ended.is_set():
            if (successor := self.engine.pids().get(service, pid)) != pid:
                time.sleep(self.chance.uniform(0, 0.3))  # the moment is the test
                self.kill(successor, service)
                return
            time.sleep(0.01)

    def _two(self) -> None:
        """One in the middle of what the death of another has others do."""
        first, second = self.chance.sample(SERVICES, 2)
        self.kill(self.engine.pids()[first], first)
        time.sleep(self.chance.uniform(0, 0.5))  # the moment is the test
        self.kill(self.engine.pids()[second], second)

    def _all(self) -> None:
        """Every service at once."""
        for service, pid in self.engine.pids().items():
            if service in self._single:
                with contextlib.suppress(OSError):
                    self.kill(pid, service)

    def _supervisor(self) -> None:
        """The supervisor, as if it ran under a process manager of its own: it is started again."""
        self.kill(self.engine.supervisor(), "supervisor")
        self.ended.wait(self.chance.choice((0, 0, self.chance.uniform(0, 1))))
        self.engine.up()

    def _keeper(self) -> None:
        self.kill(self.engine.keeper(), "keeper")

    def _launcher(self) -> None:
        self.kill(self._launchers()[0], "launcher")

    def _launchers(self) -> list[int]:
        worker = self.engine.pids()["runtime"]
        return [pid for pid in children(worker) if name_of(pid) == "mooring-launch"]

    def _warm(self) -> None:
        """A shim that has no container yet, or what prepares one for it."""
        busy = {record["shim_pid"] for _, record in shims(self.engine)}
        found = [
            pid for pid in children(self._launchers()[0])
            if pid not in busy and name_of(pid) in ("mooring-shim", "mooring-start")
        ]  # fmt: skip
        self.kill(self.chance.choice(found), "warm shim")

    def _shim(self) -> None:
        self.kill(self._a_shim(), "shim")

    def _shim_and_agent(self) -> None:
        """A shim together with what would have adopted its container, in either order."""
        victims = [(self._a_shim(), "shim"), (self.engine.pids()["shim-agent"], "shim-agent")]
        self.chance.shuffle(victims)
        for pid, what in victims:
            self.kill(pid, what)

    def _a_shim(self) -> int:
        """Any shim of a run that goes on: a pid alone may be another process's by now."""
        found = [record for _, record in shims(self.engine)]
        live = [one for one in found if start_time(one["shim_pid"]) == one["shim_start"]]
        pid: int = self.chance.choice(live)["shim_pid"]
        return pid


def children(pid: int) -> list[int]:
    """The pids of its children."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def name_of(pid: int) -> str:
    """Its name; empty if it has gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""

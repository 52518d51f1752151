"""The runs of this host: their directories are the truth, an index in memory finds them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mooring.kit.models.network import NetworkState

BUSY = "busy"
"""The shim's BUSY; its modules are for its own process."""
EXIT, ACKNOWLEDGED = "exit.json", "exit.acked"
NETWORK = "network.msgpack"


class Stage(Enum):
    """How far a run is, by what is in its directory."""

    HALF = "half-made"
    """No shim.json: its program has never run and never will, once the directory is gone."""
    LIVE = "live"
    OVER = "over"
    """Its processes have ended; whether its exit was recorded is the agent's to find out."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run directory. pids are 0 for a half-made run; times in ns, Unix."""

    id: str
    run: int
    directory: str
    stage: Stage
    acknowledged: bool = False
    shim_pid: int = 0
    shim_start: int = 0
    shim_alive: bool = False
    executed: bool = False
    """Its program was executed, not only made ready."""
    init_pid: int = 0
    started_ns: int = 0
    cgroup: str = ""


def start_time(pid: int) -> int:
    """When a process began, in clock ticks since boot; -1 for none, and for a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return -1
    fields = text[text.rindex(b")") + 2 :].split()
    return -1 if fields[0] in (b"Z", b"X") else int(fields[19])


def split(name: str) -> tuple[str, int] | None:
    """Container and run of a run directory's name; None for any other name."""
    id_, dot, run = name.rpartition(".")
    return (id_, int(run)) if dot and id_ and run.isdecimal() else None


def read(directory: str, id_: str, run: int) -> Run | None:
    """What a run directory says; None if it is not there."""
    try:
        names = set(os.listdir(directory))
    except FileNotFoundError:
        return None
    shim = _json(f"{directory}/shim.json") if "shim.json" in names else None
    if shim is None:
        return Run(id_, run, directory, Stage.HALF)
    alive = start_time(int(shim["shim_pid"])) == int(shim["shim_start"])
    running = start_time(int(shim["init_pid"])) == int(shim["init_start"])
    exited = EXIT in names or ACKNOWLEDGED in names
    return Run(
        id_,
        run,
        directory,
        # A shim without its init is about to write the exit record.
        Stage.LIVE if not exited and (alive or running) else Stage.OVER,
        acknowledged=ACKNOWLEDGED in names,
        shim_pid=int(shim["shim_pid"]),
        shim_start=int(shim["shim_start"]),
        shim_alive=alive,
        executed=exited or "executed" in names,
        init_pid=int(shim["init_pid"]),
        started_ns=int(shim["started_ns"]),
        cgroup=str(shim.get("cgroup") or ""),
    )


def at_work(directory: str) -> tuple[int, int]:
    """Who said that it is at work on a half-made run: pid and start time, 0 for nobody."""
    found = _json(f"{directory}/{BUSY}") or {"pid": 0, "start": 0}
    return int(found["pid"]), int(found["start"])


def execs_unacknowledged(directory: str) -> bool:
    """Whether an exec of this run has an exit that the agent has not published yet."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(f"{directory}/execs"):
            if not os.path.exists(f"{directory}/execs/{name}/{ACKNOWLEDGED}"):
                return True
    return False


class Runs:
    """Which runs of which containers have a directory below `shims`."""

    def __init__(self, shims: str) -> None:
        self._shims = shims
        self._index: dict[str, set[int]] = {}

    def scan(self) -> None:
        """Read the names of the directories again."""
        self._index.clear()
        for name in os.listdir(self._shims):
            if found := split(name):
                self.add(*found)

    def add(self, id_: str, run: int) -> None:
        """A run that has a directory from now on."""
        self._index.setdefault(id_, set()).add(run)

    def forget(self, id_: str, run: int) -> None:
        """A run whose directory is gone."""
        if runs := self._index.get(id_):
            runs.discard(run)
            if not runs:
                del self._index[id_]

    def of(self, id_: str) -> list[int]:
        """The runs of a container, oldest first."""
        return sorted(self._index.get(id_, ()))

    def find(self, id_: str, run: int) -> Run | None:
        """What is true of a run now."""
        return read(f"{self._shims}/{id_}.{run}", id_, run)

    def live(self, id_: str) -> Run | None:
        """The run of a container that is going on."""
        for run in reversed(self.of(id_)):
            found = self.find(id_, run)
            if found and found.stage is Stage.LIVE:
                return found
        return None

    def over(self, holder: str) -> bool:
        """Whether the run `<container id>.<run>` has ended, or is not there at all."""
        found = split(holder)
        run = self.find(*found) if found else None
        return run is None or run.stage is Stage.OVER

    def namespace(self, holder: str) -> str:
        """The network namespace of the run `<container id>.<run>`; empty if it does not go on."""
        found = split(holder)
        run = self.find(*found) if found else None
        live = run is not None and run.stage is Stage.LIVE
        return f"/proc/{run.init_pid}/ns/net" if run is not None and live else ""

    def matching(self, prefix: str) -> list[str]:
        """The containers with a run whose id begins so."""
        if prefix in self._index:
            return [prefix]
        return [id_ for id_ in self._index if id_.startswith(prefix)]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter([(id_, run) for id_, runs in self._index.items() for run in sorted(runs)])


def read_state(directory: str) -> NetworkState:
    """The network of a run, from its directory."""
    try:
        with open(f"{directory}/{NETWORK}", "rb") as file:
            return NetworkState.unpack(file.read())
    except FileNotFoundError:
        return NetworkState()


def live_states(runs: Runs) -> list[NetworkState]:
    """The networks of every run that goes on."""
    found = []
    for id_, number in runs:
        run = runs.find(id_, number)
        if run is not None and run.stage is Stage.LIVE:
            found.append(read_state(run.directory))
    return found


def _json(path: str) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            value = json.load(file)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None

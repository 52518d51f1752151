"""The run directories of a host: what shims wrote there, and whether their processes still live."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

EXIT = "exit.json"
ACKNOWLEDGED = "exit.acked"


@dataclass(frozen=True, slots=True)
class Process:
    """A process named for ever: its pid, and its start time in clock ticks since boot."""

    pid: int
    start: int

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        state, start = _stat(self.pid)
        return start == self.start and state not in ("Z", "X")


@dataclass(frozen=True, slots=True)
class ShimRecord:
    """`shim.json` of one run."""

    id: str
    run: int
    directory: str
    shim: Process
    init: Process
    started_ns: int
    bundle: str
    cgroup: str
    tty: bool
    stdin: bool
    code: str = ""
    """What the shim runs, see version.py; empty for shims older than that."""

    @classmethod
    def parse(cls, directory: str, fields: dict[str, Any]) -> Self:
        """From shim.json or a hello; KeyError, TypeError or ValueError for what does not fit."""
        return cls(
            id=str(fields["id"]),
            run=int(fields["run"]),
            directory=directory,
            shim=Process(int(fields["shim_pid"]), int(fields["shim_start"])),
            init=Process(int(fields["init_pid"]), int(fields["init_start"])),
            started_ns=int(fields["started_ns"]),
            bundle=str(fields["bundle"]),
            cgroup=str(fields["cgroup"]),
            tty=bool(fields["tty"]),
            stdin=bool(fields["stdin"]),
            code=str(fields.get("code") or ""),
        )


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """`exit.json` of one run. exit_code None: nobody can tell."""

    run: int
    pid: int = 0
    started_ns: int = 0
    finished_ns: int = 0
    exit_code: int | None = None
    oom_killed: bool = False
    error: str = ""

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> Self:
        """From exit.json or an exit event; KeyError, TypeError or ValueError."""
        code = fields.get("exit_code")
        return cls(
            run=int(fields["run"]),
            pid=int(fields.get("pid") or 0),
            started_ns=int(fields.get("started_ns") or 0),
            finished_ns=int(fields.get("finished_ns") or 0),
            exit_code=None if code is None else int(code),
            oom_killed=bool(fields.get("oom_killed")),
            error=str(fields.get("error") or ""),
        )


def name(id_: str, run: int) -> str:
    """The name of a run's directory."""
    return f"{id_}.{run}"


def split(entry: str) -> tuple[str, int] | None:
    """The container and the run that a directory's name stands for; None for another name."""
    id_, dot, run = entry.rpartition(".")
    return (id_, int(run)) if dot and id_ and run.isdecimal() else None


def runs(shims: str) -> Iterator[tuple[str, int]]:
    """Every run that has a directory in `shims`, oldest run of a container first."""
    try:
        entries = os.listdir(shims)
    except FileNotFoundError:
        return
    yield from sorted(found for entry in entries if (found := split(entry)))


def read_shim(directory: str) -> ShimRecord | None:
    """shim.json; None while there is none, or if it is not one."""
    fields = read_json(f"{directory}/shim.json")
    try:
        return ShimRecord.parse(directory, fields) if fields else None
    except (KeyError, TypeError, ValueError):
        return None


def read_exit(directory: str) -> tuple[ExitRecord, bool] | None:
    """The exit record, and whether its fact was acknowledged; None while the run goes on."""
    for file, acknowledged in ((EXIT, False), (ACKNOWLEDGED, True)):
        fields = read_json(f"{directory}/{file}")
        if fields:
            try:
                return ExitRecord.parse(fields), acknowledged
            except (KeyError, TypeError, ValueError):
                continue
    return None


def read_json(path: str) -> dict[str, Any] | None:
    """A JSON object of a file; None if the file is away or holds anything else."""
    try:
        with open(path, "rb") as file:
            fields = json.load(file)
    except (OSError, ValueError):
        return None
    return fields if isinstance(fields, dict) else None


def write_json(path: str, fields: dict[str, Any]) -> None:
    """Write a JSON object in one step: readers see the old file or the new one."""
    new = f"{path}.new"
    with open(new, "w") as file:
        json.dump(fields, file, separators=(",", ":"))
    os.rename(new, path)


def acknowledge(directory: str) -> None:
    """The fact of this exit record is in the stream: never publish it again."""
    try:
        os.rename(f"{directory}/{EXIT}", f"{directory}/{ACKNOWLEDGED}")
    except FileNotFoundError:
        # Renamed before by an agent that was killed right after, or released already.
        pass


def _stat(pid: int) -> tuple[str, int]:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return "", -1
    # The command's name, in parentheses, may hold blanks and parentheses itself.
    fields = text[text.rindex(b")") + 2 :].split()
    return fields[0].decode(), int(fields[19])

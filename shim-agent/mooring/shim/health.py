"""Health checks: commands run in a container at intervals, and the verdict that follows.

Decided here, so a host cut off from the rest goes on. What must outlive this process is in
`health.json` of the run directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import time
from dataclasses import dataclass

from mooring.kit import log, subjects
from mooring.kit.errors import EngineError
from mooring.kit.models.container import HealthConfig, HealthResult
from mooring.kit.models.exec import ExecConfig
from mooring.kit.models.host import HealthChecked

from . import joining, rundir
from .exits import HEALTH_PREFIX, forget_exec
from .facts import Facts
from .logread import LogReader, frames
from .runs import Run
from .work import Work

logger = logging.getLogger(__name__)

SECOND = 1_000_000_000
OUTPUT_BYTES = 4096
TIMED_OUT = -1
"""The exit code of a check that was killed for taking too long, as Docker has it."""
_FILE = "health.json"
_CONFIG = "healthcheck.msgpack"
"""Written by the worker for a container that has a check."""


@dataclass(frozen=True, slots=True)
class Check:
    """What is run, how often and how patiently; seconds."""

    command: tuple[str, ...]
    interval: float
    timeout: float
    retries: int
    start_period: float
    start_interval: float

    @classmethod
    def of(cls, config: HealthConfig) -> Check | None:
        """With Docker's defaults; None if nothing is to be run."""
        match config.test:
            case ["CMD", *command] if command:
                pass
            case ["CMD-SHELL", line]:
                command = ["/bin/sh", "-c", line]
            case _:
                return None
        return cls(
            command=tuple(command),
            interval=(config.interval or 30 * SECOND) / SECOND,
            timeout=(config.timeout or 30 * SECOND) / SECOND,
            retries=config.retries or 3,
            start_period=config.start_period / SECOND,
            start_interval=(config.start_interval or 5 * SECOND) / SECOND,
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The health of a run so far. status: starting, healthy or unhealthy."""

    status: str = "starting"
    streak: int = 0
    """Failures in a row."""

    def after(self, exit_code: int, age: float, check: Check) -> Verdict:
        """With one more result, of a check that began `age` seconds after the start."""
        if exit_code == 0:
            return Verdict("healthy", 0)
        if self.status == "starting" and age < check.start_period:
            return self
        streak = self.streak + 1
        return Verdict("unhealthy" if streak >= check.retries else self.status, streak)

    def pause(self, age: float, check: Check) -> float:
        """Seconds until the next check."""
        if self.status == "starting" and age < check.start_period:
            return min(check.start_interval, check.interval)
        return check.interval


class HealthChecks:
    """Runs the checks of this host's containers."""

    def __init__(self, facts: Facts, work: Work) -> None:
        self._facts = facts
        self._work = work
        self._watched: set[Run] = set()

    def begin(self, run: Run) -> None:
        """A run has begun, or was found again: check it if it has a health check."""
        if run in self._watched or (check := self._check_of(run)) is None:
            return
        self._watched.add(run)
        self._work.start(self._watch(run, check), name=f"health {run.container.id}")

    def _check_of(self, run: Run) -> Check | None:
        try:
            with open(f"{run.directory}/{_CONFIG}", "rb") as file:
                return Check.of(HealthConfig.unpack(file.read()))
        except FileNotFoundError:
            return None  # Nearly no container has a check.

    async def _watch(self, run: Run, check: Check) -> None:
        try:
            with log.bind(container=run.container.id):
                await self._checks(run, check)
        finally:
            self._watched.discard(run)

    async def _checks(self, run: Run, check: Check) -> None:
        verdict, number = _read(run)
        assert run.record is not None
        started = run.record.started_ns / SECOND
        while True:
            await _while_live(run, verdict.pause(time.time() - started, check))
            if not run.live:
                return
            if run.paused:
                continue
            began = time.time_ns()
            number += 1
            try:
                code, output = await self._probe(run, check, f"{HEALTH_PREFIX}{number}")
            except EngineError as exc:
                if not run.live:
                    return
                code, output = TIMED_OUT, exc.message
            verdict = verdict.after(code, began / SECOND - started, check)
            _write(run, verdict, number)
            result = HealthResult(
                start_ns=began, end_ns=time.time_ns(), exit_code=code, output=output
            )
            fact = HealthChecked(
                node=self._facts.node,
                time_ns=result.end_ns,
                id=run.container.id,
                run=run.number,
                status=verdict.status,
                failing_streak=verdict.streak,
                result=result,
            )
            msg_id = f"{run.container.id}.{run.number}.health.{began}"
            await self._facts.tell(subjects.FACT_HEALTH, fact, msg_id)

    async def _probe(self, run: Run, check: Check, id_: str) -> tuple[int, str]:
        """Run the command once: its exit code and the beginning of its output."""
        assert run.record is not None
        with open(f"{run.record.bundle}/config.json", "rb") as file:
            process = json.load(file)["process"]
        config = ExecConfig(cmd=list(check.command))
        described = joining.describe(process, config, None, "/", None)
        channel = await run.reach()
        entry = run.exec(id_)
        answer = await channel.request(
            "exec", exec=id_, process=described, tty=False, stdin=False, output=True
        )
        entry.started = True
        try:
            if not await _finished(run, id_, check.timeout):
                _kill(int(answer["pid"]))
                await _finished(run, id_, check.timeout)
                return TIMED_OUT, f"Health check exceeded timeout ({in_words(check.timeout)})"
            return entry.exit_code or 0, _output(f"{run.directory}/execs/{id_}/log")
        finally:
            run.execs.pop(id_, None)
            forget_exec(run, id_)


def in_words(seconds: float) -> str:
    """A duration as Go prints it: `300ms`, `30s`, `1m30s`, `1h0m0s`."""
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{rest:g}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


async def _while_live(run: Run, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while run.live:
                await run.container.changed.wait()


async def _finished(run: Run, id_: str, seconds: float) -> bool:
    entry = run.exec(id_)
    try:
        async with asyncio.timeout(seconds):
            while run.live and not entry.finished:
                await run.container.changed.wait()
    except TimeoutError:
        return False
    return True


def _kill(pid: int) -> None:
    # Its shim has not reaped it, or it would have told: the pid is still this process's.
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _output(directory: str) -> str:
    reader = LogReader(directory)
    try:
        data = reader.read(reader.first(), 4 * OUTPUT_BYTES)
    finally:
        reader.close()
    text = b"".join(bytes(payload) for _, stream, _, payload in frames(data) if stream < 16)
    if len(text) <= OUTPUT_BYTES:
        return text.decode(errors="replace")
    return text[:OUTPUT_BYTES].decode(errors="replace") + "..."


def _read(run: Run) -> tuple[Verdict, int]:
    fields = rundir.read_json(f"{run.directory}/{_FILE}") or {}
    verdict = Verdict(str(fields.get("status", "starting")), int(fields.get("streak", 0)))
    return verdict, int(fields.get("number", 0))


def _write(run: Run, verdict: Verdict, number: int) -> None:
    fields = {"status": verdict.status, "streak": verdict.streak, "number": number}
    with contextlib.suppress(OSError):
        rundir.write_json(f"{run.directory}/{_FILE}", fields)

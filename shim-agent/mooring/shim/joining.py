"""Execs: a further process in a running container, described as OCI has it, started by its shim."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable
from typing import Any

from mooring.kit import capabilities, faults, log
from mooring.kit.errors import Conflict, EngineError, InvalidParameter, Unavailable
from mooring.kit.models.base import Done
from mooring.kit.models.exec import ExecConfig, ExecStarted
from mooring.kit.models.host import HostExec

from . import accounts, held
from .accounts import Account
from .channel import ShimRefused
from .exits import Exits
from .runs import Containers, Exec, Run, running
from .shims import Shims, container_of

logger = logging.getLogger(__name__)

_SHIMS = 3
"""How many shims in a row may be killed under the start of one exec."""
CANNOT_INVOKE = 126
"""The exit code of an exec whose process could not be made."""


class Joining:
    """The handler that starts execs."""

    def __init__(self, containers: Containers, shims: Shims, exits: Exits) -> None:
        self._containers = containers
        self._shims = shims
        self._exits = exits

    async def start(self, request: HostExec) -> ExecStarted:
        """Start an exec; one that was started before is answered again."""
        container = container_of(self._containers, self._shims, request.id)
        run = running(container, request.id, request.run)
        if run.paused:
            raise Conflict(f"Container {request.id} is paused, unpause the container before exec")
        if request.exec_id in run.ended_execs:
            return ExecStarted()
        entry = run.exec(request.exec_id)
        with log.bind(container=request.id, exec=request.exec_id):
            if not entry.started and not entry.error:
                await self._start(run, entry, request)
            return ExecStarted(pid=entry.pid, error=entry.error, exit_code=_code_of(entry))

    async def prepare(self, request: HostExec) -> Done:
        """Have the process made that a start is likely to ask for; nothing depends on it."""
        container = self._containers.find(request.id)
        run = container.live if container is not None else None
        if run is None or run.number != request.run or run.channel is None or run.paused:
            return Done()
        if request.exec_id not in run.execs and request.exec_id not in run.ended_execs:
            # What is wrong with it is told to whoever starts it.
            with contextlib.suppress(EngineError, OSError):
                run.channel.tell("exec_prepare", **_fields(run, request))
        return Done()

    async def _start(self, run: Run, entry: Exec, request: HostExec) -> None:
        if not request.attach:
            # Nobody will read what it prints: the shim drops it.
            entry.read = True
        try:
            answer = await self._ask_whoever_is_there(run, request)
        except ShimRefused as exc:
            reason = f"unable to start container process: {exc.message}"
            message = f"OCI runtime exec failed: exec failed: {reason}: unknown"
            self._exits.exec_failed(run, request.exec_id, message, exc.exit_code)
            return
        except InvalidParameter as exc:
            self._exits.exec_failed(run, request.exec_id, exc.message, CANNOT_INVOKE)
            return
        except EngineError:
            if not entry.started and not entry.held:
                run.execs.pop(request.exec_id, None)
            raise
        faults.point("agent.exec.started")
        entry.pid = int(answer["pid"])
        entry.started = True
        run.container.changed.fire()

    async def _ask_whoever_is_there(self, run: Run, request: HostExec) -> dict[str, Any]:
        """Ask the shim, or the one that takes its place: that goes on with what was begun."""
        for _ in range(_SHIMS - 1):
            try:
                return await self._ask(run, request)
            except Unavailable as exc:
                if not run.live:
                    raise
                logger.info("an exec waits for another shim: %s", exc)
        return await self._ask(run, request)

    async def _ask(self, run: Run, request: HostExec) -> dict[str, Any]:
        fields = _fields(run, request)
        channel = await run.reach()
        asking = channel.request_with("exec", run.keeping.porch, hold=True, **fields)
        answer = await asking
        held.take_exec(run, request.exec_id, answer, answer["descriptors"])
        return answer


def _fields(run: Run, request: HostExec) -> dict[str, Any]:
    """What its shim is told of an exec."""
    assert run.record is not None
    if run.process is None:
        with open(f"{run.record.bundle}/config.json", "rb") as file:
            run.process = json.load(file)["process"]
    size = [request.rows, request.columns] if request.rows and request.columns else None
    return {
        "exec": request.exec_id,
        "process": _described(run.process, request.config, run.record.init.pid),
        "tty": request.config.tty,
        "stdin": request.config.attach_stdin,
        "output": request.attach,
        "console_size": size,
    }


def _described(process: dict[str, Any], config: ExecConfig, init_pid: int) -> dict[str, Any]:
    """The process of an exec; asks the container's files if it is another user's."""
    account = None
    own_home = "/"
    if config.user:
        account = accounts.look_up(init_pid, config.user, config.group_add)
        own_home = accounts.home_of(init_pid, int(process["user"]["uid"]))
    every = _bounding_set() if config.privileged else None
    return describe(process, config, account, own_home, every)


def describe(
    process: dict[str, Any],
    config: ExecConfig,
    account: Account | None,
    own_home: str,
    privileges: list[str] | None,
) -> dict[str, Any]:
    """The container's own process, changed to what an exec asks for.

    `account`: another user than the container's, whose home is `own_home`; `privileges`: the
    capabilities of a privileged exec.
    """
    environment = _variables(process.get("env") or [])
    if account is not None:
        process = {**process, "user": account.as_oci()}
        # The container's HOME is its user's unless somebody chose it.
        if environment.get("HOME", own_home) == own_home:
            environment["HOME"] = account.home
    if config.tty:
        environment.setdefault("TERM", "xterm")
    environment.update(_variables(config.env))
    user = int(process["user"]["uid"])
    if privileges is not None:
        process = {**process, "capabilities": _sets(privileges, user), "noNewPrivileges": False}
    elif account is not None and (sets := process.get("capabilities")):
        process = {**process, "capabilities": _sets(sets.get("bounding", []), user)}
    return {
        **process,
        "args": config.cmd,
        "env": [f"{name}={value}" for name, value in environment.items()],
        "cwd": config.working_dir or process.get("cwd") or "/",
        "terminal": config.tty,
    }


def _variables(pairs: Iterable[str]) -> dict[str, str]:
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def _sets(names: list[str], uid: int) -> dict[str, list[str]]:
    """A user who is not root has them in the bounding set only, as after an execve(2)."""
    if uid != 0:
        return {"bounding": names}
    return {"bounding": names, "effective": names, "permitted": names}


def _bounding_set() -> list[str]:
    """All capabilities that this process could hand on."""
    with open("/proc/self/status") as file:
        mask = next(int(line.split()[1], 16) for line in file if line.startswith("CapBnd:"))
    return [name for number, name in enumerate(capabilities.NAMES) if mask >> number & 1]


def _code_of(entry: Exec) -> int:
    return (entry.exit_code or 0) if entry.error else 0

"""What an embedded engine consists of, and how each part is started."""

from __future__ import annotations

import fcntl
import gc
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mooring.kit import nats_server
from mooring.kit.config import Settings

logger = logging.getLogger(__name__)

SERVICES = {
    "lifecycle": "mooring.lifecycle.__main__",
    "runtime": "mooring.runtime.__main__",
    "shim-agent": "mooring.shim.__main__",
    "gateway": "mooring.gateway.__main__",
}
"""Name and program of each service, in the order in which they are started. A program imports what
it runs, its SERVICE, only when it is started."""

ON_DEMAND = {"network": "mooring.runtime.network.service"}
"""Started by the first connection to `<run dir>/<name>.sock`, which they are handed."""

_FIRST_FD = 3


@dataclass(frozen=True)
class Program:
    """One part of the engine: a service of ours (`module`) or another's program (`command`)."""

    name: str
    module: str = ""
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    output: Path | None = None
    """Where stdout and stderr go; None: where ours go."""
    port: int = 0
    """A program that does not notify is ready when it accepts connections here."""
    listens: bool = False
    """Whether it gets the engine's listening sockets."""
    activation: Path | None = None
    """Its own listening socket (SOCK_SEQPACKET): it is started when somebody connects there.
    When it ends by itself it is not missed until the next connection."""


def programs(settings: Settings) -> list[Program]:
    """The parts of this engine, in the order in which they are started."""
    parts = []
    if not settings.nats_url:
        command, environment = nats_server.prepare(settings.state_dir, settings.run_dir)
        parts.append(
            Program(
                "nats",
                command=tuple(command),
                environment=environment,
                output=settings.run_dir / "nats.log",
                port=nats_server.port(settings.run_dir),
            )
        )
    environment = settings.environment()
    for name, module in ON_DEMAND.items():
        path = settings.run_dir / f"{name}.sock"
        parts.append(Program(name, module=module, environment=environment, activation=path))
    for name, module in SERVICES.items():
        parts.append(
            Program(name, module=module, environment=environment, listens=name == "gateway")
        )
    return parts


def preload() -> None:
    """Import every service once, here: a fork then shares the memory and starts in no time.

    Four services that each import the same modules take 40 MB more and, all killed at once, are
    back a second later. What cannot be imported is tried, and reported, by the service itself.
    """
    for name, module in {**SERVICES, **ON_DEMAND}.items():
        try:
            program = importlib.import_module(module)
            if service := getattr(program, "SERVICE", ""):
                importlib.import_module(service)
        except Exception as exc:
            logger.warning("cannot load %s in advance: %s", name, exc)


def become(
    program: Program, descriptors: list[tuple[str, int]], notify: str, watchdog: float, gate: int
) -> None:
    """In a forked child: turn into the program. Does not return.

    descriptors are handed over as LISTEN_FDS, named; watchdog in seconds, 0 for none. gate: a
    descriptor that can be read when it may begin; at its end, it may not.
    """
    try:
        # Its own group: a Ctrl-C at our terminal reaches us alone, and we stop it in order.
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        for name in [name for name in os.environ if name.startswith("MOORING_")]:
            del os.environ[name]
        os.environ.update(program.environment)
        gate = _hand_over(descriptors, gate)
        if not os.read(gate, 1):
            _leave(0)
        os.close(gate)
        if program.output is not None:
            _redirect(program.output)
        if program.command:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.execve(program.command[0], list(program.command), dict(os.environ))
        os.environ["NOTIFY_SOCKET"] = notify
        if watchdog:
            os.environ["WATCHDOG_PID"] = str(os.getpid())
            os.environ["WATCHDOG_USEC"] = str(int(watchdog * 1_000_000))
        gc.enable()
        _name_process(f"mooring-{program.name}")
        importlib.import_module(program.module).main()
        _leave(0)
    except SystemExit as exc:
        if isinstance(exc.code, str):
            print(exc.code, file=sys.stderr)
        _leave(exc.code if isinstance(exc.code, int) else 1 if exc.code else 0)
    except BaseException:
        traceback.print_exc()
        _leave(1)


def _hand_over(descriptors: list[tuple[str, int]], gate: int) -> int:
    """Move the descriptors to 3, 4, …, the gate behind them, and close everything else we had.

    Its locks above all: they are free when the supervisor is gone. Returns where the gate is.
    """
    highest = _FIRST_FD + len(descriptors)
    # First out of the way: a target may be another one's source.
    safe = [_duplicate_above(descriptor, highest + 1) for _, descriptor in descriptors]
    os.dup2(_duplicate_above(gate, highest + 1), highest)
    for index, descriptor in enumerate(safe):
        os.dup2(descriptor, _FIRST_FD + index, inheritable=True)
    os.closerange(highest + 1, os.sysconf("SC_OPEN_MAX"))
    if descriptors:
        os.environ["LISTEN_PID"] = str(os.getpid())
        os.environ["LISTEN_FDS"] = str(len(descriptors))
        os.environ["LISTEN_FDNAMES"] = ":".join(name for name, _ in descriptors)
    return highest


def _duplicate_above(descriptor: int, lowest: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest)


def _redirect(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _name_process(name: str) -> None:
    with open("/proc/self/comm", "w") as comm:
        comm.write(name[:15])
    sys.argv = [name]


def _leave(code: int) -> None:
    """End the child at once: what the supervisor has registered to run at exit is not ours."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(code)

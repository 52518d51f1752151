"""Running a service: settings, logs, the event loop, signals, and systemd's protocols.

The supervisor of embedded mode speaks them too, so a service is one program in both modes.
"""

from __future__ import annotations

import array
import asyncio
import gc
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import Awaitable, Callable

import uvloop

from . import faults, log, timing
from .config import ConfigError, Settings, load

logger = logging.getLogger(__name__)

_FIRST_FD = 3
STOP_TIMEOUT = 5.0
"""Seconds a service may take to end after it was asked to; then it is cancelled."""


class Service:
    """What the process that runs a service can tell it, and what it tells the process manager."""

    def __init__(self) -> None:
        self._stopping = asyncio.Event()
        self._notify_address = _abstract(os.environ.pop("NOTIFY_SOCKET", ""))
        self._watchdog = _watchdog_interval()
        self._pinger: asyncio.TimerHandle | None = None
        self._listening: dict[str, list[int]] = {}
        self._stored: dict[str, list[int]] = {}
        # Told apart once: what is stored is its user's, whose numbers are soon others'.
        for name, descriptors in _passed_descriptors().items():
            for descriptor in descriptors:
                kind = self._listening if _is_listening(descriptor) else self._stored
                kind.setdefault(name, []).append(descriptor)

    async def ready(self) -> None:
        """Say that requests are answered from now on, and begin to feed the watchdog."""
        self._notify("READY=1")
        if self._watchdog:
            self._ping()

    async def stop_requested(self) -> None:
        """Wait for SIGTERM or SIGINT."""
        await self._stopping.wait()

    @property
    def stopping(self) -> bool:
        """Whether the process was asked to stop."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Ask this process to stop."""
        if not self._stopping.is_set():
            self._notify("STOPPING=1")
            self._stopping.set()

    def status(self, text: str) -> None:
        """One line for whoever asks the process manager how it goes."""
        self._notify(f"STATUS={text}")

    def listeners(self) -> dict[str, list[socket.socket]]:
        """The listening sockets we were handed, by name; each call makes new socket objects."""
        return {
            name: [socket.socket(fileno=os.dup(descriptor)) for descriptor in descriptors]
            for name, descriptors in self._listening.items()
        }

    @property
    def keeps_descriptors(self) -> bool:
        """Whether there is a process manager that could keep descriptors for us."""
        return bool(self._notify_address)

    def store(self, name: str, descriptor: int, *, poll: bool = True) -> None:
        """Keep a descriptor with the process manager: a restarted service finds it in `stored`.

        poll: only for as long as its other end has not hung up.
        """
        more = "" if poll else "\nFDPOLL=0"
        self._notify(f"FDSTORE=1\nFDNAME={name}{more}", descriptor)

    def unstore(self, name: str) -> None:
        """Have the process manager close the descriptors stored by this name."""
        self._notify(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def stored(self) -> dict[str, list[int]]:
        """The descriptors that were stored before this process started, by name."""
        return {name: [*descriptors] for name, descriptors in self._stored.items()}

    def _ping(self) -> None:
        # From the loop itself: a loop that hangs stops feeding the watchdog.
        self._notify("WATCHDOG=1")
        self._pinger = asyncio.get_running_loop().call_later(self._watchdog, self._ping)

    def _notify(self, text: str, descriptor: int | None = None) -> None:
        if not self._notify_address:
            return
        ancillary = []
        if descriptor is not None:
            ancillary = [
                (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]).tobytes())
            ]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.sendmsg([text.encode()], ancillary, 0, self._notify_address)
        except OSError as exc:
            # The manager may be restarting; what it must know, it learns from its children anew.
            logger.warning("cannot notify the process manager: %s", exc)


def run(name: str, main: Callable[[Settings, Service], Awaitable[None]]) -> None:
    """Run a service until it is asked to stop; exit status 1 if it failed."""
    try:
        settings = load()
    except ConfigError as exc:
        sys.exit(f"mooring-{name}: {exc}")
    log.setup(name, settings.log_level, settings.log_format)
    if settings.faults:
        faults.enable(str(settings.run_dir / "faults"))
    if settings.timings:
        timing.enable()
    # What the imports made lives as long as the process: never look at it, not even now.
    gc.freeze()
    gc.enable()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(name, settings, main))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        logger.exception("%s failed", name)
        sys.exit(1)


async def _run(
    name: str, settings: Settings, main: Callable[[Settings, Service], Awaitable[None]]
) -> None:
    service = Service()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stop)
    work = asyncio.ensure_future(main(settings, service))
    stop = asyncio.create_task(service.stop_requested())
    await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not work.done():
        done, _ = await asyncio.wait({work}, timeout=STOP_TIMEOUT)
        if not done:
            logger.warning("%s does not stop by itself, cancelling it", name)
            work.cancel()
            await asyncio.wait({work}, timeout=STOP_TIMEOUT)
            return
    await work


def _watchdog_interval() -> float:
    """Half of WATCHDOG_USEC in seconds, or 0 when nobody watches."""
    microseconds = os.environ.pop("WATCHDOG_USEC", "")
    pid = os.environ.pop("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(microseconds) / 2_000_000


def _passed_descriptors() -> dict[str, list[int]]:
    """LISTEN_FDS by LISTEN_FDNAMES; the variables are taken away, our children do not get them."""
    count = os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    pid = os.environ.pop("LISTEN_PID", "")
    found: dict[str, list[int]] = {}
    if not count.isdecimal() or pid != str(os.getpid()):
        return found
    for index in range(int(count)):
        name = names[index] if index < len(names) and names[index] else "unknown"
        os.set_inheritable(_FIRST_FD + index, False)
        found.setdefault(name, []).append(_FIRST_FD + index)
    return found


def _is_listening(descriptor: int) -> bool:
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return False
    with socket.socket(fileno=os.dup(descriptor)) as candidate:
        return bool(candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _abstract(address: str) -> str:
    return "\0" + address[1:] if address.startswith("@") else address

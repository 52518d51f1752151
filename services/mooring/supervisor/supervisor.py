"""The supervisor of an embedded engine: one loop over its children, their messages and its clients.

It speaks systemd's protocols to the services, so they are the same programs in both modes. It holds
what must outlive a service: the listening sockets and the descriptors that services stored.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mooring.kit import faults, listening
from mooring.kit.config import Settings, parse_host

from . import activation, keeper, leftovers, notify, orphans, rundir
from .child import Child, State, start_time
from .keeper import Keeper, Kept
from .programs import programs

logger = logging.getLogger(__name__)

CLIENTS = 64
"""Connections to supervisor.sock at a time."""
KEEPER_DELAY = 0.1
"""Seconds until a keeper that was killed is followed by another."""
_MAX_LINE = 4096


class Supervisor:
    """Runs the engine until it is told to stop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._run_dir = settings.run_dir
        self._selector = selectors.DefaultSelector()
        self._children: list[Child] = []
        self._stopping = False
        self._started = time.time()
        self._recorded: tuple[object, ...] = ()
        self._buffers: dict[socket.socket, bytes] = {}
        self._cleanup = contextlib.ExitStack()
        self._hear: Callable[[], None] = lambda: None
        self._kept = Kept()
        self._keeper_due: float | None = None
        self._keeper = Keeper(self._run_dir / "keeper.sock", self._run_dir / "supervisor.json")

    def run(self) -> None:
        """Start everything, keep it running, stop it when asked to. AlreadyRunning, OSError."""
        with self._cleanup:
            self._prepare()
            for child in self._children:
                # What one on demand has stored is to be looked after, as after a kill of it alone.
                if child.state is State.IDLE and not len(child.store):
                    self._await_client(child)
                else:
                    self._start(child)
            self._record()
            while not self._stopping or any(child.pid for child in self._children):
                self._step()
            # Not if this ends in any other way: then all goes on, and is to be found.
            self._keeper.end()
            with contextlib.suppress(FileNotFoundError):
                (self._run_dir / "supervisor.json").unlink()

    def _prepare(self) -> None:
        settings, on_exit = self._settings, self._cleanup
        self._run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        rundir.mount(self._run_dir / "shims")
        on_exit.callback(rundir.unmount, self._run_dir / "shims")
        for directory in (settings.state_dir, self._run_dir):
            on_exit.callback(os.close, leftovers.lock(directory))
        kept = self._inherit()
        listeners = []
        for host in settings.host:
            listeners += inherited(kept, host) or listening.listen([host])
        on_exit.callback(listening.close, settings.host, listeners)

        path = str(self._run_dir / "notify.sock")
        if kept.notified is None:
            kept.notified = notify.bind(path)
        notified = on_exit.enter_context(kept.notified)
        on_exit.callback(_unlink, path)
        self._hear = lambda: self._notified(notified)
        self._watch(notified, self._hear)
        for program in programs(settings):
            mine = listeners if program.listens else []
            if program.activation:
                (activator,) = kept.listeners.pop(str(program.activation), ()) or (
                    activation.listen(str(program.activation)),
                )
                on_exit.callback(activation.close, str(program.activation), activator)
                mine = [(program.name, activator)]
            store = kept.stores.pop(program.name, None)
            self._children.append(Child(program, path, mine, store))
        for child in self._children:
            self._watch(child.store, child.store.poll)
        self._keep(kept)
        self._listen_for_clients()
        self._listen_for_signals()

    # --- what outlives us ---

    def _inherit(self) -> Kept:
        """End what a killed supervisor has left running; what its keeper has is ours."""
        kept = keeper.take(self._run_dir / "keeper.sock")
        record = self._run_dir / "supervisor.json"
        alive, services = leftovers.living(record), leftovers.recorded(record)

        def hear() -> None:
            if kept.notified is not None:
                keeper.hear(kept, services)

        leftovers.end(alive, kept.notified, hear)
        hear()
        if alive:
            names = ", ".join(name for name, _ in alive)
            logger.info("ended what another supervisor left running: %s", names)
        return kept

    def _keep(self, found: Kept) -> None:
        """Have a keeper of all that the next supervisor is to find, and of nothing else."""
        for listed in found.listeners.values():
            for made in listed:
                made.close()
        for store in found.stores.values():
            store.close()
        self._kept = found
        found.stores = {child.name: child.store for child in self._children}
        found.listeners = {}
        for child in self._children:
            if child.activator is not None:
                found.listeners[str(child.program.activation)] = [child.activator]
            elif child.program.listens:
                for host, (_, made) in zip(self._settings.host, child.listeners, strict=True):
                    found.listeners[host] = [made]
        self._start_keeper()

    def _start_keeper(self) -> None:
        self._keeper_due = None
        try:
            self._keeper.start(self._kept)
        except OSError as exc:
            logger.warning("nothing is kept in case this process is killed: %s", exc)
            self._keeper_due = time.monotonic() + KEEPER_DELAY
            return
        self._watch(self._keeper.pidfd, self._keeper_ended)

    def _keeper_ended(self) -> None:
        self._selector.unregister(self._keeper.pidfd)
        self._keeper.ended()
        logger.warning("the keeper was killed, starting another")
        # Not at once: what cannot start would be started for ever.
        self._keeper_due = time.monotonic() + KEEPER_DELAY

    # --- the loop ---

    def _step(self) -> None:
        now = time.monotonic()
        dues = [child.due for child in self._children if child.due is not None]
        if self._keeper_due is not None:
            dues.append(self._keeper_due)
        timeout = max(0.0, min(dues) - now) if dues else None
        for key, _ in self._selector.select(timeout):
            act: Callable[[], None] = key.data
            act()
        now = time.monotonic()
        for child in self._children:
            if self._stopping and child.state is State.WAITING:
                child.stop()
            elif child.due is not None and child.due <= now:
                before = child.pid
                child.tick()
                if child.pid and child.pid != before:
                    self._watch_exit(child)
        if self._stopping:
            self._stop_next()
        elif self._keeper_due is not None and self._keeper_due <= now:
            self._start_keeper()
        self._record()

    def _start(self, child: Child) -> None:
        child.start()
        if child.pid:
            self._watch_exit(child)

    def _await_client(self, child: Child) -> None:
        """Start it when somebody connects to its socket."""
        activator = child.activator
        assert activator is not None

        def connected() -> None:
            self._selector.unregister(activator)
            if not self._stopping:
                self._start(child)

        self._watch(activator, connected)

    def _watch_exit(self, child: Child) -> None:
        self._watch(child.pidfd, lambda: self._exited(child))

    def _watch(self, source: Any, act: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, act)

    def _exited(self, child: Child) -> None:
        # What it stored with its last breath is to be kept: it is known by its pid only till now.
        self._hear()
        self._selector.unregister(child.pidfd)
        child.exited()
        if child.state is State.IDLE:
            self._await_client(child)

    def _notified(self, notified: socket.socket) -> None:
        # Only what the keeper has been told as well is taken away: it is in one of the two places.
        while (message := notify.receive(notified, peek=True)) is not None:
            faults.point("supervisor.heard")
            for child in self._children:
                if child.pid == message.pid:
                    self._keeper.told(child.name, message)
                    faults.point("supervisor.told")
                    child.notified(message)
                    break
            else:
                for descriptor in message.descriptors:
                    os.close(descriptor)
            notify.drop(notified)

    def _stop_next(self) -> None:
        """In the reverse order of starting, each when the one before has ended; the bus last."""
        for child in reversed(self._children):
            child.stop()
            if child.pid:
                return

    # --- signals ---

    def _listen_for_signals(self) -> None:
        reading, writing = socket.socketpair()
        for end in (reading, writing):
            end.setblocking(False)
            self._cleanup.enter_context(end)
        signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        self._cleanup.callback(signal.set_wakeup_fd, -1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        orphans.adopt()
        self._watch(reading, lambda: self._signalled(reading))

    def _signalled(self, reading: socket.socket) -> None:
        numbers = reading.recv(256)
        if signal.SIGCHLD in numbers:
            orphans.bury({self._keeper.pid, *(child.pid for child in self._children)})
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            logger.info("stopping the services; containers go on")
            self._stopping = True

    # --- supervisor.sock ---

    def _listen_for_clients(self) -> None:
        path = str(self._run_dir / "supervisor.sock")
        _unlink(path)
        clients = self._cleanup.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind_privately(clients, path)
        self._cleanup.callback(_unlink, path)
        clients.listen(CLIENTS)
        clients.setblocking(False)
        self._watch(clients, lambda: self._accept(clients))

    def _accept(self, listening: socket.socket) -> None:
        client, _ = listening.accept()
        client.setblocking(False)
        if len(self._buffers) >= CLIENTS:
            client.close()
            return
        self._buffers[client] = b""
        self._watch(client, lambda: self._read(client))

    def _read(self, client: socket.socket) -> None:
        try:
            data = client.recv(_MAX_LINE)
        except OSError:
            data = b""
        *lines, rest = (self._buffers[client] + data).split(b"\n")
        if not data or len(rest) > _MAX_LINE:
            self._forget(client)
            return
        self._buffers[client] = rest
        for line in lines:
            try:
                # An answer is a few KiB: it fits into the socket's buffer, or the client is gone.
                client.sendall(json.dumps(self._answer(line)).encode() + b"\n")
            except OSError:
                self._forget(client)
                return

    def _forget(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        del self._buffers[client]
        client.close()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            operation = json.loads(line)["op"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return {"ok": False, "error": "not a request: one JSON object with an op to a line"}
        if operation == "status":
            return {"ok": True, **self.describe()}
        if operation == "stop":
            self._stopping = True
            return {"ok": True, "pid": os.getpid()}
        return {"ok": False, "error": f"unknown op {operation!r}"}

    # --- what others may know ---

    def describe(self) -> dict[str, Any]:
        """The state of everything, as `mooring status` shows it."""
        return {
            "version": 1,
            "pid": os.getpid(),
            "start": start_time(os.getpid()),
            "keeper": self._keeper.pid,
            "started": self._started,
            "instance": self._settings.instance,
            "node_id": self._settings.node_id,
            "state_dir": str(self._settings.state_dir),
            "run_dir": str(self._run_dir),
            "hosts": self._settings.host,
            "state": "stopping" if self._stopping else self._state(),
            "services": [
                {
                    "name": child.name,
                    "pid": child.pid,
                    "start": child.start_time,
                    "state": str(child.state),
                    "uptime": round(child.uptime(), 3),
                    "restarts": child.restarts,
                    "status": child.status,
                    "stored": len(child.store),
                }
                for child in self._children
            ],
        }

    def _state(self) -> str:
        ready = all(child.state in (State.READY, State.IDLE) for child in self._children)
        return "ready" if ready else "starting"

    def _record(self) -> None:
        """Keep supervisor.json true: by it, our successor finds what we leave if we are killed."""
        # Most of what wakes us changes nothing of it, and happens while somebody waits for a start.
        states = [(child.pid, child.state, child.restarts) for child in self._children]
        now = (self._stopping, self._keeper.pid, states)
        if now == self._recorded:
            return
        content = self.describe()
        for service in content["services"]:
            del service["uptime"], service["status"], service["stored"]
        faults.point("supervisor.forked")
        _write(self._run_dir / "supervisor.json", json.dumps(content))
        self._recorded = now
        for child in self._children:
            child.recorded()


def inherited(kept: Kept, host: str) -> list[tuple[str, socket.socket]]:
    """The listening socket of the supervisor before for this address, where it still has one."""
    kind, address, _ = parse_host(host)
    if host not in kept.listeners or (kind == "unix" and not os.path.exists(address)):
        return []
    return [(kind, made) for made in kept.listeners.pop(host)]


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    os.rename(temporary, path)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)

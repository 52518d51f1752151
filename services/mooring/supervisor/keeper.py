"""The process beside a supervisor that keeps what a kill of the supervisor would lose.

It has duplicates of all that the supervisor keeps: the listening sockets, the socket that services
notify, and what each of them has stored. It does nothing with them while the supervisor lives but
repeat what that is told. When that is killed, it hears the services itself, and hands everything
to the supervisor that comes next. A supervisor that stops in order ends it.

    supervisor            keeper                 next supervisor    its keeper
      | -- FDSTORE … -----> |
      x (killed)            | hears the services
                            | <--- connects ------ |
                            | ---- everything ---> |
                            |                      | -- forks ------> |
                            | <------------- done, on that connection |
                          ends
"""

from __future__ import annotations

import array
import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mooring.kit import faults
from mooring.kit.listening import bind_privately

from . import notify
from .leftovers import recorded
from .store import DescriptorStore

_END, _DONE, _READY = b"end", b"done", b"ready"
_PACKET_BYTES = 4096
_DESCRIPTORS = 253
_TAKE_SECONDS, _START_SECONDS, _TELL_SECONDS = 30.0, 10.0, 5.0
_REST_SECONDS = 0.05
"""Between looks at what it was told, which is kept just as well while it waits in its socket: to
wake up for each thing was 1.5 % of all processor time of a container that starts and ends."""
_LOOK_SECONDS = 5.0
"""How often one without a supervisor looks whether its directory is still there."""


@dataclass
class Kept:
    """What outlives a supervisor."""

    notified: socket.socket | None = None
    """What services notify."""
    listeners: dict[str, list[socket.socket]] = field(default_factory=dict)
    """Listening sockets by address or path."""
    stores: dict[str, DescriptorStore] = field(default_factory=dict)
    """What each service has stored, by its name."""
    connection: socket.socket | None = None
    """To the keeper that all this is from, which ends when it hears that another one has it."""

    def own(self) -> set[int]:
        """The descriptors of all that."""
        sockets = [made for listed in self.listeners.values() for made in listed]
        sockets += [made for made in (self.notified, self.connection) if made is not None]
        found = {made.fileno() for made in sockets}
        for store in self.stores.values():
            found |= {store.fileno(), *(descriptor for _, descriptor in store.items())}
        return found


class Keeper:
    """The supervisor's side: a keeper of its own, and another one if that is killed."""

    def __init__(self, path: Path, record: Path) -> None:
        """path: of the socket that the next supervisor asks; record: supervisor.json."""
        self._path = path
        self._record = record
        self._channel: socket.socket | None = None
        self.pid = 0
        self.pidfd = -1

    def start(self, kept: Kept) -> None:
        """Fork a keeper of all this; returns when it can be asked, or has ended. OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.pid = os.fork()
            if self.pid == 0:
                _become(kept, theirs, self._path, self._record)
        self.pidfd = os.pidfd_open(self.pid)
        self._channel = ours
        ours.settimeout(_START_SECONDS)
        try:
            ready = ours.recv(len(_READY)) == _READY
        except TimeoutError:
            ready = False
            self._kill()
        ours.settimeout(_TELL_SECONDS)
        if ready and kept.connection is not None:
            # Not before: at its end, the keeper before ours takes us for dead and hears services.
            kept.connection.close()
            kept.connection = None

    def told(self, service: str, notification: notify.Notification) -> None:
        """Repeat what a service stores, or does not need any more."""
        fields = {
            name: value for name, value in notification.fields.items() if name.startswith("FD")
        }
        if not fields:
            return
        if self._channel is None:
            return
        packet = json.dumps([service, fields]).encode()
        rights = array.array("i", notification.descriptors).tobytes()
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
        try:
            self._channel.sendmsg([packet], ancillary)
        except OSError:
            # It has missed something: one that is forked now has all. Its end tells us.
            self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def ended(self) -> None:
        """It has ended: let go of it."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.pid, self.pidfd = 0, -1
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def end(self) -> None:
        """Nothing is to be kept any more."""
        if self.pid:
            # It has nothing to do at its end, and may be stopped (SIGSTOP).
            self._kill()
            self.ended()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()


def take(path: Path) -> Kept:
    """All that the keeper of a killed supervisor has; nothing if there is none."""
    kept = Kept()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(_TAKE_SECONDS)
    try:
        connection.connect(str(path))
        while True:
            packet, descriptors, _, _ = socket.recv_fds(connection, _PACKET_BYTES, 1)
            if packet == _END:
                kept.connection = connection
                return kept
            if not packet:
                raise ConnectionResetError("the keeper is gone")
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
                _put(kept, json.loads(packet), descriptor)
    except OSError:
        connection.close()
        return kept


def _put(kept: Kept, packet: list[str], descriptor: int) -> None:
    kind, name, service, poll = packet
    if kind == "stored":
        store = kept.stores.setdefault(service, DescriptorStore())
        store.add(name, [descriptor], bool(poll))
        return
    made = socket.socket(fileno=descriptor)
    made.setblocking(False)
    if kind == "notified":
        kept.notified = made
    else:
        kept.listeners.setdefault(name, []).append(made)


def _become(kept: Kept, channel: socket.socket, path: Path, record: Path) -> None:
    """In a forked child: be a keeper. Does not return."""
    try:
        # Its own group: a Ctrl-C at the supervisor's terminal is not for it.
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        _close_all_but({channel.fileno(), *kept.own()})
        with open("/proc/self/comm", "w") as comm:
            comm.write("mooring-keeper")
        _Keeping(kept, channel, path, record).run()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _close_all_but(kept: set[int]) -> None:
    """Close what is the supervisor's own: its locks above all."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    lowest = 3
    for number in sorted(number for number in kept if number >= lowest):
        os.closerange(lowest, number)
        lowest = number + 1
    os.closerange(lowest, os.sysconf("SC_OPEN_MAX"))


class _Keeping:
    """The life of a keeper."""

    def __init__(self, kept: Kept, channel: socket.socket, path: Path, record: Path) -> None:
        gc.freeze()
        self._kept = kept
        self._channel = channel
        self._record = record
        self._services: dict[int, str] = {}
        self._selector = selectors.DefaultSelector()
        self._path = path
        self._over = self._alone = False
        self._waiting = _listen(path)
        for store in kept.stores.values():
            # That of the supervisor is one object with ours.
            store.forked()
            self._watch(store, store.poll)
        self._watch(channel, self._supervisor)
        faults.point("keeper.listening")
        if kept.connection is not None:
            # From here on we are asked, and whoever was before is not needed.
            with contextlib.suppress(OSError):
                kept.connection.send(_DONE)
            kept.connection.close()
            kept.connection = None
        with contextlib.suppress(OSError):
            channel.send(_READY)

    def run(self) -> None:
        """Until it is not needed any more."""
        while not self._over:
            if self._alone:
                if not self._act(_LOOK_SECONDS) and not self._path.exists():
                    # Nobody will ever ask.
                    return
            elif not self._act(0):
                time.sleep(_REST_SECONDS)
                self._act(None)

    def _act(self, timeout: float | None) -> bool:
        """Do what there is to do; False if nothing came in time."""
        ready = self._selector.select(timeout)
        for key, _ in ready:
            act: Callable[[], None] = key.data
            act()
        return bool(ready)

    def _watch(self, source: object, act: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, act)  # type: ignore[arg-type]

    def _supervisor(self) -> None:
        """What the supervisor says; at its end, do its work of hearing."""
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._channel, _PACKET_BYTES, _DESCRIPTORS)
        except ConnectionResetError:
            # It was killed before it had read that we are ready.
            packet, descriptors = b"", []
        if packet:
            service, fields = json.loads(packet)
            self._kept.stores[service].told(fields, descriptors)
        else:
            self._selector.unregister(self._channel)
            self._alone = True
            # No others are started from here on, and what one says may be read after its end.
            self._services = recorded(self._record)
            self._watch(self._waiting, self._hand_over)
            if self._kept.notified is not None:
                self._watch(self._kept.notified, self._hear)

    def _hear(self) -> None:
        """What services store while there is no supervisor."""
        hear(self._kept, self._services)

    def _hand_over(self) -> None:
        connection, _ = self._waiting.accept()
        self._hear()
        with connection:
            connection.settimeout(_TAKE_SECONDS)
            try:
                for packet, descriptor in self._everything():
                    socket.send_fds(connection, [json.dumps(packet).encode()], [descriptor])
                connection.send(_END)
                # The services are heard by the other one now. It may be killed as well.
                connection.settimeout(None)
                self._over = connection.recv(len(_DONE)) == _DONE
            except OSError:
                pass

    def _everything(self) -> Iterable[tuple[list[object], int]]:
        kept = self._kept
        if kept.notified is not None:
            yield ["notified", "", "", 0], kept.notified.fileno()
        for name, listed in kept.listeners.items():
            for made in listed:
                yield ["listener", name, "", 0], made.fileno()
        for service, store in kept.stores.items():
            for name, descriptor in store.items():
                yield ["stored", name, service, int(store.polls(descriptor))], descriptor


def hear(kept: Kept, services: dict[int, str]) -> None:
    """Apply what services (by pid) have said that no supervisor looks after."""
    assert kept.notified is not None
    while (message := notify.receive(kept.notified)) is not None:
        store = kept.stores.get(services.get(message.pid, ""))
        if store is not None:
            store.told(message.fields, message.descriptors)
        else:
            for descriptor in message.descriptors:
                os.close(descriptor)


def _listen(path: Path) -> socket.socket:
    """A socket at this path from now on, whoever was there before."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    new = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    bind_privately(made, new)
    made.listen(1)
    os.rename(new, path)
    return made

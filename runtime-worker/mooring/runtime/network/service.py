"""`mooring-network`: what a container's network needs from a living process.

It holds the host's sockets of published ports and relays what the kernel cannot translate, and it
answers the containers of user-defined networks at 127.0.0.11 (dns/server.py). Every
descriptor is in the descriptor store under a name that says all about it, so this process may be
killed at any moment. Standard library only; started by the first connection to its socket, and
gone again when it has had nothing to do for a while.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import socket
from typing import Any

from mooring.kit import faults, log

from .dns.server import NameServer
from .loop import Loop
from .manager import Manager
from .packets import GOODBYE, PACKET
from .ports.held import HeldPorts

logger = logging.getLogger(__name__)

LISTENER = "network"
"""Name of the listening socket that we are handed."""
PATIENCE = 60.0
"""Seconds with nothing to do until it ends."""
HOLDERS = 500
"""At most in one answer, of about 70 bytes each: it has to fit into a packet."""
DESCRIPTORS = 250
"""At most in one packet (SCM_MAX_FD is 253)."""


class Server:
    """Answers the worker: one JSON object to a packet, descriptors beside it."""

    def __init__(self, loop: Loop, manager: Manager, names: str) -> None:
        self._loop = loop
        self._manager = manager
        self._ports = HeldPorts(loop, manager)
        self._names = NameServer(loop, manager, names)
        self._clients: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._said = ""

    def start(self) -> None:
        """Take back what was stored, and listen."""
        stored: dict[str, list[int]] = {}
        for name, descriptor in self._manager.descriptors:
            stored.setdefault(name, []).append(descriptor)
        for descriptor in stored.pop(LISTENER, []):
            self._listener = socket.socket(fileno=descriptor)
            self._listener.setblocking(False)
            self._loop.watch(descriptor, self._accept)
        self._names.load()
        for name, descriptors in stored.items():
            if not any(part.take(name, descriptors) for part in (self._ports, self._names)):
                self._manager.unstore(name)
                for descriptor in descriptors:
                    os.close(descriptor)
        self._manager.ready()
        self._tell()
        self._beat()
        self._loop.later(PATIENCE, self._rest)

    def _beat(self) -> None:
        if self._manager.watchdog:
            self._manager.alive()
            self._loop.later(self._manager.watchdog, self._beat)

    def _rest(self) -> None:
        """End if there is nothing to keep: the next connection starts another one of us."""
        self._loop.later(PATIENCE, self._rest)
        if self._ports or self._names or any(map(_asks, self._clients)):
            return
        for client in self._clients:
            try:
                client.send(GOODBYE)
            except OSError:
                pass
        self._loop.running = False

    def _tell(self) -> None:
        text = f"{self._ports.count()} port sockets, {len(self._names)} name servers"
        if text != self._said:
            self._said = text
            self._manager.status(text)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        client.setblocking(False)
        self._clients.add(client)
        self._loop.watch(client.fileno(), lambda: self._read(client))

    def _read(self, client: socket.socket) -> None:
        try:
            packet, descriptors, _, _ = socket.recv_fds(
                client, PACKET, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            packet, descriptors = b"", []
        if not packet:
            self._loop.forget(client.fileno())
            self._clients.discard(client)
            client.close()
            return
        try:
            answer = self._answer(json.loads(packet), descriptors)
        except (OSError, ValueError, KeyError, TypeError) as exc:
            logger.exception("cannot do what is asked")
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        self._tell()
        try:
            client.send(json.dumps(answer).encode())
        except OSError:
            pass  # it has gone, and asks again

    def _answer(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        match request["op"]:
            case "hold":
                faults.point("network.hold")
                targets = [(str(address), int(port)) for address, port in request["targets"]]
                sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
                self._ports.hold(request["holder"], targets, sockets)
                faults.point("network.held")
            case "release":
                faults.point("network.release")
                self._ports.release(request["holder"])
            case "move":
                self._ports.move(request["holder"], request["address"])
            case "join":
                faults.point("network.join")
                try:
                    self._names.join(request["holder"], descriptors[0])
                finally:
                    for descriptor in descriptors:
                        os.close(descriptor)
                faults.point("network.joined")
            case "leave":
                self._names.leave(request["holder"])
            case "holders":
                names = request.get("of") == "names"
                all_ = self._names.holders() if names else self._ports.holders()
                after = request.get("after", "")
                found = sorted(holder for holder in all_ if holder > after)
                more = len(found) > HOLDERS
                return {"ok": True, "holders": found[:HOLDERS], "more": more}
            case op:
                return {"error": f"unknown op {op!r}"}
        return {"ok": True}


def _asks(client: socket.socket) -> bool:
    """Whether a request waits to be read. (One that comes later is asked again of the next one.)"""
    try:
        return bool(client.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


def main() -> None:
    """Serve until asked to stop."""
    # What was there before us is our parent's: to look at it is to copy it, page by page.
    gc.freeze()
    log.setup(
        "network",
        os.environ.get("MOORING_LOG_LEVEL", "info"),
        os.environ.get("MOORING_LOG_FORMAT", "text"),
    )
    if os.environ.get("MOORING_FAULTS", "").lower() in ("1", "true", "yes"):
        faults.enable(os.path.join(os.environ["MOORING_RUN_DIR"], "faults"))
    manager, loop = Manager(), Loop()

    def stop(*_: object) -> None:
        loop.running = False

    reading, writing = socket.socketpair()
    for end in (reading, writing):
        end.setblocking(False)
    signal.set_wakeup_fd(writing.fileno())
    loop.watch(reading.fileno(), lambda: None)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    names = os.path.join(os.environ.get("MOORING_RUN_DIR", "/run/mooring"), "shims/.names")
    Server(loop, manager, names).start()
    loop.run()
    manager.stopping()


if __name__ == "__main__":
    main()

"""A shim that takes the place of another. Standard library only.

A launcher of the agent forks it, and hands the agent the socket that the two then speak over:

    agent                       successor                   the shim before it
      | <-- "ready" ------------- |  has read shim.json        | serves, or was killed
      | --- SIGKILL ---------------------------------------->  |
      | --- {names}, fds -------> |
      | --- {names, exec}, fds -> |
      | --- {} -----------------> |  locks the run, takes everything over
      | <-- "serves" ------------ |  goes on for as long as the container

An agent that dies before the last packet closes the socket, and this process ends.
"""

from __future__ import annotations

import gc
import os
from _socket import MSG_NOSIGNAL, MSG_PEEK
from fcntl import LOCK_EX, LOCK_NB, flock
from time import monotonic, sleep

from .control import receive_with
from .packets import parse
from .record import start_time, write_record
from .shim import Shim
from .warm import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any

READY, SERVES = b"ready", b"serves"
"""What the agent hears; any other words are the reason why there will be no successor."""
VERSION = 1
"""Of shim.json: with the names of descriptors all that two versions of a shim have in common."""
_PACKET_BYTES = 4096
_LOCK_SECONDS = 1.0


class Unfit(Exception):
    """This run can't be taken over by this code."""


def succeed(directory: str, agent: socket, code: str, oci: Any) -> None:
    """The life of a shim that takes over; it ends with the container, or unused with the agent.

    directory: of the run; code: see version.py. What goes wrong is told to the agent and raised.
    """
    try:
        os.chdir(directory)
        if (version := parse(read("shim.json")).get("version")) != VERSION:
            raise Unfit(f"its shim.json is of version {version}")
        agent.send(READY)
        handed = _receive(agent)
        if handed is None:
            return
        shim = take_over(*handed, code, oci)
    except BaseException as error:
        try:
            agent.send(f"{type(error).__name__}: {error}".encode()[:_PACKET_BYTES], MSG_NOSIGNAL)
        except OSError:
            pass
        raise
    try:
        agent.send(SERVES, MSG_NOSIGNAL)
    except OSError:
        pass  # The next agent finds it by shim.json.
    agent.close()
    gc.enable()
    shim.loop.run()


def _receive(agent: socket) -> tuple[dict[str, int], dict[str, dict[str, int]]] | None:
    """Descriptors by name, of the container and of each exec; None if there is nothing to do."""
    fds: dict[str, int] = {}
    execs: dict[str, dict[str, int]] = {}
    while agent.recv(1, MSG_PEEK):
        packet, received = receive_with(agent, _PACKET_BYTES)
        fields = parse(packet)
        if "names" not in fields:
            return fds, execs
        named = dict(zip(fields["names"], received, strict=True))
        if ident := fields.get("exec"):
            execs[ident] = named
        else:
            fds = named
    return None


def take_over(fds: dict[str, int], execs: dict[str, dict[str, int]], code: str, oci: Any) -> Shim:
    """The shim of the run in this directory. Raises if another one serves it already."""
    # Held for as long as this process lives: two agents must not start two shims. What the one
    # before has forked for an exec may hold its lock for a moment longer than it lived.
    lock = os.open("adopted", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = monotonic() + _LOCK_SECONDS
    while not _locked(lock):
        if monotonic() > deadline:
            raise Unfit("another shim serves it")
        sleep(0.01)
    if os.path.exists("exit.json") or os.path.exists("exit.acked"):
        raise Unfit("the run is over")
    record: dict[str, Any] = parse(read("shim.json"))
    record |= {"shim_pid": os.getpid(), "shim_start": start_time(os.getpid()), "code": code}
    shim = Shim(oci, record, fds)
    shim.take_over(True)
    for ident, streams in execs.items():
        shim.take_over_exec(ident, streams)
    write_record("shim.json", record)
    return shim


def _locked(lock: int) -> bool:
    try:
        flock(lock, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True

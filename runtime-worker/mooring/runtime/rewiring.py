"""Connecting a run that goes on to one more network, and disconnecting it; each can be repeated."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from typing import Protocol

from mooring.kit import endpoints, faults, log
from mooring.kit.errors import Conflict, NotFound
from mooring.kit.models.host import HostStart
from mooring.kit.models.network import (
    EndpointSettings,
    HostConnect,
    HostDisconnect,
    HostRename,
    HostWired,
    NetworkState,
)

from . import files
from .bundle import replace
from .layout import Layout
from .locks import KeyedLocks
from .runs import NETWORK, Run, Runs, Stage, read_state

logger = logging.getLogger(__name__)

_DONE = "rewired"
"""In a run's directory: the commands that were carried out, a line each. One that comes once more
may come after the next, which undid it: it was sent in the place of a replica that died."""


class Wires(Protocol):
    """What is needed of sandbox.HostNetworks."""

    async def connect(
        self, request: HostConnect, state: NetworkState, namespace: str
    ) -> NetworkState: ...
    async def disconnect(
        self, request: HostDisconnect, state: NetworkState, namespace: str
    ) -> NetworkState: ...
    def disconnected(self, holder: str, network: str) -> None: ...
    async def renamed(self, holder: str, state: NetworkState) -> None: ...


class Rewiring:
    """The worker's commands about the networks of containers that run."""

    def __init__(self, layout: Layout, runs: Runs, networks: Wires, locks: KeyedLocks) -> None:
        self._layout = layout
        self._runs = runs
        self._networks = networks
        self._locks = locks

    async def connect(self, request: HostConnect) -> HostWired:
        """One more network; an endpoint that is there already is answered again."""
        with log.bind(container=request.id[:12]):
            async with self._locks.hold(request.id):
                run = self._live(request.id, request.run)
                state = read_state(run.directory)
                if _was_done(run, request.command):
                    return HostWired(network=state)
                if request.network not in state.endpoints:
                    namespace = f"/proc/{run.init_pid}/ns/net"
                    state = await self._networks.connect(request, state, namespace)
                    faults.point("runtime.connect.plugged")
                    replace(f"{run.directory}/{NETWORK}", state.pack())
                self._note_hosts(run, state, request.network)
                if state.dns:
                    _edit(f"{run.directory}/resolv.conf", files.resolv_internal)
                self._note_command(request.id, request.network, request.settings)
                _note_done(run, request.command)
                faults.point("runtime.connect.recorded")
                return HostWired(network=state)

    async def disconnect(self, request: HostDisconnect) -> HostWired:
        """One network less; one that is not there is no error."""
        with log.bind(container=request.id[:12]):
            async with self._locks.hold(request.id):
                run = self._live(request.id, request.run)
                state = read_state(run.directory)
                if _was_done(run, request.command):
                    return HostWired(network=state)
                point = state.endpoints.get(request.network)
                if point is not None:
                    namespace = f"/proc/{run.init_pid}/ns/net"
                    state = await self._networks.disconnect(request, state, namespace)
                    faults.point("runtime.disconnect.unplugged")
                    gone = (point.ip_address, point.global_ipv6_address)
                    _edit_hosts(run.directory, lambda text: files.hosts_without(text, gone))
                    replace(f"{run.directory}/{NETWORK}", state.pack())
                # Last: an address is free only when nothing says any more that it is taken.
                self._networks.disconnected(f"{request.id}.{request.run}", request.network)
                self._note_command(request.id, request.network, None)
                _note_done(run, request.command)
                faults.point("runtime.disconnect.recorded")
                return HostWired(network=state)

    async def rename(self, request: HostRename) -> HostWired:
        """Another name on all networks."""
        async with self._locks.hold(request.id):
            run = self._live(request.id, request.run)
            state = read_state(run.directory)
            before, state = state, endpoints.known_as(state, request.name)
            if state != before:
                replace(f"{run.directory}/{NETWORK}", state.pack())
            await self._networks.renamed(f"{request.id}.{request.run}", state)
            return HostWired(network=state)

    def _live(self, id_: str, run: int) -> Run:
        found = self._runs.find(id_, run)
        if found is None:
            raise NotFound(f"No such container: {id_}")
        if found.stage is not Stage.LIVE:
            raise Conflict(f"container {id_} is not running")
        return found

    def _note_hosts(self, run: Run, state: NetworkState, network: str) -> None:
        point = state.endpoints[network]
        mine = [text for text in (point.ip_address, point.global_ipv6_address) if text]
        with open(f"{run.directory}/hostname") as file:
            hostname = file.read().strip()
        _edit_hosts(
            run.directory,
            lambda text: files.hosts_with(files.hosts_without(text, mine), mine, hostname),
        )

    def _note_command(self, id_: str, network: str, settings: EndpointSettings | None) -> None:
        """A restart by policy comes back with the networks that the container has now."""
        path = f"{self._layout.container(id_)}/start.msgpack"
        with contextlib.suppress(FileNotFoundError):
            with open(path, "rb") as file:
                command = HostStart.unpack(file.read())
            networking = dict(command.record.networking)
            if settings is None:
                networking.pop(network, None)
            else:
                networking[network] = settings
            command.record.networking = networking
            command.record.disconnected = not networking
            replace(path, command.pack())


def _was_done(run: Run, command: str) -> bool:
    with contextlib.suppress(FileNotFoundError), open(f"{run.directory}/{_DONE}") as file:
        return bool(command) and f"{command}\n" in file
    return False


def _note_done(run: Run, command: str) -> None:
    with open(f"{run.directory}/{_DONE}", "a") as file:
        file.write(f"{command}\n")


def _edit_hosts(directory: str, edit: Callable[[str], str]) -> None:
    _edit(f"{directory}/hosts", edit)


def _edit(path: str, edit: Callable[[str], str]) -> None:
    """Change a file in place: it is mounted in the container, a new one would not be."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        before = os.read(descriptor, 1 << 20)
        after = edit(before.decode(errors="surrogateescape")).encode(errors="surrogateescape")
        if after != before:
            os.pwrite(descriptor, after, 0)
            os.ftruncate(descriptor, len(after))
    finally:
        os.close(descriptor)

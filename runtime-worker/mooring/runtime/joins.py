"""Which namespaces a run has to itself, and which it shares with the host or another container."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from mooring.kit import endpoints
from mooring.kit.errors import Conflict, InvalidParameter, NotFound
from mooring.kit.models.container import ContainerConfig, ContainerRecord
from mooring.kit.options import container_of

from . import linkenv
from .layout import Layout
from .runs import Run, Runs, read_state
from .spec import OWN


@dataclass(frozen=True, slots=True)
class Link:
    """A container that a legacy link names (`--link`): its address, and all its names here."""

    address: str
    names: str
    variables: Mapping[str, str]
    """What is told of it in the environment."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Paths of namespaces as spec.Surroundings has them; network_of is whose network it shares."""

    pid: str | None
    ipc: str | None
    uts: str | None
    shm: str
    network_of: Run | None
    links: tuple[Link, ...] = ()


class Joins:
    """Resolves `container:<id>` and `host` modes against the runs of this host."""

    def __init__(self, layout: Layout, runs: Runs) -> None:
        self._layout = layout
        self._runs = runs

    def resolve(
        self,
        record: ContainerRecord,
        peers: Mapping[str, str],
        linked: Mapping[str, ContainerConfig],
    ) -> Joined:
        """What a record's modes mean now; Conflict for a container that does not run.

        peers: the full id of each container that a mode or link names; linked: what those of
        links are.
        """
        host = record.host_config
        pid: str | None = None if host.pid_mode == "host" else OWN
        if name := container_of(host.pid_mode):
            pid = f"/proc/{self._live(name, peers, 'PID').init_pid}/ns/pid"
        uts = None if host.uts_mode == "host" else OWN
        ipc, shm = self._ipc(record, peers)
        network = container_of(host.network_mode)
        return Joined(
            pid=pid,
            ipc=ipc,
            uts=uts,
            shm=shm,
            network_of=self._live(network, peers, "network") if network else None,
            links=self._links(record, peers, linked),
        )

    def _links(
        self,
        record: ContainerRecord,
        peers: Mapping[str, str],
        linked: Mapping[str, ContainerConfig],
    ) -> tuple[Link, ...]:
        if endpoints.mode_network(record.host_config.network_mode) != "bridge":
            return ()
        found = []
        for text in record.host_config.links or ():
            name, alias = endpoints.parse_link(text)
            run = self._runs.live(peers.get(name) or self._by_prefix(name))
            point = read_state(run.directory).endpoints.get("bridge") if run else None
            if run is None or point is None:
                raise Conflict(
                    f"Cannot link to a non running container: /{name} AS /{record.name}/{alias}"
                )
            names = " ".join(dict.fromkeys([alias, run.id[:12], name]))
            config = linked.get(name) or ContainerConfig()
            told = linkenv.variables(record.name, alias, point.ip_address, config)
            found.append(Link(point.ip_address, names, told))
        return tuple(found)

    def shared_shm(self, id_: str) -> str:
        """Where the /dev/shm of a container with shareable IPC is mounted on the host."""
        return f"{self._layout.shm}/{id_}"

    def _ipc(self, record: ContainerRecord, peers: Mapping[str, str]) -> tuple[str | None, str]:
        mode = record.host_config.ipc_mode
        if mode == "host":
            return None, "/dev/shm"
        if mode == "shareable":
            return OWN, self.shared_shm(record.id)
        name = container_of(mode)
        if not name:
            return OWN, ""
        other = self._live(name, peers, "IPC")
        shm = self.shared_shm(other.id)
        if not os.path.isdir(shm):
            raise InvalidParameter(
                f"cannot join IPC of container {name}: non-shareable IPC"
                " (hint: use IpcMode:shareable for the donor container)"
            )
        return f"/proc/{other.init_pid}/ns/ipc", shm

    def _live(self, name: str, peers: Mapping[str, str], what: str) -> Run:
        id_ = peers.get(name) or self._by_prefix(name)
        run = self._runs.live(id_)
        if run is None:
            if os.path.isdir(self._layout.container(id_)):
                raise Conflict(f"cannot join {what} of a non running container: {name}")
            raise NotFound(f"No such container: {name}")
        return run

    def _by_prefix(self, name: str) -> str:
        matching = self._runs.matching(name)
        if len(matching) > 1:
            raise InvalidParameter(f"multiple IDs found with provided prefix: {name}")
        return matching[0] if matching else name

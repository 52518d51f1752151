"""The worker's side of names: a file for each sandbox, and the server told of it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
from collections.abc import Callable

from mooring.kit import faults
from mooring.kit.errors import EngineError
from mooring.kit.models.network import NetworkState
from mooring.runtime.network.attendant import Attendant
from mooring.runtime.network.strays import Strays

from .names import Sandbox, places

logger = logging.getLogger(__name__)


class Joining:
    """Joins and leaves of the runs of this host; a holder is `<container id>.<run>`.

    namespace: the path of that of a run which goes on, empty if it does not.
    """

    def __init__(
        self, directory: str, attendant: Attendant, namespace: Callable[[str], str]
    ) -> None:
        self._directory = directory
        self._attendant = attendant
        self._namespace = namespace
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._kept: set[str] = set()
        """Runs that are over and did not leave: their files are still there."""
        self._strays = Strays(attendant, "names", self._let_strays_go)

    async def join(
        self, holder: str, state: NetworkState, servers: list[str], namespace: str
    ) -> None:
        """Have a run answered, and found by others; or what is known of it changed."""
        while (leaving := self._leaving.get(holder)) is not None:
            # A start that was undone, and is made again: what leaves has the same name.
            await asyncio.wait({leaving})
        self._kept.discard(holder)
        outside = bool(state.gateway4 or state.gateway6)
        sandbox = Sandbox(holder, places(state.endpoints), tuple(servers), outside)
        path = f"{self._directory}/{holder}"
        with open(f"{path}.new", "wb") as file:
            file.write(sandbox.dumps())
        os.rename(f"{path}.new", path)
        faults.point("runtime.names.written")
        await self._ask(holder, namespace)
        faults.point("runtime.names.joined")

    async def change(self, holder: str, state: NetworkState, namespace: str = "") -> None:
        """A run is on other networks, or has other names: it may join now, or have joined."""
        servers = self._servers(holder)
        if servers is not None or state.dns:
            if servers is None:
                servers = self._servers_before(holder)
            await self.join(holder, state, servers, namespace or self._namespace(holder))

    async def recover(self) -> None:
        """At start-up: the server may have lost its sockets together with the supervisor."""
        for holder in os.listdir(self._directory):
            if holder in self._leaving or not (namespace := self._namespace(holder)):
                continue
            try:
                await self._ask(holder, namespace)
            except (EngineError, OSError) as exc:
                logger.warning("names of %s are not served: %s", holder, exc)

    async def _ask(self, holder: str, namespace: str) -> None:
        descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            await self._attendant.ask({"op": "join", "holder": holder}, [descriptor])
        finally:
            os.close(descriptor)

    def _servers(self, holder: str) -> list[str] | None:
        """The servers of a run that has joined; None if it has not."""
        try:
            with open(f"{self._directory}/{holder}", "rb") as file:
                return list(Sandbox.loads(holder, file.read()).servers)
        except (FileNotFoundError, ValueError):
            return None

    def _servers_before(self, holder: str) -> list[str]:
        """Whom a run on the default bridge has been asking by itself."""
        with open(f"{os.path.dirname(self._directory)}/{holder}/resolv.conf") as file:
            return servers_of(file.read(), [])

    def leave(self, holder: str) -> None:
        """The run is over. It may never have joined."""
        if holder not in self._leaving and os.path.exists(f"{self._directory}/{holder}"):
            self._have_left(holder)

    def _let_strays_go(self, held: set[str]) -> None:
        """Whoever is answered has a file, written before the answers began."""
        written = set(os.listdir(self._directory))
        for holder in ((held - written) | self._kept) - self._leaving.keys():
            logger.info("names of %s had been left behind", holder)
            self._have_left(holder)

    def _have_left(self, holder: str) -> None:
        path = f"{self._directory}/{holder}"

        async def leave() -> None:
            try:
                await self._attendant.ask({"op": "leave", "holder": holder})
            except EngineError as exc:
                logger.warning("the names of %s are kept: %s", holder, exc)
                self._kept.add(holder)
                self._strays.later()
                return
            finally:
                del self._leaving[holder]
            self._kept.discard(holder)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

        self._leaving[holder] = asyncio.create_task(leave(), name=f"leave {holder[:12]}")

    def sweep(self, live: set[str]) -> None:
        """Let go of every run that is over."""
        for holder in os.listdir(self._directory):
            if holder.endswith(".new"):
                os.unlink(f"{self._directory}/{holder}")
            elif holder not in live:
                self.leave(holder)

    async def close(self) -> None:
        """Wait for what is being let go."""
        self._strays.close()
        if self._leaving:
            await asyncio.wait(self._leaving.values(), timeout=1.0)


def servers_of(host_text: str, chosen: list[str]) -> list[str]:
    """Whom to ask: what the user chose, or the host's servers.

    Those of the host's own loopback are asked from the host, `host:` in front; all others from
    the container's network, so that they are reached, or not, as everything else.
    """
    if chosen:
        return chosen
    found = []
    for line in host_text.splitlines():
        words = line.split("#", 1)[0].split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        with contextlib.suppress(ValueError):
            local = ipaddress.ip_address(words[1].partition("%")[0]).is_loopback
            found.append(f"host:{words[1]}" if local else words[1])
    return found

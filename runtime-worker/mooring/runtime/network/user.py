"""The networks that users have made, as far as this host is concerned.

`<directory>/networks/<id>.msgpack` holds the record of each, `<directory>/<id>/leases` its leases.
A network is there from `ensure` to `remove`; what was there before a reboot, or before somebody
took its bridge away, is made again by the next start that needs it. For two minutes after it was
removed there is `networks/<id>.removed`: an `ensure` of it that arrives then was sent before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mooring.kit import faults
from mooring.kit.errors import EngineError, Forbidden, NotFound, NotSupported
from mooring.kit.models.network import NetworkRecord

from . import firewall, links, nft
from .addresses import ranges
from .lan import Lan, masquerades

logger = logging.getLogger(__name__)

REMEMBER_REMOVED = 120.0
"""Seconds: longer than any command is sent again."""
_REMOVED = ".removed"


class UserNetworks:
    """Records, links and leases of the networks of users."""

    def __init__(self, directory: Path, instance: str, ports: Callable[[str], list[str]]) -> None:
        self._directory = directory
        self._records = directory / "networks"
        self._instance = instance
        self._ports = ports
        """The host's ends of the veths that are on a network now, by the network's id."""
        self._lans: dict[str, Lan] = {}
        self._by_name: dict[str, str] = {}
        self._busy: dict[str, asyncio.Lock] = {}

    def load(self) -> None:
        """Read what is known of this host's networks."""
        self._records.mkdir(parents=True, exist_ok=True)
        for entry in os.scandir(self._records):
            if entry.name.endswith(_REMOVED):
                continue
            if not entry.name.endswith(".msgpack"):
                os.unlink(entry.path)
                continue
            with open(entry.path, "rb") as file:
                self._add(NetworkRecord.unpack(file.read()))
        for name in os.listdir(self._directory):
            # Leases of a network whose removal was broken off.
            if len(name) == 64 and name not in self._lans:
                shutil.rmtree(self._directory / name, ignore_errors=True)

    def __iter__(self) -> Iterator[Lan]:
        return iter(list(self._lans.values()))

    def find(self, name: str) -> Lan:
        """A network by its name or id; NotFound."""
        lan = self._lans.get(self._by_name.get(name, name))
        if lan is None:
            raise NotFound(f"network {name} not found")
        return lan

    async def ensure(self, record: NetworkRecord) -> None:
        """Make a network, or see that it is there; EngineError with the reason if it can't be.

        NotFound if it was removed meanwhile: two have asked for it then, one of them in the place
        of a replica that died, and this is what was sent again to a worker that knows nothing.
        """
        async with self._lock(record.id):
            known = self._lans.get(record.id)
            if known is None:
                if os.path.exists(self._records / f"{record.id}{_REMOVED}"):
                    raise NotFound(f"network {record.name} not found")
                self._store(record)
                faults.point("runtime.network.stored")
                self._add(record)
            try:
                await self._ensure(record)
            except EngineError:
                if known is None:
                    await self._forget(record)
                raise
            faults.point("runtime.network.made")

    async def remove(self, record: NetworkRecord) -> None:
        """Take a network away; Forbidden while a run has an address on it."""
        async with self._lock(record.id):
            lan = self._lans.get(record.id)
            if lan is not None and (holders := lan.leases.holders()):
                raise Forbidden(
                    f"error while removing network: network {record.name} id {record.id} has "
                    f"active endpoints ({', '.join(sorted(holder[:12] for holder in holders))})"
                )
            # At once, before anything waits: a start that comes now does not find it any more.
            self._drop(record)
            self._mark_removed(record)
            await self._forget(record)
        self._busy.pop(record.id, None)

    def _mark_removed(self, record: NetworkRecord) -> None:
        """From now on to make it comes too late; what came too late long ago is forgotten."""
        limit = time.time() - REMEMBER_REMOVED
        for path in self._records.glob(f"*{_REMOVED}"):
            if path.stat().st_mtime < limit:
                path.unlink()
        (self._records / f"{record.id}{_REMOVED}").touch(0o600)

    async def ready(self, lan: Lan) -> int:
        """The index of a network's bridge or parent; made again if somebody took it away."""
        index = links.index_of(lan.record.interface)
        if index:
            return index
        async with self._lock(lan.record.id):
            if self._lans.get(lan.record.id) is not lan:
                raise NotFound(f"network {lan.record.name} not found")
            await self._ensure(lan.record)
        index = links.index_of(lan.record.interface)
        if not index:
            raise EngineError(f"the link {lan.record.interface} of a network does not stay there")
        return index

    def announce(self) -> None:
        """Tell the packet filter of every network again: its table was made anew."""
        for lan in self:
            if links.index_of(lan.record.interface):
                self._filter(lan.record, add=True)

    async def recover(self) -> None:
        """Make every network again that is not there, and take away links that are nobody's."""
        for lan in self:
            try:
                await self.ready(lan)
            except EngineError as exc:
                logger.warning("network %s is not available: %s", lan.record.name, exc)
        strays = await asyncio.to_thread(links.marked, self._instance) - set(self._lans)
        if strays:
            logger.info("the links of networks that are gone are taken away: %s", strays)
            await asyncio.to_thread(links.remove_marked, self._instance, strays)

    async def withdraw(self) -> None:
        """Take every link out of the kernel (nothing runs any more); the next start has them."""
        await asyncio.to_thread(links.remove_marked, self._instance)

    async def _ensure(self, record: NetworkRecord) -> None:
        missing = await asyncio.to_thread(links.ensure, record, self._instance)
        if record.driver != "bridge":
            return
        self._filter(record, add=True)
        if missing and (ports := self._ports(record.id)):
            count = await asyncio.to_thread(links.adopt, record.interface, ports)
            logger.warning(
                "the bridge %s of network %s was gone: made again, %d containers connected to it",
                record.interface, record.name, count,
            )  # fmt: skip

    async def _forget(self, record: NetworkRecord) -> None:
        """The record last: as long as that is there, the rest is found again."""
        if record.driver == "bridge":
            self._filter(record, add=False)
        await asyncio.to_thread(links.remove, record, self._instance)
        faults.point("runtime.network.unlinked")
        self._drop(record)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._records / f"{record.id}.msgpack")
        shutil.rmtree(self._directory / record.id, ignore_errors=True)

    def _filter(self, record: NetworkRecord, *, add: bool) -> None:
        elements = firewall.network_elements(
            record.interface,
            [place.subnet for place in ranges(record.ipam)],
            masquerade=masquerades(record),
            internal=record.internal,
        )
        with contextlib.closing(nft.Nft(self._instance)) as table:
            if add:
                try:
                    table.change(add=elements)
                except OSError as exc:
                    raise EngineError(
                        f"cannot add network {record.name} to the packet filter: {exc}"
                    ) from exc
                return
            for name in {element.set for element in elements}:
                # Set by set: a table that somebody has flushed lacks some or all of them. The two
                # ends of a range go together.
                with contextlib.suppress(OSError):
                    table.change(delete=[each for each in elements if each.set == name])

    def _leases(self, record: NetworkRecord) -> Path:
        return self._directory / record.id / "leases"

    def _store(self, record: NetworkRecord) -> None:
        if record.driver not in ("bridge", "macvlan", "ipvlan"):
            raise NotSupported(f"network driver {record.driver} is not supported")
        path = self._records / f"{record.id}.msgpack"
        new = self._records / f"{record.id}.new"
        new.write_bytes(record.model_copy(update={"outbox": []}).pack())
        os.rename(new, path)

    def _add(self, record: NetworkRecord) -> None:
        self._lans[record.id] = Lan.open(record, self._leases(record))
        self._by_name[record.name] = record.id

    def _drop(self, record: NetworkRecord) -> None:
        self._lans.pop(record.id, None)
        if self._by_name.get(record.name) == record.id:
            del self._by_name[record.name]

    def _lock(self, network_id: str) -> asyncio.Lock:
        return self._busy.setdefault(network_id, asyncio.Lock())

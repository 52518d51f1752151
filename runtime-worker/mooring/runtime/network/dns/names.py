"""Pure: who is called what on which network, and what a container finds by asking."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from . import wire


@dataclass(frozen=True, slots=True)
class Place:
    """A container on one network."""

    network: str
    """Its id."""
    network_name: str
    addresses: tuple[str, ...]
    names: tuple[str, ...]
    """The first is the one that a reverse look-up gives."""
    links: dict[str, str]
    """Its private names of others: alias to a name or id."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One run of a container: where it is, and whom its other questions go to."""

    holder: str
    places: tuple[Place, ...] = ()
    servers: tuple[str, ...] = ()
    outside: bool = True
    """Whether other questions are passed on at all."""

    def dumps(self) -> bytes:
        places = [
            [place.network, place.network_name, place.addresses, place.names, place.links]
            for place in self.places
        ]
        return json.dumps([places, self.servers, self.outside]).encode()

    @classmethod
    def loads(cls, holder: str, data: bytes) -> Sandbox:
        """ValueError for what is not whole."""
        places, servers, outside = json.loads(data)
        read = tuple(Place(n, t, tuple(a), tuple(m), links) for n, t, a, m, links in places)
        return cls(holder, read, tuple(servers), outside)


@dataclass(slots=True)
class _Network:
    by_name: dict[str, list[Place]] = field(default_factory=dict)
    by_address: dict[str, Place] = field(default_factory=dict)


class Names:
    """The names of this host's containers."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, Sandbox] = {}
        self._networks: dict[str, _Network] = {}
        self._turn = 0

    def put(self, sandbox: Sandbox) -> None:
        """Know a sandbox, instead of what was known of it."""
        self.drop(sandbox.holder)
        self.sandboxes[sandbox.holder] = sandbox
        for place in sandbox.places:
            network = self._networks.setdefault(place.network, _Network())
            for name in {name.lower() for name in place.names}:
                network.by_name.setdefault(name, []).append(place)
            for address in place.addresses:
                network.by_address[address] = place

    def drop(self, holder: str) -> None:
        """Forget a sandbox; it may not be known."""
        sandbox = self.sandboxes.pop(holder, None)
        for place in sandbox.places if sandbox else ():
            network = self._networks[place.network]
            for name in {name.lower() for name in place.names}:
                network.by_name[name].remove(place)
                if not network.by_name[name]:
                    del network.by_name[name]
            for address in place.addresses:
                if network.by_address.get(address) is place:
                    del network.by_address[address]
            if not network.by_name and not network.by_address:
                del self._networks[place.network]

    def answer(self, sandbox: Sandbox, query: wire.Query, limit: int = 65535) -> bytes | None:
        """What a container is told; None for a name that is none of ours."""
        if query.kind == wire.PTR and (address := wire.address_of(query.name)):
            for place in sandbox.places:
                found = self._networks[place.network].by_address.get(address)
                if found is not None and found.names:
                    name = wire.encode_name(f"{found.names[0]}.{found.network_name}")
                    return wire.answer(query, [name], wire.PTR, limit)
            return None
        places = list(self._find(sandbox, query.name))
        if not places:
            return None
        if query.kind not in (wire.A, wire.AAAA):
            return wire.answer(query, [], query.kind)
        version = 4 if query.kind == wire.A else 6
        addresses = dict.fromkeys(
            packed for place in places for packed in _packed(place.addresses, version)
        )
        # Another one is first each time: that is how several share the load.
        self._turn += 1
        at = self._turn % len(addresses) if addresses else 0
        turned = [*addresses][at:] + [*addresses][:at]
        return wire.answer(query, turned, query.kind, limit)

    def _find(self, sandbox: Sandbox, name: str) -> Iterable[Place]:
        for place in sandbox.places:
            network = self._networks[place.network]
            links = {alias.lower(): target.lower() for alias, target in place.links.items()}
            suffix = f".{place.network_name.lower()}"
            wanted = [name]
            if name.endswith(suffix):
                wanted.append(name.removesuffix(suffix))
            for text in wanted:
                target = links.get(text, text)
                # Whoever is meant by a full id is known by the short one.
                found = network.by_name.get(target) or network.by_name.get(target[:12], [])
                if text == target and target not in network.by_name:
                    continue
                yield from found


def _packed(addresses: Iterable[str], version: int) -> list[bytes]:
    length = 4 if version == 4 else 16
    found = [ipaddress.ip_address(address).packed for address in addresses]
    return [packed for packed in found if len(packed) == length]


def places(endpoints: dict[str, Any]) -> tuple[Place, ...]:
    """Of NetworkState.endpoints: the networks on which names are known."""
    return tuple(
        Place(
            point.network_id,
            name,
            tuple(filter(None, (point.ip_address, point.global_ipv6_address))),
            tuple(point.dns_names),
            dict(point.links),
        )
        for name, point in endpoints.items()
        if point.dns_names
    )

"""One network of this host: its record, and who has which of its addresses."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from mooring.kit.errors import Conflict, EngineError, Forbidden, InvalidParameter
from mooring.kit.models.network import EndpointSettings, NetworkRecord

from . import addresses, plan
from .leases import Address, Leases


@dataclass(slots=True)
class Lan:
    """Addresses are claimed here, and given back; nothing of it waits."""

    record: NetworkRecord
    leases: Leases
    ranges: list[addresses.Range]
    macs: dict[str, str] = field(default_factory=dict)
    """Holders by the MAC address they asked for."""
    last: dict[int, int] = field(default_factory=dict)
    """The number of the last address given out, by family."""

    pending: set[Address] = field(default_factory=set)
    """Addresses that are no leases and yet not free: of prepared sandboxes."""

    @classmethod
    def open(cls, record: NetworkRecord, directory: Path) -> Lan:
        """A network whose leases are files in a directory."""
        return cls(record, Leases(directory), addresses.ranges(record.ipam))

    def claim(self, holder: str, settings: EndpointSettings) -> tuple[str, str]:
        """An IPv4 and an IPv6 address for a holder, as text; empty for a family it has not.

        What the holder has already is answered again. All or nothing.
        """
        have: dict[int, Address] = {address.version: address for address in self.leases.of(holder)}
        wanted = settings.ipam_config
        asked = {
            4: wanted.ipv4_address if wanted else "",
            6: wanted.ipv6_address if wanted else "",
        }
        found = {4: "", 6: ""}
        claimed: list[Address] = []
        try:
            for family, enabled in ((4, self.record.enable_ipv4), (6, self.record.enable_ipv6)):
                if not enabled:
                    continue
                address = have.get(family)
                if address is None:
                    address = self._choose(family, asked[family])
                    self._claim(address, holder)
                    claimed.append(address)
                found[family] = str(address)
        except BaseException:
            for address in claimed:
                self.leases.release(address)
            raise
        return found[4], found[6]

    def claim_mac(self, holder: str, mac: str) -> None:
        """Note a MAC address that was asked for; Conflict if another endpoint has it."""
        other = self.macs.setdefault(mac.lower(), holder)
        if other != holder:
            raise Conflict(
                f"MAC address {mac} is already in use on network {self.record.name} "
                f"by container {other[:12]}"
            )

    def release(self, holder: str) -> bool:
        """Free what a holder has; whether it had anything."""
        mine = self.leases.of(holder)
        for address in mine:
            self.leases.release(address)
        for mac in [mac for mac, name in self.macs.items() if name == holder]:
            del self.macs[mac]
        return bool(mine)

    def prefix(self, address: str) -> int:
        """The length of the prefix of an address's subnet."""
        return self._range(ipaddress.ip_address(address)).subnet.prefixlen

    def gateway(self, address: str) -> str:
        """The gateway of an address's subnet; empty if there is none or no way out."""
        found = self._range(ipaddress.ip_address(address)).gateway
        if found is None or self.record.internal:
            return ""
        if self.record.driver == "ipvlan" and self.record.options.get("ipvlan_mode") in (
            "l3",
            "l3s",
        ):
            return "0.0.0.0" if found.version == 4 else "::"
        return str(found)

    def _choose(self, family: int, asked: str) -> Address:
        if asked:
            address = ipaddress.ip_address(asked)
            place = self._range(address)
            if address in place.reserved or self.leases.holder(address):
                raise Forbidden("Address already in use")
            return address
        taken = self.leases.taken() | self.pending
        for place in self.ranges:
            if place.subnet.version != family:
                continue
            found = place.next(taken, self.last.get(family, 0))
            if found is not None:
                self.last[family] = int(found)
                return found
        raise EngineError(
            f"no available IPv{family} addresses on this network's address pools: "
            f"{self.record.name} ({self.record.id})"
        )

    def _claim(self, address: Address, holder: str) -> None:
        try:
            self.leases.claim(address, holder)
        except FileExistsError as exc:
            raise Forbidden("Address already in use") from exc

    def _range(self, address: Address) -> addresses.Range:
        for place in self.ranges:
            if address in place.subnet:
                return place
        raise InvalidParameter(
            f"Invalid address {address}: It does not belong to any of this network's subnets"
        )


def masquerades(record: NetworkRecord) -> bool:
    """Whether packets that leave a bridge network get the host's address."""
    return plan.truth(record.options, plan.MASQUERADE, True) and not record.internal

"""Address leases of this host: one file to an address, made by the claim itself (O_EXCL)."""

from __future__ import annotations

import os
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

Address = IPv4Address | IPv6Address


class Leases:
    """Who holds which address: `<directory>/<address>` contains `<container id>.<run>`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._holders: dict[Address, str] = {}
        self._of: dict[str, list[Address]] = {}
        for entry in os.scandir(directory):
            holder = Path(entry.path).read_text()
            self._note(ip_address(entry.name), holder)

    def taken(self) -> set[Address]:
        """Every address that is leased now."""
        return set(self._holders)

    def holder(self, address: Address) -> str:
        """Who has an address; empty for nobody."""
        return self._holders.get(address, "")

    def claim(self, address: Address, holder: str) -> None:
        """Record that `holder` has the address; FileExistsError if another one has."""
        path = self._directory / str(address)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, holder.encode())
        finally:
            os.close(descriptor)
        self._note(address, holder)

    def of(self, holder: str) -> list[Address]:
        """The addresses that `holder` has."""
        return list(self._of.get(holder, ()))

    def release(self, address: Address) -> None:
        """The address is free again; it may have been before."""
        holder = self._holders.pop(address, None)
        if holder is not None and (mine := self._of.get(holder)):
            mine.remove(address)
            if not mine:
                del self._of[holder]
        try:
            os.unlink(self._directory / str(address))
        except FileNotFoundError:
            pass

    def holders(self) -> set[str]:
        """Everyone who has an address."""
        return set(self._of)

    def _note(self, address: Address, holder: str) -> None:
        self._holders[address] = holder
        self._of.setdefault(holder, []).append(address)

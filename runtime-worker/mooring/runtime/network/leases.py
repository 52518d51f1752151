"""Address leases of this host: one file to an address, made by the claim itself (O_EXCL)."""

from __future__ import annotations

import os
from ipaddress import IPv4Address
from pathlib import Path


class Leases:
    """Who holds which address: `<directory>/<address>` contains `<container id>.<run>`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._holders: dict[IPv4Address, str] = {}
        for entry in os.scandir(directory):
            self._holders[IPv4Address(entry.name)] = Path(entry.path).read_text()

    def taken(self) -> set[IPv4Address]:
        """Every address that is leased now."""
        return set(self._holders)

    def claim(self, address: IPv4Address, holder: str) -> None:
        """Record that `holder` has the address; FileExistsError if another one has."""
        path = self._directory / str(address)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, holder.encode())
        finally:
            os.close(descriptor)
        self._holders[address] = holder

    def of(self, holder: str) -> list[IPv4Address]:
        """The addresses that `holder` has."""
        return [address for address, name in self._holders.items() if name == holder]

    def release(self, address: IPv4Address) -> None:
        """The address is free again; it may have been before."""
        self._holders.pop(address, None)
        try:
            os.unlink(self._directory / str(address))
        except FileNotFoundError:
            pass

    def holders(self) -> set[str]:
        """Everyone who has an address."""
        return set(self._holders.values())

"""What transfers under way need of the store: it stays until they have ended, whoever removes it.

A thing that would have gone is owed: it is noted among what the transfer itself has added (its
Pending), and goes with that if the transfer fails, even after a kill.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .pending import Pending


class Leases:
    """Chain ids and digests of blobs, by the job's directory of the transfer that holds them."""

    def __init__(self) -> None:
        self._held: dict[Path, set[str]] = {}

    def take(self, holder: Path, digests: Iterable[str]) -> None:
        """Hold these as well."""
        self._held.setdefault(holder, set()).update(digests)

    def drop(self, holder: Path) -> None:
        """Hold nothing any more."""
        self._held.pop(holder, None)

    def all(self) -> set[str]:
        """Everything that somebody holds."""
        return set().union(*self._held.values())

    def holders(self, digest: str) -> list[Path]:
        """Who holds this."""
        return [holder for holder, held in self._held.items() if digest in held]

    def owe(self, kind: str, digest: str) -> None:
        """Have the holders take this out in the end, if nothing else needs it."""
        for holder in self.holders(digest):
            Pending(holder).note(kind, digest)

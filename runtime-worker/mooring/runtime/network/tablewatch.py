"""Whether the packet filter still has our table: somebody may flush the ruleset."""

from __future__ import annotations

from . import firewall, nft


class TableWatch:
    """Asks the kernel for one number (10 us); only when that has changed for the table itself."""

    def __init__(self, table: str) -> None:
        self._name = table
        self._table: nft.Nft | None = None
        self._seen = -1

    def is_whole(self, bridge: str) -> bool:
        """Whether all rules are there, and the bridge among the elements."""
        if self._table is None:
            self._table = nft.Nft(self._name)
        generation = self._table.generation()
        if generation == self._seen:
            return True
        try:
            whole = self._table.rules() == firewall.RULES and nft.interface(
                bridge
            ) in self._table.elements("bridges")
        except FileNotFoundError:
            whole = False
        if whole:
            self._seen = generation
        return whole

    def close(self) -> None:
        """Let go of the socket; it is opened again when asked."""
        if self._table is not None:
            self._table.close()
            self._table = None

"""One prune of a kind at a time, as in Docker."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mooring.kit.errors import Conflict


class Prunes:
    """Those of one kind, of this replica."""

    def __init__(self) -> None:
        self._going_on = False

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While a prune goes on; Conflict while another one does."""
        if self._going_on:
            raise Conflict("a prune operation is already running")
        self._going_on = True
        try:
            yield
        finally:
            self._going_on = False

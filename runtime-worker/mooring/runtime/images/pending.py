"""What a job has added to the store so far, so that it can be taken out again after a failure.

The file is written before the thing itself appears: whoever finds the job's directory after a kill
knows all that may be there.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from .store import ImageStore

_FILE = "pending"


class Pending:
    """The list in one job's directory."""

    def __init__(self, job: Path) -> None:
        self._path = job / _FILE

    def layer(self, chain_id: str) -> None:
        """A layer is about to be added."""
        self._note(f"layer {chain_id}")

    def blob(self, digest: str, store: ImageStore) -> None:
        """A blob is about to be added, if it is not there yet."""
        if not store.blob(digest).exists():
            self._note(f"blob {digest}")

    def undo(self, store: ImageStore, keep: Collection[str] = ()) -> None:
        """Take everything out again but the chain ids and digests in keep."""
        try:
            lines = self._path.read_text().splitlines()
        except FileNotFoundError:
            return
        for line in reversed(lines):
            kind, _, digest = line.partition(" ")
            # The last line may have been cut short by a kill; then nothing followed it.
            with suppress(ValueError):
                if digest in keep:
                    continue
                if kind == "layer":
                    store.remove_layer(digest)
                elif kind == "blob" and all(i.blob != digest for i in store.all_layers()):
                    store.blob(digest).unlink(missing_ok=True)

    def _note(self, line: str) -> None:
        with open(self._path, "a", encoding="ascii") as file:
            file.write(line + "\n")

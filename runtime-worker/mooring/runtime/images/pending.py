"""What a job has added to the store so far, so that it can be taken out again after a failure.

The file is written before the thing itself appears: whoever finds the job's directory after a kill
knows all that may be there.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from .store import ImageStore

_FILE = "pending"
_DIGEST = len("sha256:") + 64


class Pending:
    """The list in one job's directory."""

    def __init__(self, job: Path) -> None:
        self._path = job / _FILE

    def layer(self, chain_id: str) -> None:
        """A layer is about to be added."""
        self.note("layer", chain_id)

    def blob(self, digest: str, store: ImageStore) -> None:
        """A blob is about to be added, if it is not there yet."""
        if not store.blob(digest).exists():
            self.note("blob", digest)

    def settled(self) -> None:
        """All of it belongs to records by now: there is nothing to undo any more."""
        self._path.unlink(missing_ok=True)

    def entries(self) -> list[tuple[str, str]]:
        """What was noted: (`layer` or `blob`, digest)."""
        try:
            lines = self._path.read_text().splitlines()
        except FileNotFoundError:
            return []
        # The last line may have been cut short by a kill; then nothing followed it.
        split = [line.partition(" ") for line in lines]
        return [(kind, digest) for kind, _, digest in split if len(digest) == _DIGEST]

    def undo(self, store: ImageStore, keep: Collection[str] = ()) -> None:
        """Take everything out again but the chain ids and digests in keep."""
        for kind, digest in reversed(self.entries()):
            if digest in keep:
                continue
            if kind == "layer":
                store.remove_layer(digest)
            elif kind == "blob" and all(i.blob != digest for i in store.all_layers()):
                store.blob(digest).unlink(missing_ok=True)

    def note(self, kind: str, digest: str) -> None:
        """See `layer` and `blob`, which say when."""
        with open(self._path, "a", encoding="ascii") as file:
            file.write(f"{kind} {digest}\n")

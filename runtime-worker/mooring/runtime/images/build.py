"""Making layers of blobs: several at once, verified, put in place from the bottom up."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .incoming import Blob, Incoming, Layer
from .inherit import inherit
from .pending import Pending
from .store import ImageStore, LayerInfo
from .unpack import BadArchive, Reason


@dataclass(frozen=True, slots=True)
class Plan:
    """A layer to be made. Without a diff_id (an import) whatever comes out is right."""

    number: int
    blob: Blob
    diff_id: str = ""
    chain_id: str = ""
    lowers: tuple[str, ...] = ()
    """Chain ids of the layers below, the uppermost first."""
    again: bool = False
    """The layer is there, and the new one takes its place."""


class Builder:
    """Builds layers in one job's directory and moves them into the store."""

    def __init__(
        self,
        store: ImageStore,
        job: Path,
        incoming: Incoming,
        *,
        trusted: bool = True,
        unpacked: Mapping[Path, Layer | BadArchive] | None = None,
    ) -> None:
        """trusted: the digests of blobs were computed as they arrived.

        unpacked: what became of files that were unpacked as they arrived.
        """
        self._store, self._incoming = store, incoming
        self._trusted = trusted
        self._pending = Pending(job)
        self._unpacked = dict(unpacked or {})

    def build(self, plans: Iterable[Plan]) -> list[LayerInfo]:
        """Make the layers, given from the bottom up; BadArchive. As many at once as CPUs."""
        waiting = deque(plans)
        running: deque[tuple[Plan, Layer | BadArchive | None]] = deque()
        built: list[LayerInfo] = []
        busy: set[Path] = set()
        while waiting or running:
            while (
                waiting
                and sum(layer is None for _, layer in running) < (os.cpu_count() or 1)
                and waiting[0].blob.path not in busy
            ):
                plan = waiting.popleft()
                # Taken once: a second layer of the same bytes needs files of its own.
                layer = self._unpacked.pop(plan.blob.path, None)
                if layer is None:
                    busy.add(plan.blob.path)
                    self._incoming.begin(plan.blob, trusted=self._trusted)
                running.append((plan, layer))
            plan, layer = running.popleft()
            if layer is None:
                layer = self._incoming.result(plan.blob.path)
                busy.discard(plan.blob.path)
            if isinstance(layer, BadArchive):
                raise layer
            built.append(self._finish(plan, layer))
        return built

    def add_blob(self, blob: Blob) -> None:
        """Keep a blob that is no layer: a config."""
        self._pending.blob(blob.digest, self._store)
        self._store.add_blob(blob.path, blob.digest)

    def _finish(self, plan: Plan, layer: Layer) -> LayerInfo:
        diff_id = layer.unpacked.diff_id
        if plan.diff_id and diff_id != plan.diff_id:
            raise BadArchive(
                f'invalid diffID for layer {plan.number}: expected "{plan.diff_id}", '
                f'got "{diff_id}"',
                Reason.DIFF_ID,
            )
        return commit_layer(
            self._store,
            self._pending,
            layer,
            chain_id=plan.chain_id or diff_id,
            lowers=plan.lowers,
            again=plan.again,
        )


def commit_layer(
    store: ImageStore,
    pending: Pending,
    layer: Layer,
    *,
    chain_id: str,
    lowers: Sequence[str] = (),
    again: bool = False,
    settled: bool = True,
) -> LayerInfo:
    """Move an unpacked layer into the store, above lowers (chain ids, the uppermost first).

    They are there already. A layer that is there as well stays, unless it is made again. settled:
    its blob is on disk then, so that the layer can be unpacked again whatever happens.
    """
    info = LayerInfo(
        chain_id=chain_id,
        diff_id=layer.unpacked.diff_id,
        blob=layer.blob.digest,
        compression=layer.compression.value,
        size=layer.unpacked.size,
        parent=lowers[0] if lowers else "",
    )
    if not again and store.has_layer(chain_id):
        return store.layer_info(chain_id)
    inherit(layer.built / "fs", layer.unpacked.implied, [store.layer(c) / "fs" for c in lowers])
    if again:
        store.exchange_layer(layer.built, info)
    else:
        pending.blob(layer.blob.digest, store)
        store.add_blob(layer.blob.path, layer.blob.digest, settled=settled)
        pending.layer(chain_id)
        store.add_layer(layer.built, info)
    return store.layer_info(chain_id)

"""Layers that may have lost data when the host went down are unpacked again from their blobs."""

from __future__ import annotations

import logging
from pathlib import Path

from .build import Builder, Plan
from .incoming import Blob, Incoming
from .store import ImageStore, LayerInfo
from .unpack import BadArchive, Limits

logger = logging.getLogger(__name__)


def repair(store: ImageStore, job: Path) -> list[str]:
    """Rebuild what is doubtful, from the bottom up; the chain ids of what could not be rebuilt."""
    lost = []
    # What was unpacked once is not refused now. Blobs may be damaged as well: nothing is trusted.
    builder = Builder(store, job, Incoming(job, Limits()), trusted=False)
    for info in sorted(
        map(store.layer_info, store.doubtful()), key=lambda i: len(_below(store, i))
    ):
        blob = store.blob(info.blob)
        try:
            plan = Plan(
                number=len(_below(store, info)),
                blob=Blob(blob, info.blob, blob.stat().st_size),
                diff_id=info.diff_id,
                chain_id=info.chain_id,
                lowers=tuple(_below(store, info)),
                again=True,
            )
            builder.build([plan])
        except (BadArchive, OSError) as exc:
            logger.error("layer %s cannot be repaired: %s", info.chain_id, exc)
            if isinstance(exc, BadArchive):
                # It was not on disk either: it is never sent or saved as what it is not.
                blob.unlink(missing_ok=True)
            lost.append(info.chain_id)
    return lost


def _below(store: ImageStore, info: LayerInfo) -> list[str]:
    """The chain ids of the layers below, the uppermost first."""
    chain: list[str] = []
    while info.parent:
        chain.append(info.parent)
        info = store.layer_info(info.parent)
    return chain

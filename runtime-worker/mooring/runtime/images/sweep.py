"""What is in the store and nobody names: found, and taken out. There should be none.

Every job undoes what it has added, also after a kill. This is for what no list tells of: a list
that was lost with the host, a state directory that was copied, a mistake of ours.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Set
from contextlib import suppress
from typing import NamedTuple

from .store import ImageStore, LayerInfo

logger = logging.getLogger(__name__)


class Unnamed(NamedTuple):
    """Chain ids of layers, the uppermost first, and digests of blobs that are no layer's."""

    layers: list[str]
    blobs: list[str]


def unnamed(store: ImageStore, named: Set[str], horizon: float) -> Unnamed:
    """What was there before horizon (Unix time), and is neither named nor below what is kept."""
    infos = {info.chain_id: info for info in store.all_layers()}
    kept: set[str] = set()
    for chain_id in infos:
        if chain_id in named or _since(store, chain_id) >= horizon:
            below = chain_id
            while below and below not in kept:
                kept.add(below)
                below = infos[below].parent if below in infos else ""
    layers = sorted(infos.keys() - kept, key=lambda chain_id: -_depth(infos, chain_id))
    of_layers = {info.blob for info in infos.values()}
    needed = of_layers | named
    blobs = []
    for entry in store.blobs.iterdir():
        digest = f"sha256:{entry.name}"
        with suppress(FileNotFoundError):
            if digest not in needed and entry.stat().st_ctime < horizon:
                blobs.append(digest)
    return Unnamed(layers, blobs)


def take_out(store: ImageStore, found: Unnamed) -> None:
    """Remove all of it."""
    for chain_id in found.layers:
        logger.warning("removing layer %s, which no image has", chain_id)
        store.remove_layer(chain_id)
    for digest in found.blobs:
        logger.warning("removing blob %s, which no image has", digest)
        store.blob(digest).unlink(missing_ok=True)


def _since(store: ImageStore, chain_id: str) -> float:
    return (store.layer(chain_id) / "layer.json").stat().st_ctime


def _depth(infos: Mapping[str, LayerInfo], chain_id: str) -> int:
    depth = 0
    while chain_id in infos:
        chain_id = infos[chain_id].parent
        depth += 1
    return depth

"""Blobs handed from one host to another over the bus."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mooring.kit.bus import Bus
from mooring.kit.config import Settings
from mooring.kit.errors import EngineError, InvalidParameter, NotFound
from mooring.runtime.images.registry.blobs import fetch_blob, serve_blobs
from mooring.runtime.images.store import ImageStore
from tests.runtime.images.archives import digest

DATA = os.urandom(3_000_001)


@pytest.fixture
async def store(bus: Bus, settings: Settings) -> ImageStore:
    made = ImageStore(settings.state_dir)
    made.prepare()
    made.blob(digest(DATA)).write_bytes(DATA)
    await serve_blobs(bus, "other", made)
    return made


@pytest.mark.parametrize("have", [0, 1, 2_000_000, len(DATA)])
async def test_a_blob_is_fetched_from_where_the_file_ends(
    bus: Bus, store: ImageStore, tmp_path: Path, have: int
) -> None:
    path = tmp_path / "blob"
    path.write_bytes(DATA[:have])
    assert await fetch_blob(bus, "other", digest(DATA), path) == len(DATA)
    assert path.read_bytes() == DATA


async def test_a_blob_that_is_not_what_its_digest_says_is_not_kept(
    bus: Bus, store: ImageStore, tmp_path: Path
) -> None:
    name = "sha256:" + "1" * 64
    store.blob(name).write_bytes(DATA)
    with pytest.raises(EngineError, match="has the digest"):
        await fetch_blob(bus, "other", name, tmp_path / "blob")
    path = tmp_path / "damaged"
    path.write_bytes(b"x" * 1000)
    with pytest.raises(EngineError, match="has the digest"):
        await fetch_blob(bus, "other", digest(DATA), path)
    assert not list(tmp_path.glob("blob")) and not path.exists()


async def test_what_is_not_there_and_what_is_no_digest_is_refused(
    bus: Bus, store: ImageStore, tmp_path: Path
) -> None:
    with pytest.raises(NotFound, match="no such blob"):
        await fetch_blob(bus, "other", "sha256:" + "2" * 64, tmp_path / "blob")
    with pytest.raises(InvalidParameter, match="invalid checksum digest format"):
        await fetch_blob(bus, "other", "sha256:../../x", tmp_path / "blob")
    path = tmp_path / "long"
    path.write_bytes(DATA + b"more")
    with pytest.raises(InvalidParameter, match="has 3000001 bytes"):
        await fetch_blob(bus, "other", digest(DATA), path)

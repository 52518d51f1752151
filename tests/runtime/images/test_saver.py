"""The saver beside a push that exchanges blobs."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from mooring.runtime.images import saver
from mooring.runtime.images.store import ImageStore, LayerInfo

from .archives import Entry, digest, layer

PLAIN = layer([Entry("etc/motd", data=b"hello")])
OTHER = b"compressed"
CONFIG = b"{}"


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    store = ImageStore(tmp_path)
    store.prepare()
    for data in (PLAIN, CONFIG):
        file = tmp_path / "file"
        file.write_bytes(data)
        store.add_blob(file, digest(data))
        file.unlink()
    built = store.new_job() / "built"
    built.mkdir()
    chain = digest(PLAIN)
    store.add_layer(built, LayerInfo(chain, chain, chain, "", len(PLAIN)))
    return store


def _push(store: ImageStore) -> None:
    file = store.ingest / "compressed"
    file.write_bytes(OTHER)
    store.replace_blob(digest(PLAIN), file, digest(OTHER), "gzip")


def _save(store: ImageStore, offset: int, began: float) -> subprocess.CompletedProcess[bytes]:
    image = {
        "id": digest(CONFIG),
        "architecture": "amd64",
        "variant": "",
        "chain_ids": [digest(PLAIN)],
        "references": [],
    }
    order = {"kind": "save", "images": [image], "offset": offset, "began": began}
    order |= {"state_dir": str(store.layers.parent), "parent": os.getpid()}
    command = [sys.executable, "-m", "mooring.runtime.images.saver"]
    return subprocess.run(command, input=json.dumps(order).encode(), capture_output=True)


def test_a_blob_that_is_exchanged_while_it_is_looked_for_is_looked_for_again(
    store: ImageStore,
) -> None:
    def open_blob(wanted: str) -> int:
        if wanted == digest(PLAIN):
            _push(store)
        return store.blob(wanted).stat().st_size

    info, size = saver._opened(store, digest(PLAIN), open_blob)
    assert (info.blob, info.compression, size) == (digest(OTHER), "gzip", len(OTHER))


def test_an_archive_goes_on_at_the_byte(store: ImageStore) -> None:
    whole = _save(store, 0, time.time()).stdout
    rest = _save(store, 1000, time.time()).stdout
    assert whole[1000:] == rest
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        assert "manifest.json" in tar.getnames()


def test_an_archive_does_not_go_on_with_another_blob(store: ImageStore) -> None:
    began = time.time()
    _push(store)
    refused = _save(store, 1000, began)
    assert refused.returncode == 1
    assert b"was compressed for a push" in refused.stderr
    assert _save(store, 0, began).returncode == 0

"""A layer unpacked while its bytes still arrive, by the process that has children for layers."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from mooring.runtime.images.unlayering import Unpacker
from mooring.runtime.images.unpack import BadArchive, Job, Reason

from .archives import COMPRESSORS, Entry, digest, layer

pytestmark = pytest.mark.kernel

TAR = layer([Entry("big", data=os.urandom(3 << 20)), Entry("d/", "dir"), Entry("d/f", data=b"x")])


class Growing:
    """A blob that arrives."""

    def __init__(self, folder: Path, data: bytes) -> None:
        self.path, self.data = folder / "blob", data
        self.path.touch()
        self.target = folder / "layer"

    def job(self, **options: object) -> Job:
        return Job(blob=str(self.path), target=str(self.target), **options)  # type: ignore[arg-type]

    def arrive(self, count: int) -> int:
        with open(self.path, "ab") as file:
            file.write(self.data[file.tell() :][:count])
            return file.tell()


@pytest.mark.parametrize("compression", ["plain", "gzip", "zstd"])
async def test_a_layer_is_unpacked_as_far_as_its_blob_has_come(
    tmp_path: Path, compression: str
) -> None:
    blob = Growing(tmp_path, COMPRESSORS[compression](TAR))
    data = blob.data
    async with Unpacker.start() as unpacker:
        job = blob.job(digest=digest(data), diff_id=digest(TAR), size=len(data))
        child = await unpacker.unpack(job)
        for _ in range(0, len(data), 300_000):
            child.grown(blob.arrive(300_000))
        child.end()
        result = await child.result()
        child.close()
    assert (result.digest, result.diff_id) == (digest(data), digest(TAR))
    assert (result.size, result.blob_size, result.plain_size) == (
        (3 << 20) + 1,
        len(data),
        len(TAR),
    )
    assert (blob.target / "fs/d/f").read_bytes() == b"x"


async def test_several_layers_are_unpacked_at_once(tmp_path: Path) -> None:
    blobs = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        blobs.append(Growing(tmp_path / str(number), gzip.compress(TAR)))
    async with Unpacker.start() as unpacker:
        children = [await unpacker.unpack(blob.job()) for blob in blobs]
        for blob, child in zip(blobs, children, strict=True):
            child.grown(blob.arrive(1 << 30))
            child.end()
        results = [await child.result() for child in children]
        for child in children:
            child.close()
    assert {result.diff_id for result in results} == {digest(TAR)}


LIES: dict[str, tuple[Reason, dict[str, object]]] = {
    "digest": (Reason.DIGEST, {"digest": digest(b"other")}),
    "diff_id": (Reason.DIFF_ID, {"diff_id": digest(b"other")}),
    "too short": (Reason.SIZE, {"size": 1 << 30}),
    "too long": (Reason.SIZE, {"size": 100}),
    "too large": (Reason.LIMIT, {"max_size": 3 << 20}),
    "too many": (Reason.LIMIT, {"max_files": 2}),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_layer_that_is_not_what_it_should_be_is_refused(tmp_path: Path, lie: str) -> None:
    reason, options = LIES[lie]
    blob = Growing(tmp_path, gzip.compress(TAR))
    async with Unpacker.start() as unpacker:
        child = await unpacker.unpack(blob.job(**options))
        child.grown(blob.arrive(1 << 30))
        child.end()
        with pytest.raises(BadArchive) as caught:
            await child.result()
        child.close()
    assert caught.value.reason is reason


async def test_damaged_bytes_are_a_wrong_digest_before_they_are_a_bad_archive(
    tmp_path: Path,
) -> None:
    data = gzip.compress(TAR)
    blob = Growing(tmp_path, data[:5000] + bytes(100) + data[5100:])
    async with Unpacker.start() as unpacker:
        child = await unpacker.unpack(blob.job(digest=digest(data)))
        child.grown(blob.arrive(1 << 30))
        child.end()
        with pytest.raises(BadArchive, match="verification failed for digest"):
            await child.result()
        child.close()


async def test_a_layer_that_nobody_waits_for_any_more_ends_with_its_unpacker(
    tmp_path: Path,
) -> None:
    blob = Growing(tmp_path, gzip.compress(TAR))
    async with Unpacker.start() as unpacker:
        child = await unpacker.unpack(blob.job())
        child.grown(blob.arrive(5000))
        child.close()
        again = await unpacker.unpack(Job(str(blob.path), f"{tmp_path}/2"))
        again.grown(blob.arrive(1 << 30))
        again.end()
        assert (await again.result()).diff_id == digest(TAR)
        again.close()


async def test_a_bomb_after_the_end_of_the_archive_is_refused(tmp_path: Path) -> None:
    bomb = gzip.compress(layer([Entry("f")]) + bytes(64 << 20))
    blob = Growing(tmp_path, bomb)
    async with Unpacker.start() as unpacker:
        child = await unpacker.unpack(blob.job(max_size=1 << 20, max_files=10))
        child.grown(blob.arrive(1 << 30))
        child.end()
        with pytest.raises(BadArchive) as caught:
            await child.result()
        child.close()
    assert caught.value.reason is Reason.LIMIT

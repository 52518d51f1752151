"""The archive of `docker save`, as values."""

from __future__ import annotations

import io
import tarfile

from mooring.runtime.images.layout import Part, StoredImage, StoredLayer, archive

LAYER = b"layer bytes"
DIGEST = "sha256:" + "a" * 64
IMAGE = StoredImage(
    "sha256:" + "b" * 64,
    2,
    "arm64",
    "v8",
    (StoredLayer(DIGEST, len(LAYER), "gzip"), StoredLayer(DIGEST, len(LAYER), "gzip")),
    ("docker.io/library/bb:1", "host:5000/x/y:2"),
)


def _bytes(part: Part) -> bytes:
    return {DIGEST: LAYER, IMAGE.id: b"{}"}[part.blob] if part.blob else part.data


def test_every_part_is_as_long_as_it_says_and_together_they_are_a_tar() -> None:
    parts = list(archive([IMAGE, IMAGE]))
    assert all(len(_bytes(part)) == part.length for part in parts)
    with tarfile.open(fileobj=io.BytesIO(b"".join(map(_bytes, parts)))) as tar:
        names = tar.getnames()
        assert names == sorted(set(names), key=names.index)
        assert tar.extractfile(f"blobs/sha256/{'a' * 64}").read() == LAYER  # type: ignore[union-attr]


def test_an_image_without_a_name_is_in_it_all_the_same() -> None:
    image = StoredImage(IMAGE.id, 2, "amd64", "", (), ())
    data = b"".join(_bytes(part) for part in archive([image]))
    assert b'"RepoTags":null' in data
    assert b"repositories" not in data

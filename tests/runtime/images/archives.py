"""Real archives made in memory: layers, docker-archives, OCI layouts."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import zstandard

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}

_TYPES = {
    "file": tarfile.REGTYPE,
    "dir": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "link": tarfile.LNKTYPE,
    "char": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE,
    "fifo": tarfile.FIFOTYPE,
}


@dataclass(frozen=True)
class Entry:
    """One member of a layer."""

    name: str
    kind: str = "file"
    data: bytes = b""
    mode: int | None = None
    uid: int = 0
    gid: int = 0
    mtime: float = 1_700_000_000
    link: str = ""
    device: tuple[int, int] = (0, 0)
    pax: dict[str, str] = field(default_factory=dict)


def layer(entries: Iterable[Entry], format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of the entries, with nothing about them tidied up."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type = _TYPES[entry.kind]
            info.size = len(entry.data)
            info.mode = (
                entry.mode if entry.mode is not None else 0o755 if entry.kind == "dir" else 0o644
            )
            info.uid, info.gid = entry.uid, entry.gid
            info.mtime = entry.mtime
            info.linkname = entry.link
            info.devmajor, info.devminor = entry.device
            info.pax_headers = entry.pax
            tar.addfile(info, io.BytesIO(entry.data))
    return buffer.getvalue()


def digest(data: bytes) -> str:
    """`sha256:…`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Image:
    """What an archive is made of; layers are plain tars, from the bottom up."""

    layers: Sequence[bytes]
    tags: Sequence[str] = ()
    config: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def json(self) -> bytes:
        """The image's config."""
        value = {
            "architecture": "amd64",
            "os": "linux",
            "created": "2024-01-02T03:04:05Z",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": [digest(data) for data in self.layers]},
        }
        return json.dumps(value | self.extra).encode()

    @property
    def id(self) -> str:
        """The digest of the config."""
        return digest(self.json)


def archive(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    """A tar of files and symbolic links by name."""
    entries = [Entry(name, data=data) for name, data in files.items()]
    entries += [Entry(name, "symlink", link=target) for name, target in (links or {}).items()]
    return layer(entries, tarfile.GNU_FORMAT)


def docker_archive(*images: Image, compression: str = "plain") -> bytes:
    """What `docker save` has written since 1.10: layers in directories, manifest.json last."""
    files: dict[str, bytes] = {}
    manifest = []
    for image in images:
        names = []
        for data in image.layers:
            name = f"{digest(data)[7:]}/layer.tar"
            files[name] = COMPRESSORS[compression](data)
            names.append(name)
        config = f"{image.id[7:]}.json"
        files[config] = image.json
        manifest.append({"Config": config, "RepoTags": list(image.tags) or None, "Layers": names})
    files["manifest.json"] = json.dumps(manifest).encode()
    return archive(files)


def oci_archive(*images: Image, compression: str = "gzip", nested: bool = False) -> bytes:
    """An OCI layout in a tar; nested: the index leads to an index with two platforms."""
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}

    def add(data: bytes, media_type: str) -> dict[str, Any]:
        files[f"blobs/sha256/{digest(data)[7:]}"] = data
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    manifests = []
    for image in images:
        layers = [
            add(COMPRESSORS[compression](data), "application/vnd.oci.image.layer.v1.tar")
            for data in image.layers
        ]
        media_type = "application/vnd.oci.image.manifest.v1+json"
        manifest = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": add(image.json, "application/vnd.oci.image.config.v1+json"),
            "layers": layers,
        }
        descriptor = add(json.dumps(manifest).encode(), media_type)
        if nested:
            descriptor["platform"] = {"os": "linux", "architecture": "amd64"}
            absent = descriptor | {
                "digest": "sha256:" + "0" * 64,
                "platform": {"os": "linux", "architecture": "s390x"},
            }
            index = {"schemaVersion": 2, "manifests": [absent, descriptor]}
            descriptor = add(json.dumps(index).encode(), "application/vnd.oci.image.index.v1+json")
        if image.tags:
            descriptor["annotations"] = {"io.containerd.image.name": image.tags[0]}
        manifests.append(descriptor)
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()
    return archive(files)

"""An image of real files for the measures of images: some 300 MB in five layers."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

LAYERS = 5
SIZE = 297_000_000
"""Bytes of its files together."""
_SOURCE = Path("/usr")


def _chosen(source: Path, limit: int) -> Iterator[Path]:
    """Files below source in the order of their names until they have so many bytes."""
    have = 0
    for folder, names, files in os.walk(source):
        names.sort()
        for name in sorted([*files, *names]):
            path = Path(folder, name)
            if path.is_symlink() or path.is_dir():
                yield path
            elif path.is_file() and (size := path.stat().st_size) < limit // 20:
                have += size
                yield path
            if have >= limit:
                return


def write(name: str, folder: Path, size: int = SIZE) -> Path:
    """A docker-archive of the image in folder; the same on the same machine."""
    paths = list(_chosen(_SOURCE, size))
    share = size / LAYERS
    groups: list[list[Path]] = [[] for _ in range(LAYERS)]
    have = 0
    for path in paths:
        groups[min(LAYERS - 1, int(have / share))].append(path)
        if not path.is_symlink() and path.is_file():
            have += path.stat().st_size
    layers = [_layer(group, folder / f"{number}.tar") for number, group in enumerate(groups)]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2024-01-01T00:00:00Z",
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in layers]},
        "history": [{"created": "2024-01-01T00:00:00Z"} for _ in layers],
    }
    text = json.dumps(config).encode()
    config_name = f"{hashlib.sha256(text).hexdigest()}.json"
    names = [f"{digest}/layer.tar" for digest in layers]
    manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": names}]).encode()
    out = folder / "image.tar"
    with tarfile.open(out, "w") as tar:
        _add(tar, config_name, text)
        for number, member in enumerate(names):
            tar.add(folder / f"{number}.tar", member)
            (folder / f"{number}.tar").unlink()
        _add(tar, "manifest.json", manifest)
    return out


def _layer(paths: list[Path], out: Path) -> str:
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in paths:
            tar.add(path, str(path).lstrip("/"), recursive=False)
    with open(out, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))

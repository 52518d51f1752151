"""Bytes and files per second in and out of a container (docker cp)."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Iterator

from .engines import API, Engine

clock = time.perf_counter
_FILES = 5000
_MB = 1_000_000


def archive(engine: Engine, scale: int) -> Iterator[tuple[str, float]]:
    """PUT and GET of one file of 100 MB, and of 5,000 files of 1 to 4 KB; best of 2, or 4."""
    big = _tar({"big": os.urandom(1 << 20) * 100})
    small = _tar({f"d{n % 50:02}/f{n:05}": bytes(1000 + n * 3000 // _FILES) for n in range(_FILES)})
    for name, tar, work, unit in (
        ("100 MB", big, len(big) / _MB, "MB/s"),
        ("5,000 files", small, float(_FILES), "files/s"),
    ):
        puts, gets = [], []
        for _ in range(scale + 1):
            container = engine.create(["sleep", "1000"], "none")
            engine.start(container)
            path = f"{API}/containers/{container}/archive?path=/tmp"
            began = clock()
            engine.wire.call("PUT", path, raw=tar)
            puts.append(work / (clock() - began))
            began = clock()
            got, _, end = engine.follow(f"/containers/{container}/archive?path=/tmp").drain()
            gets.append(work / (end - began))
            if got < len(tar) * 0.9:
                raise RuntimeError(f"the archive has {got} bytes of {len(tar)}")
            engine.remove(container)
        yield f"cp in, {name} ({unit})", max(puts)
        yield f"cp out, {name} ({unit})", max(gets)


def _tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()

"""Load, save and commit."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from . import bigimage
from .engines import API, Engine
from .wire import Wire

clock = time.perf_counter
_NAME = "mooring-bench-big"
_COMMITTED = "mooring-bench-committed"
_SMALL = "echo x > /file"
_LARGE = (
    "i=0; while [ $i -lt 100 ]; do"
    " dd if=/dev/urandom of=/file-$i bs=655360 count=1 2>/dev/null; i=$((i+1)); done"
)


def images(engine: Engine, scale: int) -> Iterator[tuple[str, float]]:
    """Seconds to load and save an image of 297 MB in five layers."""
    with tempfile.TemporaryDirectory(prefix="mooring-bench-") as folder:
        archive = bigimage.write(f"{_NAME}:1", Path(folder))
        loads, saves = [], []
        for _ in range(scale):
            _remove(engine, f"{_NAME}:1")
            loads.append(_timed(lambda: _load(engine, archive)))
        yield "load, 297 MB, 5 layers (s)", statistics.median(loads)
        archive.unlink()
        for _ in range(scale):
            saves.append(_timed(lambda: _save(engine, f"{_NAME}:1")))
        yield "save, 297 MB, 5 layers (s)", statistics.median(saves)
        _remove(engine, f"{_NAME}:1")


def commit(engine: Engine, scale: int) -> Iterator[tuple[str, float]]:
    """Milliseconds to commit a stopped container that has written little, or 64 MB."""
    for what, script in (("one file", _SMALL), ("64 MB, 100 files", _LARGE)):
        container = engine.run(["sh", "-c", script], "none")
        engine.wait(container)
        samples = []
        for number in range(3 * scale):
            path = f"{API}/commit?container={container}&repo={_COMMITTED}&comment={number}"
            samples.append(_timed(lambda path=path: engine.wire.call("POST", path)))  # type: ignore[misc]
            _remove(engine, f"{_COMMITTED}:latest")
        engine.remove(container)
        yield f"commit, {what} (ms)", statistics.median(samples) * 1000


def _timed(work: Callable[[], object]) -> float:
    began = clock()
    work()
    return clock() - began


def _load(engine: Engine, archive: Path) -> None:
    wire = Wire(engine.socket)
    with open(archive, "rb") as file:
        wire.send_file("POST", f"{API}/images/load?quiet=1", file)
    answer = wire.body(*wire.head())
    wire.close()
    if b"errorDetail" in answer:
        raise RuntimeError(answer[:300].decode(errors="replace"))


def _save(engine: Engine, name: str) -> None:
    size, _, _ = engine.follow(f"/images/get?names={name}").drain()
    if size < bigimage.SIZE // 2:
        raise RuntimeError(f"an archive of {size} bytes")


def _remove(engine: Engine, name: str) -> None:
    wire = Wire(engine.socket)
    wire.send("DELETE", f"{API}/images/{name}")
    wire.body(*wire.head())
    wire.close()

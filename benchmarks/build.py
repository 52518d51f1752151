"""`docker build`: six steps, all of them done, and all of them from the cache."""

from __future__ import annotations

import io
import statistics
import tarfile
import time
from collections.abc import Iterator

from .engines import API, IMAGE, LABEL, Engine

_NAME = "mooring-bench-build:latest"
_DOCKERFILE = f"""FROM {IMAGE}
COPY one /one
RUN echo two > /two
RUN cat /one /two > /three
COPY dir /dir
CMD ["cat", "/three"]
LABEL {LABEL}=1
"""


def build(engine: Engine, scale: int) -> Iterator[tuple[str, float]]:
    """The classic builder over the API, the context of 22 files included. ms."""
    context = _context()
    try:
        yield "build, cold (ms)", _median(engine, context, "&nocache=1", 3 * scale)
        _once(engine, context, "")
        yield "build, cached (ms)", _median(engine, context, "", 7 * scale)
    finally:
        engine.wire.call("DELETE", f"{API}/images/{_NAME}?force=1")
        engine.wire.call("POST", f"{API}/images/prune")


def _median(engine: Engine, context: bytes, query: str, times: int) -> float:
    return statistics.median(_once(engine, context, query) for _ in range(times)) * 1000


def _once(engine: Engine, context: bytes, query: str) -> float:
    path = f"{API}/build?t={_NAME}&rm=1&forcerm=1&networkmode=none{query}"
    began = time.perf_counter()
    answer = engine.wire.call("POST", path, raw=context)
    took = time.perf_counter() - began
    if b"Successfully tagged" not in answer:
        raise RuntimeError(f"the build failed: {answer[-300:]!r}")
    return took


def _context() -> bytes:
    files = {"Dockerfile": _DOCKERFILE.encode(), "one": b"one\n"}
    files |= {f"dir/f{number}": b"x" * 1000 for number in range(20)}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()

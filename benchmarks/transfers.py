"""Push to and pull from a registry on loopback; how much memory a pull takes."""

from __future__ import annotations

import contextlib
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from . import bigimage
from .engines import API, Engine, descend
from .memory import pss

clock = time.perf_counter
_READ = 1 << 20


def transfers(engine: Engine, scale: int) -> Iterator[tuple[str, float]]:
    """Seconds to push (nothing there yet) and to pull (nothing here); MiB that a pull adds."""
    with registry() as address, tempfile.TemporaryDirectory(prefix="mooring-bench-") as folder:
        name = f"{address}/bench/big"
        archive = bigimage.write(f"{name}:1", Path(folder))
        _checked(load(engine, archive))
        archive.unlink()
        try:
            began = clock()
            _checked(_post(engine, f"/images/{name}/push?tag=1"))
            yield "push, nothing there yet (s)", clock() - began
            samples = []
            for _ in range(scale):
                _remove(engine, name)
                began = clock()
                _checked(_post(engine, f"/images/create?fromImage={name}&tag=1"))
                samples.append(clock() - began)
            yield "pull, cold (s)", statistics.median(samples)
            _remove(engine, name)
            with _watched(engine) as peak:
                _checked(_post(engine, f"/images/create?fromImage={name}&tag=1"))
            yield "memory that a pull takes at most (MiB)", peak[0]
        finally:
            with contextlib.suppress(Exception):
                _remove(engine, name)


@contextlib.contextmanager
def registry() -> Iterator[str]:
    """Debian's docker-registry with an empty store; its address."""
    binary = shutil.which("docker-registry")
    if binary is None:
        raise RuntimeError("no docker-registry on this machine")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with tempfile.TemporaryDirectory(prefix="mooring-registry-") as folder:
        config = Path(folder, "config.yml")
        config.write_text(
            "version: 0.1\nlog: {level: error}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder}/store}}}}\n"
            f"http: {{addr: '{address}'}}\n"
        )
        process = subprocess.Popen(
            [binary, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            host, _, port = address.partition(":")
            deadline = clock() + 20
            while True:
                try:
                    socket.create_connection((host, int(port)), 1).close()
                    break
                except OSError:
                    if clock() > deadline or process.poll() is not None:
                        raise
                    time.sleep(0.05)
            yield address
        finally:
            process.terminate()
            process.wait(10)


def load(engine: Engine, archive: Path) -> bytes:
    """POST /images/load of a file; the answer's body."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(180)
    with sock, open(archive, "rb") as file:
        sock.connect(engine.socket)
        head = (
            f"POST {API}/images/load?quiet=1 HTTP/1.0\r\nHost: bench\r\n"
            f"Content-Type: application/x-tar\r\nContent-Length: {archive.stat().st_size}\r\n\r\n"
        )
        sock.sendall(head.encode())
        sock.sendfile(file)
        return _rest(sock)


def _post(engine: Engine, path: str) -> bytes:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(180)
    with sock:
        sock.connect(engine.socket)
        head = (
            f"POST {API}{path} HTTP/1.0\r\nHost: bench\r\nX-Registry-Auth: e30=\r\n"
            "Content-Length: 0\r\n\r\n"
        )
        sock.sendall(head.encode())
        return _rest(sock)


def _rest(sock: socket.socket) -> bytes:
    parts = []
    while piece := sock.recv(_READ):
        parts.append(piece)
    return b"".join(parts)


def _checked(answer: bytes) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0] or b'"error"' in body:
        raise RuntimeError(answer[-400:].decode(errors="replace"))


def _remove(engine: Engine, name: str) -> None:
    listed = engine.wire.json("GET", f"{API}/images/{name}:1/json")
    for reference in listed["RepoTags"]:
        engine.wire.call("DELETE", f"{API}/images/{reference}?force=1")


@contextlib.contextmanager
def _watched(engine: Engine) -> Iterator[list[float]]:
    """The engine's memory at its highest, less what it had before; MiB."""
    roots, peak, ended = set(engine.pids()), [0.0], threading.Event()
    before = pss(descend(roots))

    def watch() -> None:
        while not ended.wait(0.1):
            peak[0] = max(peak[0], pss(descend(roots)) - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()

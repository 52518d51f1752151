"""Unpacking layers in processes of their own, several at once.

    unpack()                        child
    fork ──────────────────────────▶ chroot into the layer, umask 0
                                     read, decompress, hash (a thread) ─▶ extract
    pipe ◀── one JSON object ─────── {"diff_id", "size", …} or {"error", "fault"}

The parent has one thread: it is the loader, or a test.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import queue
import signal
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any, cast

from .compress import Compression, CompressionError, Read, decompressed
from .extract import extract
from .tar import CHUNK, TarError, TarReader

_QUEUE = 4
_PR_SET_PDEATHSIG = 1


class BadArchive(ValueError):
    """What was sent is no valid image or layer; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A layer as it came out of its archive. Bytes; implied: parents that had no entry."""

    diff_id: str
    size: int
    entries: int
    implied: tuple[bytes, ...]


class Unpacking:
    """A child that unpacks one layer; `finish` must be called, it reaps the child."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid = pid
        self._pipe = pipe

    def finish(self) -> Unpacked:
        """Wait for the child; BadArchive for the archive's faults, OSError for the host's."""
        with open(self._pipe, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        if not answer:
            raise OSError(f"unpacking ended without a result (status {status})")
        result: dict[str, Any] = json.loads(answer)
        if "error" in result:
            raise BadArchive(result["error"]) if result["fault"] else OSError(result["error"])
        return Unpacked(
            result["diff_id"],
            result["size"],
            result["entries"],
            tuple(name.encode("latin-1") for name in result["implied"]),
        )

    def abort(self) -> None:
        """End the child, whatever it has done; what it made is in its target directory."""
        os.close(self._pipe)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def end_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def start(
    blob: Path,
    compression: Compression,
    target: Path,
    *,
    diff_id: str = "",
    plain_copy: Path | None = None,
) -> Unpacking:
    """Begin to unpack a blob into the existing directory target.

    A diff_id that is known already is not computed again. plain_copy gets the bytes decompressed.
    """
    receiver, sender = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(receiver)
        end_with(parent)
        _child(sender, blob, compression, target, diff_id, plain_copy)
    os.close(sender)
    return Unpacking(pid, receiver)


def _child(
    pipe: int,
    blob: Path,
    compression: Compression,
    target: Path,
    diff_id: str,
    plain_copy: Path | None,
) -> None:
    try:
        with ExitStack() as files:
            source = files.enter_context(open(blob, "rb", buffering=0))
            copy = files.enter_context(open(plain_copy, "xb", buffering=0)) if plain_copy else None
            # Whatever module this loads must be loaded before the root directory changes.
            read = decompressed(cast(Read, source.read), compression)
            os.chroot(target)
            os.chdir("/")
            os.umask(0)
            answer = _extract(read, diff_id, copy, threaded=compression is not Compression.NONE)
    except (TarError, CompressionError) as exc:
        answer = {"error": str(exc), "fault": True}
    except BaseException as exc:
        answer = {"error": f"{type(exc).__name__}: {exc}", "fault": False}
    with suppress(OSError), open(pipe, "wb") as writer:
        writer.write(json.dumps(answer).encode())
    os._exit(0)


def _extract(
    read: Read, diff_id: str, copy: RawIOBase | None, *, threaded: bool
) -> dict[str, object]:
    digest = None if diff_id else hashlib.sha256()
    source = _Source(read, digest, copy)
    ahead = _Ahead(source.read) if threaded else None
    result = extract(TarReader(ahead.read if ahead else source.read))
    return {
        "diff_id": diff_id or f"sha256:{digest.hexdigest() if digest else ''}",
        "size": result.size,
        "entries": result.entries,
        "implied": [name.decode("latin-1") for name in result.implied],
    }


class _Source:
    """The stream of a layer's tar, hashed and copied as it is read."""

    def __init__(self, read: Read, digest: Any, copy: RawIOBase | None) -> None:
        self._read, self._digest, self._copy = read, digest, copy

    def read(self, limit: int) -> bytes:
        piece = self._read(limit)
        if self._digest is not None:
            self._digest.update(piece)
        if self._copy is not None:
            written = 0
            while written < len(piece):
                written += self._copy.write(piece[written:])
        return piece


class _Ahead:
    """Reads ahead in a thread: decompressing and hashing go beside the system calls."""

    def __init__(self, read: Read) -> None:
        self._source = read
        self._queue: queue.Queue[bytes | Exception] = queue.Queue(_QUEUE)
        self._ended = False
        threading.Thread(target=self._run, name="decompress", daemon=True).start()

    def read(self, _limit: int) -> bytes:
        if self._ended:
            return b""
        piece = self._queue.get()
        if isinstance(piece, Exception):
            raise piece
        self._ended = not piece
        return piece

    def _run(self) -> None:
        try:
            while piece := self._source(CHUNK):
                self._queue.put(piece)
            self._queue.put(b"")
        except Exception as exc:
            self._queue.put(exc)

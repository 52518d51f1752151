"""Unpacking layers in processes of their own, several at once: the side that wants them.

    start()                         child
    fork ──────────────────────────▶ unlayer.py: chroot into the layer, extract
    growth pipe: "<bytes>" "end" ──▶ read no further than the file is known to have come
    answer pipe ◀─────────────────── {"progress": …}, at last the result or {"error", …}

The parent has one thread: it is the loader, or the unpacker of a pull (unlayer.py), or a test.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from .compress import Compression

_PR_SET_PDEATHSIG = 1


class Reason(StrEnum):
    """What is wrong with a layer."""

    DATA = "data"
    DIGEST = "digest"
    DIFF_ID = "diff_id"
    SIZE = "size"
    LIMIT = "limit"


class BadArchive(ValueError):
    """What was sent is no valid image or layer; the message is for the user."""

    def __init__(self, message: str, reason: Reason = Reason.DATA) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one layer may hold: bytes of its files, and files of any kind."""

    size: int = sys.maxsize
    files: int = sys.maxsize


@dataclass(frozen=True, slots=True)
class Job:
    """A layer to unpack. Digests are `sha256:<hex>`; one that is empty is not checked."""

    blob: str
    """The file; it may still grow."""
    target: str
    """A directory that does not exist yet; it gets the files below `fs`."""
    digest: str = ""
    """Of the blob's bytes."""
    diff_id: str = ""
    compression: str = "auto"
    """A value of Compression, or auto: by the first bytes."""
    size: int = -1
    """Bytes that the blob will have; -1 if that is not known."""
    plain: str = ""
    """Gets the bytes decompressed, if the content store has no media type for the compression."""
    trusted: bool = False
    """The digest was computed as the bytes arrived: it is not computed again."""
    max_size: int = sys.maxsize
    """Bytes that its files may have together."""
    max_files: int = sys.maxsize


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A layer as it came out of its archive. Sizes in bytes."""

    digest: str
    """Of the blob."""
    diff_id: str
    size: int
    """Of the files."""
    entries: int
    blob_size: int
    plain_size: int
    """Of the tar."""
    compression: Compression
    implied: tuple[bytes, ...] = ()
    """Parents that had no entry of their own."""

    @classmethod
    def parse(cls, answer: dict[str, Any]) -> Unpacked:
        """From the last line of a child; BadArchive for the layer's faults, OSError for ours."""
        if "error" in answer:
            if answer["reason"]:
                raise BadArchive(answer["error"], Reason(answer["reason"]))
            raise OSError(answer["errno"], answer["error"])
        implied = tuple(name.encode("latin-1") for name in answer.pop("implied"))
        compression = Compression(answer.pop("compression"))
        return cls(**answer, compression=compression, implied=implied)


class Unpacking:
    """A child that unpacks one layer; `finish` or `abort` must be called, they reap the child."""

    def __init__(self, job: Job, pid: int, growth: int, answers: int) -> None:
        self.job = job
        self.pid = pid
        self._growth = growth
        self._answers = answers

    def grown(self, size: int) -> None:
        """The blob has that many bytes now."""
        # A child that has failed listens no more; finish says why.
        with suppress(BrokenPipeError):
            os.write(self._growth, b"%d\n" % size)

    def end(self) -> None:
        """The blob is whole."""
        with suppress(BrokenPipeError):
            os.write(self._growth, b"end\n")

    @property
    def ended(self) -> bool:
        """Whether the child has; `finish` does not wait then."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def finish(self) -> Unpacked:
        """Wait for the child; BadArchive for the archive's faults, OSError for the host's."""
        with open(self._answers, "rb") as answers:
            lines = answers.read().splitlines()
        os.close(self._growth)
        _, status = os.waitpid(self.pid, 0)
        if not lines:
            raise OSError(f"unpacking ended without a result (status {status})")
        return Unpacked.parse(json.loads(lines[-1]))

    def abort(self) -> None:
        """End the child, whatever it has done; what it made is in its target directory."""
        os.close(self._answers)
        os.close(self._growth)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def end_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def start(job: Job, *, whole: bool = True) -> Unpacking:
    """Begin to unpack a layer. whole: the blob is; else tell how it grows."""
    from . import unlayer

    hears, growth = os.pipe()
    answers, says = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(growth)
        os.close(answers)
        end_with(parent)
        unlayer.child(job, -1 if whole else hears, says)
    os.close(hears)
    os.close(says)
    return Unpacking(job, pid, growth, answers)

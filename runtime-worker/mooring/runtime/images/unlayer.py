"""Unpacking layers in processes of their own: the side that does it.

A process of this module (`python -m mooring.runtime.images.unlayer`) forks a child for every job
that comes over its socket, file descriptor 0: a packet of JSON with two descriptors, the pipe that
says how far the blob has come and the pipe for answers. The loader forks such children itself.

A child has two threads: one reads, checks and decompresses, one makes files.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import queue
import signal
import socket
import threading
import time
from contextlib import ExitStack, suppress
from io import FileIO
from typing import NoReturn

from .compress import Compression, CompressionError, Read, decompressed, detect, peek, prepare
from .extract import LimitExceeded, extract
from .growing import Growing
from .tar import CHUNK, TarError, TarReader
from .unpack import BadArchive, Job, Limits, Reason

_QUEUE = 4
_PROGRESS = 0.1
"""Seconds between two words on how far it has come."""
_PACKET = 1 << 16
_HEADERS = 8192
"""Bytes to a file that an archive has on average at most for what is no data."""


def main() -> None:
    """Fork a child for each job, until the other end of the socket is closed."""
    prepare()
    gc.collect()
    gc.freeze()
    # Children are reaped by the kernel: nobody asks for their status, their answer says it all.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=0) as requests:
        while True:
            packet, descriptors, _, _ = socket.recv_fds(requests, _PACKET, 2)
            if not packet:
                return
            growth, answers = descriptors
            if os.fork() == 0:
                requests.close()
                child(Job(**json.loads(packet)), growth, answers)
            os.close(growth)
            os.close(answers)


def child(job: Job, growth: int, answers: int) -> NoReturn:
    """Do a job and end. growth: -1 if the blob is whole; else how far it has come, in lines."""
    try:
        with open(job.blob, "rb", buffering=0) as blob:
            source = Growing(blob.fileno(), whole=growth < 0)
            if growth >= 0:
                threading.Thread(target=_follow, args=(growth, source), daemon=True).start()
            answer = _unlayer(job, source, answers)
    except BadArchive as exc:
        answer = {"error": str(exc), "reason": exc.reason.value}
    except OSError as exc:
        answer = {"error": exc.strerror or str(exc), "reason": "", "errno": exc.errno or errno.EIO}
    except BaseException as exc:
        answer = {"error": f"{type(exc).__name__}: {exc}", "reason": "", "errno": errno.EIO}
    with suppress(OSError):
        os.set_blocking(answers, True)
        _write_all(answers, json.dumps(answer).encode() + b"\n")
    os._exit(0)


def _follow(growth: int, source: Growing) -> None:
    """Read how far the blob has come; the end of the pipe without `end` ends this process."""
    with open(growth, "rb") as lines:
        for line in lines:
            if line == b"end\n":
                source.end()
                lines.read()
                break
            source.grown(int(line))
        else:
            source.end(broken=True)
            return
    # Whoever wanted the layer is not there any more (it closes the pipe when it has the answer).
    os._exit(1)


def _unlayer(job: Job, source: Growing, answers: int) -> dict[str, object]:
    if job.compression:
        # No module can be loaded once the root directory has changed, in whichever thread.
        prepare()
    os.makedirs(f"{job.target}/fs", 0o755)
    with ExitStack() as files:
        plain = files.enter_context(open(job.plain, "xb", buffering=0)) if job.plain else None
        blob = _Blob(source, job, answers)
        start, read = peek(blob.read)
        compression = detect(start) if job.compression == "auto" else Compression(job.compression)
        tar = _Tar(decompressed(read, compression), compression, job, plain, blob)
        os.chroot(f"{job.target}/fs")
        os.chdir("/")
        os.umask(0)
        try:
            result = extract(TarReader(tar.read), Limits(job.max_size, job.max_files))
        except LimitExceeded as exc:
            raise BadArchive(str(exc), Reason.LIMIT) from exc
        except (TarError, CompressionError) as exc:
            tar.stop()
            # Bytes that are not those that were wanted are not worth a word on their meaning.
            blob.finish()
            raise BadArchive(str(exc)) from exc
        blob.finish()
        tar.check()
        return {
            "digest": blob.digest,
            "diff_id": tar.diff_id,
            "size": result.size,
            "entries": result.entries,
            "blob_size": source.position,
            "plain_size": tar.size,
            "compression": compression.value,
            "implied": [name.decode("latin-1") for name in result.implied],
        }


class _Blob:
    """The bytes of the blob as they are stored: hashed, counted, told of."""

    def __init__(self, source: Growing, job: Job, answers: int) -> None:
        self._source, self._job, self._answers = source, job, answers
        self._sha256 = None if job.trusted else hashlib.sha256()
        self._told = time.monotonic()
        # Progress that nobody reads is not waited for.
        os.set_blocking(answers, False)

    @property
    def digest(self) -> str:
        """Of what was read, which is all of it in the end."""
        return f"sha256:{self._sha256.hexdigest()}" if self._sha256 else self._job.digest

    def read(self, limit: int) -> bytes:
        """The next bytes, as many as there are; BadArchive if there are too many."""
        piece = self._source.read(limit)
        if self._sha256 is not None:
            self._sha256.update(piece)
        if 0 <= self._job.size < self._source.position:
            raise self._wrong_size()
        now = time.monotonic()
        if now - self._told >= _PROGRESS:
            self._told = now
            with suppress(BlockingIOError, BrokenPipeError):
                os.write(self._answers, b'{"progress": %d}\n' % self._source.position)
        return piece

    def finish(self) -> None:
        """Read what is left, for the digest; BadArchive unless it is the blob that was wanted."""
        while self.read(CHUNK):
            pass
        job = self._job
        if job.size >= 0 and self._source.position != job.size:
            raise self._wrong_size()
        if job.digest and self.digest != job.digest:
            raise BadArchive(
                f"filesystem layer verification failed for digest {job.digest}", Reason.DIGEST
            )

    def _wrong_size(self) -> BadArchive:
        return BadArchive(
            f"the layer has {self._source.position} bytes instead of {self._job.size}", Reason.SIZE
        )


class _Tar:
    """The layer's tar, decompressed, hashed and copied by a thread that is ahead of the reader."""

    def __init__(
        self, source: Read, compression: Compression, job: Job, copy: FileIO | None, blob: _Blob
    ) -> None:
        self._source, self._job, self._copy, self._blob = source, job, copy, blob
        # The digest of a blob that is not compressed is the diff id.
        self._sha256 = None if compression is Compression.NONE else hashlib.sha256()
        self._queue: queue.Queue[bytes | Exception] = queue.Queue(_QUEUE)
        self._ended = False
        self._stopped = False
        self._most = job.max_size + _HEADERS * job.max_files
        self.size = 0
        self._thread = threading.Thread(target=self._run, name="decompress", daemon=True)
        self._thread.start()

    @property
    def diff_id(self) -> str:
        """Of what was read, which is all of it in the end."""
        return f"sha256:{self._sha256.hexdigest()}" if self._sha256 else self._blob.digest

    def read(self, _limit: int) -> bytes:
        """The next piece; empty at the end."""
        if self._ended:
            return b""
        piece = self._queue.get()
        if isinstance(piece, Exception):
            self._ended = True
            raise piece
        self._ended = not piece
        self.size += len(piece)
        if self.size > self._most:
            raise LimitExceeded("a layer's archive is larger than its files may be")
        return piece

    def stop(self) -> None:
        """Decompress no further; the blob is the caller's again."""
        self._stopped = True
        while self._thread.is_alive():
            with suppress(queue.Empty):
                self._queue.get(timeout=0.01)

    def check(self) -> None:
        """BadArchive unless it is the layer that was wanted."""
        if self._job.diff_id and self.diff_id != self._job.diff_id:
            raise BadArchive(
                f"layers from manifest don't match image configuration: "
                f"expected {self._job.diff_id}, got {self.diff_id}",
                Reason.DIFF_ID,
            )

    def _run(self) -> None:
        try:
            while not self._stopped and (piece := self._source(CHUNK)):
                if self._sha256 is not None:
                    self._sha256.update(piece)
                if self._copy is not None:
                    _write_all(self._copy.fileno(), piece)
                self._queue.put(piece)
            self._queue.put(b"")
        except Exception as exc:
            self._queue.put(exc)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


if __name__ == "__main__":
    main()

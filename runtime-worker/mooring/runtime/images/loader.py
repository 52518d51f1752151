"""The loader: a process to an upload, so that no archive takes time or memory from the worker.

    worker                                 loader
    exec, ingest/<job>/job.json ─────────▶ prepare
    stdin: the bytes as they arrive ─────▶ stored in ingest/<job>, layers unpacked (unpack.py)
    stdin closed: the upload is whole ───▶ all verified and put into the store
    stdout ◀────────────────────────────── lines: ["<layer>", bytes, of bytes], or "source": all of
                                           it is here; at the end, without a line's end, one JSON
                                           object: {"images": […]} or {"error", "fault"}

It imports little outside the standard library (isal and zstandard), and ends with the worker.
"""

from __future__ import annotations

import fcntl
import json
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from .commit import commit
from .compress import Read, prepare
from .incoming import Incoming
from .load import LoadedImage, load, receive_archive
from .repair import repair
from .rootfs import ImportOptions, import_rootfs, opened, receive_rootfs
from .store import ImageStore
from .unpack import BadArchive, Limits, end_with

_PIPE_SIZE = 1 << 20
"""Bytes; with the usual 64 KiB worker and loader would wake each other all the time."""


def main() -> None:
    """`loader DIRECTORY`: the job's directory, with the job.json that service.py writes."""
    directory = Path(sys.argv[1])
    job: dict[str, Any] = json.loads((directory / "job.json").read_bytes())
    end_with(job["parent"])
    if job["kind"] != "commit":
        prepare()
    with suppress(OSError):
        fcntl.fcntl(0, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    try:
        images = _run(job, directory)
        answer: dict[str, Any] = {"images": [asdict(image) for image in images]}
    except BadArchive as exc:
        answer = {"error": str(exc), "fault": True}
    except RecursionError:
        answer = {"error": "invalid image config: it is nested too deeply", "fault": True}
    except OSError as exc:
        answer = {"error": f"cannot store the image: {exc}", "fault": False}
    sys.stdout.buffer.write(json.dumps(answer).encode())


def _run(job: dict[str, Any], directory: Path) -> list[LoadedImage]:
    store = ImageStore(Path(job["state_dir"]))
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        return _store(job, directory, store, cast(Read, stdin.read))


def _store(
    job: dict[str, Any], directory: Path, store: ImageStore, read: Read
) -> list[LoadedImage]:
    if job["kind"] == "repair":
        repair(store, directory)
        return []
    if job["kind"] == "commit":
        return [commit(store, directory, job)]
    incoming = Incoming(directory, Limits(job["max_size"], job["max_files"]))
    try:
        if job["kind"] == "load":
            say = _say if job["progress"] else None
            archive = receive_archive(read, store, directory, incoming, say)
            return load(archive, store, directory, incoming, job["architecture"])
        rootfs = _rootfs(job, directory, read, incoming)
        options = ImportOptions(
            source=job["source"],
            message=job["message"],
            changes=tuple(job["changes"]),
            architecture=job["architecture"],
            variant=job["variant"],
        )
        return [import_rootfs(rootfs, options, store, directory, incoming)]
    finally:
        incoming.abort()


def _say(*message: object) -> None:
    line = json.dumps(message[0] if len(message) == 1 else message)
    sys.stdout.buffer.write(line.encode() + b"\n")
    sys.stdout.buffer.flush()


def _rootfs(job: dict[str, Any], directory: Path, read: Read, incoming: Incoming) -> Path:
    if not job["source"]:
        return receive_rootfs(read, directory, incoming)
    try:
        with opened(job["source"]) as remote:
            return receive_rootfs(remote, directory, incoming)
    finally:
        # Only now is this one's turn with the store waited for.
        _say("source")
        while read(_PIPE_SIZE):
            pass


if __name__ == "__main__":
    main()

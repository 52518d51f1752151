"""The process of one copy: it enters the container's view and reads or writes one archive.

A job comes as one JSON packet on descriptor 3, with the stream's end and, of a running container,
init's pidfd. The answer to `stat` and `read` comes before the first byte of the stream, that to
`write` when all is done. Nothing of the container is ever executed here. Standard library only.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import sys

from mooring.runtime.oci.errors import OciError
from mooring.runtime.oci.linux import AT_FDCWD, RESOLVE_NO_MAGICLINKS, openat2

from .locating import Found, absolute, evaluate
from .view import enter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mooring.runtime.images.tar import TarReader

PACKET = 256 << 10


class _Answer(Exception):
    """A refusal: its words and its kind (kit.errors)."""

    def __init__(self, message: str, kind: str = "internal") -> None:
        super().__init__(message)
        self.kind = kind


def main(sock: socket.socket) -> None:
    """Do one job."""
    sock.setblocking(True)
    data, fds, _, _ = socket.recv_fds(sock, PACKET, 4)
    job = json.loads(data)
    stream = fds[0] if fds else -1
    pidfd = fds[1] if len(fds) > 1 else -1
    try:
        # What is imported is on the host, so before the root changes.
        if job["op"] == "write":
            from . import unpacking

            sys.path += job["site"]
            reader = unpacking.open_stream(stream)
        elif job["op"] == "read":
            from .packing import Packer
        enter(job, pidfd)
        if job["op"] == "write":
            _write(job, reader)
            answer: dict[str, Any] = {"done": True}
        else:
            found = _find(job)
            answer = found.describe()
    except _Answer as error:
        answer = {"error": str(error), "kind": error.kind}
    except OciError as error:
        answer = {"error": str(error), "kind": "internal"}
    except OSError as error:
        answer = {"error": f"{error.strerror or error}".lower(), "kind": "internal"}
    sock.send(json.dumps(answer).encode())
    if job["op"] == "read" and "error" not in answer:
        try:
            Packer(stream).pack(found.directory, found.name, answer["name"])
        except BrokenPipeError:
            return
        except OSError as error:
            # The stream ends here, and the worker says why instead of its end.
            reason = f"{error.strerror or error}".lower()
            sock.send(json.dumps({"error": reason, "kind": "internal"}).encode())
            sys.exit(1)
        sock.send(b'{"done": true}')


def _missing(job: dict[str, Any]) -> _Answer:
    text = f"Could not find the file {job['path']} in container {job['container']}"
    return _Answer(text, "not_found")


def _find(job: dict[str, Any]) -> Found:
    path = absolute(job["path"])
    try:
        return Found(path)
    except FileNotFoundError:
        raise _missing(job) from None
    except NotADirectoryError:
        raise _Answer(f"lstat {path}: not a directory") from None


def _write(job: dict[str, Any], reader: TarReader) -> None:
    from . import unpacking

    path = absolute(job["path"])
    real = evaluate(path)
    try:
        directory = openat2(AT_FDCWD, path, os.O_PATH, RESOLVE_NO_MAGICLINKS)
    except FileNotFoundError:
        raise _missing(job) from None
    except NotADirectoryError:
        raise _Answer(f"lstat {path}: not a directory") from None
    if not stat.S_ISDIR(os.fstat(directory).st_mode):
        raise _Answer("extraction point is not a directory", "invalid_parameter")
    _check_access(job, real)
    ids = (job["user"][0], job["user"][1]) if job["user"] else None
    try:
        unpacking.unpack(reader, directory, real, no_overwrite=job["no_overwrite"], ids=ids)
    except unpacking.Refused as error:
        raise _Answer(f"Error processing tar file(exit status 1): {error}") from None


def _check_access(job: dict[str, Any], path: str) -> None:
    """What is read-only for the container is so for a copy into it."""
    around = [
        (len(where), writable)
        for where, writable in job["places"]
        if path == where or path.startswith(f"{where}/")
    ]
    if around:
        if not max(around)[1]:
            raise _Answer("mounted volume is marked read-only", "forbidden")
    elif job["readonly"]:
        raise _Answer("container rootfs is marked read-only", "forbidden")

"""The process of one copy: it enters the container's view and reads or writes one archive.

A job comes as one JSON packet on descriptor 3, with the stream's end and, of a running container,
init's pidfd. The answer to `stat` and `read` comes before the first byte of the stream, that to
`write` when all is done. Nothing of the container is ever executed here. Standard library only.
"""

from __future__ import annotations

import functools
import json
import os
import select
import socket
import stat
import sys

from mooring.runtime.oci.errors import OciError
from mooring.runtime.oci.linux import AT_FDCWD, RESOLVE_NO_MAGICLINKS, openat2

from . import frames
from .locating import Found, absolute, evaluate
from .view import enter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mooring.runtime.images.tar import TarReader

PACKET = 256 << 10
_DRAIN = 5.0
"""Seconds."""


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
    pidfd = fds[1] if len(fds) > 1 else -1
    if job["op"] == "write":
        _write_job(sock, job, fds[0], pidfd)
    else:
        _read_job(sock, job, fds[0], pidfd)


def _tell(sock: socket.socket, answer: dict[str, Any]) -> None:
    sock.send(json.dumps(answer).encode())


def _read_job(sock: socket.socket, job: dict[str, Any], stream: int, pidfd: int) -> None:
    try:
        # What is imported is on the host, so before the root changes.
        from .packing import Packer

        enter(job, pidfd)
        found = _find(job)
        described = found.describe()
    except (_Answer, OciError, OSError) as error:
        _tell(sock, _refusal(error))
        return
    _tell(sock, described)
    if job["op"] != "read":
        return
    connection = None
    result: dict[str, Any] = {}
    try:
        if job["direct"]:
            connection = frames.accept(stream)
            stream = connection.fileno()
        Packer(stream, framed=job["direct"]).pack(found.directory, found.name, described["name"])
    except OSError as error:
        # The stream ends here, and not with its end.
        result = _refusal(error)
    if connection is not None:
        frames.end(connection, result)
    _tell(sock, result)


def _write_job(sock: socket.socket, job: dict[str, Any], stream: int, pidfd: int) -> None:
    from . import unpacking

    connection = None
    result: dict[str, Any] = {}
    sys.path += job["site"]
    try:
        stall = job.get("stall", 0.0)
        if job["direct"]:
            connection = frames.accept(stream)
            if stall:
                frames.limit(connection, stall)
            read = frames.FramedInput(connection).read
        else:
            read = functools.partial(_read_soon, stream, stall)
        reader = unpacking.open_stream(read)
        enter(job, pidfd)
        _write(job, reader)
    except EOFError:
        result = {"error": "the copy was broken off", "kind": "unavailable"}
    except frames.Stalled:
        text = f"the copy was broken off: nothing came for {stall:g} s"
        result = {"error": text, "kind": "unavailable"}
    except (_Answer, OciError, OSError) as error:
        result = _refusal(error)
    if connection is not None:
        frames.end(connection, result, ended=True)
        _drain(connection)
    _tell(sock, result)


def _read_soon(stream: int, stall: float, limit: int) -> bytes:
    """What comes next; frames.Stalled if nothing does (stall: in seconds, 0 for any time)."""
    if stall:
        ready = select.poll()
        ready.register(stream, select.POLLIN)
        if not ready.poll(stall * 1000):
            raise frames.Stalled
    return os.read(stream, limit)


def _drain(connection: socket.socket) -> None:
    """What is still being sent has to be read: else the answer would be lost with it."""
    connection.settimeout(_DRAIN)
    try:
        while connection.recv(1 << 20):
            pass
    except OSError:
        pass


def _refusal(error: Exception) -> dict[str, Any]:
    if isinstance(error, _Answer):
        return {"error": str(error), "kind": error.kind}
    text = str(error) if isinstance(error, OciError) else str(error.args[-1] or error).lower()
    return {"error": text or type(error).__name__, "kind": "internal"}


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

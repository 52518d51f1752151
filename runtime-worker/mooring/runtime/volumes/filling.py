"""Filling empty volumes with what an image has where they are mounted; a helper process.

    copy to `fill.tmp` ─→ rename to `fill` ─→ move its entries into the volume ─→ remove `fill`

A kill before the rename leaves a volume that is empty, one after it a `fill` that whoever uses the
volume next (or the next start of the worker) finishes: no half-filled volume counts as filled.
Standard library only.
"""

from __future__ import annotations

import json
import os
import shutil
import signal

from mooring.runtime.oci.copyup import copy_attributes, copy_tree
from mooring.runtime.oci.linux import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from mooring.runtime.oci.mountapi import clone_tree
from mooring.runtime.oci.rootsource import Overlay, mount_overlay

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
PACKET = 256 << 10


def main(sock: socket.socket) -> None:
    """Do one job: `lowers`, and `fills` of [destination, data, stage, declared]."""
    job = json.loads(sock.recv(PACKET))
    try:
        answer = _work(job)
    except OSError as error:
        text = f"failed to populate volume: {error.strerror or error}".lower()
        answer = {"error": text, "kind": "internal"}
    sock.send(json.dumps(answer).encode())


def _work(job: dict[str, Any]) -> dict[str, Any]:
    lowers = job["lowers"]
    root = mount_overlay(Overlay(lowers)) if len(lowers) > 1 else clone_tree(
        lowers[0], recursive=False
    )  # fmt: skip
    for destination, data, stage, declared in job["fills"]:
        finish(data, stage)
        try:
            flags = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
            source = openat2(root, destination, _DIRECTORY, flags)
        except NotADirectoryError:
            if declared:
                text = f"cannot mount volume over existing file, file exists {destination}"
                return {"error": text, "kind": "internal"}
            continue
        except FileNotFoundError:
            continue
        fill(source, data, stage)
        os.close(source)
    return {}


def fill(source: int, data: str, stage: str) -> None:
    """Copy a directory into a volume that is empty."""
    if any(f"{data}/{name}" != stage for name in os.listdir(data)):
        return
    fresh = f"{stage}.tmp"
    shutil.rmtree(fresh, ignore_errors=True)
    os.mkdir(fresh, 0o700)
    target = os.open(fresh, _DIRECTORY)
    try:
        copy_tree(source, target)
        copy_attributes(source, target)
    except OSError:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    finally:
        os.close(target)
    _point("runtime.volume.copied")
    os.rename(fresh, stage)
    _point("runtime.volume.filled")
    finish(data, stage)


def finish(data: str, stage: str) -> None:
    """Move what was copied into its place; nothing if there is nothing."""
    shutil.rmtree(f"{stage}.tmp", ignore_errors=True)
    try:
        names = os.listdir(stage)
    except FileNotFoundError:
        return
    for name in names:
        if not os.path.lexists(f"{data}/{name}"):
            os.rename(f"{stage}/{name}", f"{data}/{name}")
            _point("runtime.volume.moving")
    source, target = os.open(stage, _DIRECTORY), os.open(data, _DIRECTORY)
    try:
        copy_attributes(source, target)
    finally:
        os.close(source)
        os.close(target)
    shutil.rmtree(stage)


def _point(name: str) -> None:
    directory = os.environ.get("MOORING_FAULTS")
    if directory:
        try:
            os.unlink(f"{directory}/{name}")
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

"""The init layer: mount targets that an image lacks, made once and not by each container.

It lies on top of the image's own layers, so a container's upper directory stays empty until its
program writes. It is kept beside the files of the uppermost layer, whose chain id says all that is
below it, and goes when that layer goes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from mooring.runtime.overlay import Overlay, View

from .store import ImageStore

_DIRECTORY, _FILE = "directory", "file"
_TARGETS = (
    ("dev", _DIRECTORY),
    ("dev/pts", _DIRECTORY),
    ("dev/shm", _DIRECTORY),
    ("dev/console", _FILE),
    ("proc", _DIRECTORY),
    ("sys", _DIRECTORY),
    ("etc/hosts", _FILE),
    ("etc/hostname", _FILE),
    ("etc/resolv.conf", _FILE),
    ("etc/mtab", "/proc/mounts"),
    (".dockerenv", _FILE),
)
"""Docker's; anything else than a directory or a file is the target of a symbolic link."""
_MODE = 0o755
"""Docker's, of the files too."""


def ensure(store: ImageStore, chain_id: str, lowers: Sequence[str]) -> str:
    """The init layer over these layers, of which chain_id is the uppermost; OSError.

    Killed half-way it has left a job in `ingest`, which the next start of the worker takes away.
    It needs no sync: it is names only, which a journal keeps in the order they were made.
    """
    target = store.layer(chain_id) / "init"
    # By way of the layer's short link, as overlay options have a limit.
    path = f"{lowers[0]}/../init"
    if target.is_dir():
        return path
    job = store.new_job()
    try:
        make(job / "init", lowers)
        (job / "init").rename(target)
        job.rmdir()
    except OSError:
        store.discard(job)
        raise
    return path


def make(directory: Path, lowers: Sequence[str]) -> None:
    """Fill a new directory with what is missing in the layers, uppermost first."""
    directory.mkdir()
    made: list[tuple[str, int]] = []
    with View(Overlay(tuple(lowers[1:]), lowers[0], "")) as view:
        _make_directory(view, directory, "", made)
        for path, kind in _TARGETS:
            parent = path.rpartition("/")[0]
            if view.entry(path) is not None:
                continue
            if not _make_directory(view, directory, parent, made):
                continue
            name = directory / path
            if kind == _DIRECTORY:
                if not name.exists():
                    name.mkdir()
                    name.chmod(_MODE)
            elif kind == _FILE:
                name.touch()
                name.chmod(_MODE)
            else:
                name.symlink_to(kind)
        # Last, as every entry that is made in a directory changes its time.
        for path, source in reversed(made):
            _copy_attributes(source, directory / path)


def _make_directory(view: View, directory: Path, path: str, made: list[tuple[str, int]]) -> bool:
    """Have a directory to put targets in; False where the image has something else there."""
    if any(path == known for known, _ in made):
        return True
    source = view.entry(path)
    name = directory / path
    if source is not None:
        if not stat.S_ISDIR(os.fstat(source).st_mode):
            return False
        made.append((path, source))
    if not name.exists():
        name.mkdir()
        name.chmod(_MODE)
    return True


def _copy_attributes(source: int, target: Path) -> None:
    status, link = os.fstat(source), f"/proc/self/fd/{source}"
    os.chown(target, status.st_uid, status.st_gid)
    os.chmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(link):
        # Those say how the image's own layers lie upon each other.
        if not name.startswith("trusted.overlay."):
            os.setxattr(target, name, os.getxattr(link, name))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))

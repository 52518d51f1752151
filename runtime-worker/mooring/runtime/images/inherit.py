"""Directories that a layer implies without describing them take their attributes from below.

An overlay shows the uppermost directory's owner, mode and time: without this, a layer that adds one
file to /home/app would make /home/app root's.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from mooring.runtime.oci.linux import (
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_WITHIN = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS


def inherit(files: Path, implied: Iterable[bytes], lowers: Sequence[Path]) -> None:
    """Give each implied directory in files the attributes it has in the uppermost of lowers."""
    names = list(implied)
    if not names or not lowers:
        return
    roots = [os.open(path, _DIRECTORY) for path in (files, *lowers)]
    try:
        for name in reversed(names):
            _inherit(name, roots[0], roots[1:])
    finally:
        for root in roots:
            os.close(root)


def _inherit(name: bytes, top: int, lowers: Sequence[int]) -> None:
    for lower in lowers:
        try:
            below = openat2(lower, os.fsdecode(name), _DIRECTORY, _WITHIN | RESOLVE_NO_SYMLINKS)
        except FileNotFoundError:
            continue
        except OSError as exc:
            # Something else is there: a whiteout, a link. Nothing shows through it.
            if exc.errno in (errno.ENOTDIR, errno.ELOOP):
                return
            raise
        try:
            target = openat2(top, os.fsdecode(name), _DIRECTORY, _WITHIN)
            try:
                _copy_attributes(below, target)
            finally:
                os.close(target)
        finally:
            os.close(below)
        return


def _copy_attributes(source: int, target: int) -> None:
    found = os.fstat(source)
    os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    for name in os.listxattr(source):
        if not name.startswith("trusted.overlay."):
            with suppress(OSError):
                os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))

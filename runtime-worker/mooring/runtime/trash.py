"""Deleting directories of ours, whatever a container has made of them."""

from __future__ import annotations

import itertools
import logging
import os

logger = logging.getLogger(__name__)

DEEP = 100
"""Levels after which a subtree is moved to the top: no path and no stack gets too long."""

_numbers = itertools.count(1)


def discard(path: str, trash: str) -> bool:
    """Move a file or directory into the trash, on the same file system; False if it is gone."""
    name = os.path.basename(path)
    try:
        os.rename(path, f"{trash}/{name}.{os.getpid()}.{next(_numbers)}")
    except FileNotFoundError:
        return False
    return True


def empty(trash: str) -> None:
    """Delete all that is in the trash now; what can't be deleted is logged and left."""
    left: set[str] = set()
    while names := [name for name in os.listdir(trash) if name not in left]:
        descriptor = os.open(trash, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in names:
                try:
                    _delete(descriptor, name, descriptor, 0)
                except FileNotFoundError:
                    pass  # Somebody else deletes here too.
                except OSError as exc:
                    logger.warning("cannot delete %s/%s: %s", trash, name, exc)
                    left.add(name)
        finally:
            os.close(descriptor)


def _delete(parent: int, name: str, top: int, depth: int) -> None:
    try:
        os.unlink(name, dir_fd=parent)
        return
    except FileNotFoundError:
        return
    except IsADirectoryError:
        pass
    try:
        # Most directories of a container are empty by then, or hold a few files.
        os.rmdir(name, dir_fd=parent)
        return
    except OSError:
        pass
    if depth >= DEEP:
        os.rename(name, f"deep.{os.getpid()}.{next(_numbers)}", src_dir_fd=parent, dst_dir_fd=top)
        return
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=parent)
    try:
        for entry in os.listdir(descriptor):
            _delete(descriptor, entry, top, depth + 1)
    finally:
        os.close(descriptor)
    os.rmdir(name, dir_fd=parent)

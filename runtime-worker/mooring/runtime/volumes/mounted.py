"""Whether something is mounted at a directory. Standard library only."""

from __future__ import annotations

import os


def is_mounted(path: str) -> bool:
    """Also for a bind of the same file system, which os.path.ismount takes for a directory."""
    try:
        return _mount_id(path) != _mount_id(os.path.dirname(path))
    except FileNotFoundError:
        return False


def _mount_id(path: str) -> bytes:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", "rb") as file:
            for line in file:
                if line.startswith(b"mnt_id:"):
                    return line
    finally:
        os.close(descriptor)
    raise OSError(f"the kernel does not say which mount {path} is on")

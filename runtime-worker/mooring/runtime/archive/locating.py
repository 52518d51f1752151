"""Paths as users of `docker cp` write them. Standard library only."""

from __future__ import annotations

import errno
import os
import posixpath
import stat

from mooring.runtime.oci.linux import AT_FDCWD, RESOLVE_NO_MAGICLINKS, openat2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LINKS = 255
"""As many symbolic links as Docker follows."""


def absolute(path: str) -> str:
    """A path from the root, cleaned, but with its last `/` or `/.`, which mean: follow a link."""
    cleaned = "/" + posixpath.normpath("/" + path).lstrip("/")
    if path.rpartition("/")[2] == ".":
        return f"{cleaned.rstrip('/')}/."
    if path.endswith("/") and cleaned != "/":
        return f"{cleaned}/"
    return cleaned


def base(path: str) -> str:
    """The name that what is at an absolute path has in an archive."""
    return path.rstrip("/").rpartition("/")[2] or "/"


class Found:
    """What is at a path: its directory (a descriptor) and its name there."""

    __slots__ = ("directory", "name", "path", "status")

    def __init__(self, path: str) -> None:
        """path as `absolute` gives it; OSError."""
        above, _, name = path.rpartition("/")
        self.path = path
        self.directory = openat2(
            -100, above or "/", os.O_PATH | os.O_DIRECTORY, RESOLVE_NO_MAGICLINKS
        )
        self.name = name or "."
        self.status = os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)

    def describe(self) -> dict[str, Any]:
        """`name size mode mtime_ns target`: what a client is told."""
        target = ""
        if stat.S_ISLNK(self.status.st_mode):
            target = evaluate(self.path)
        return {
            "name": base(self.path),
            "size": self.status.st_size,
            "mode": self.status.st_mode,
            "mtime_ns": self.status.st_mtime_ns,
            "target": target,
        }


def evaluate(path: str) -> str:
    """A path with every link in it followed, as far as there is something."""
    pending = path.split("/")[::-1]
    found: list[str] = []
    links = 0
    while pending:
        name = pending.pop()
        if name in ("", "."):
            continue
        if name == "..":
            del found[-1:]
            continue
        here = "/" + "/".join([*found, name])
        try:
            flags = os.O_PATH | os.O_NOFOLLOW
            descriptor = openat2(AT_FDCWD, here, flags, RESOLVE_NO_MAGICLINKS)
        except OSError:
            found.append(name)
            continue
        try:
            target = os.readlink("", dir_fd=descriptor)
        except OSError:
            found.append(name)
            continue
        finally:
            os.close(descriptor)
        links += 1
        if links > _LINKS:
            raise OSError(errno.ELOOP, "too many links", path)
        if target.startswith("/"):
            found.clear()
        pending += target.split("/")[::-1]
    return "/" + "/".join(found)

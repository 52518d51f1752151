"""Where a container's root comes from: layers under an overlay, or a directory."""

from __future__ import annotations

import os

from .errors import OciError, because
from .mountapi import NewFilesystem, clone_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# fsconfig(2) takes strings of at most 255 bytes.
_LONGEST = 255


class Overlay:
    """Layers (the topmost first) with a directory for what changes; upper "" for read-only."""

    __slots__ = ("lowers", "upper", "volatile", "work")

    def __init__(
        self, lowers: list[str], upper: str = "", work: str = "", *, volatile: bool = False
    ) -> None:
        """volatile: never sync the upper directory to disk, nor on fsync inside."""
        self.lowers = lowers
        self.upper = upper
        self.work = work
        self.volatile = volatile


def open_root(spec: dict[str, Any], bundle: str, rootfs: Overlay | None) -> int:
    """The root filesystem as a detached mount: nobody on the host sees it anywhere."""
    if rootfs is not None:
        try:
            return mount_overlay(rootfs)
        except OSError as error:
            raise because("cannot mount the root filesystem", error) from error
    path = (spec.get("root") or {}).get("path") or ""
    if not path:
        raise OciError("root.path is empty: there is no root filesystem")
    if not path.startswith("/"):
        path = f"{bundle}/{path}"
    try:
        return clone_tree(path, recursive=True)
    except OSError as error:
        raise because(f"cannot use {path} as the root filesystem", error) from error


_one_by_one = True
"""Whether this kernel takes layers one by one, as Linux does from 6.7.

Before 6.5 it takes any option, and refuses an unknown one only when all of it is mounted.
"""
_EINVAL = 22


def mount_overlay(overlay: Overlay) -> int:
    """An overlay as a detached mount; any number of layers from Linux 6.7, about 60 before."""
    global _one_by_one
    if _one_by_one:
        try:
            return _mount(overlay)
        except OSError as error:
            if error.errno != _EINVAL:
                raise
    made = _mount_joined(overlay)
    _one_by_one = False
    return made


def _mount(overlay: Overlay) -> int:
    with _Names() as names, NewFilesystem("overlay") as filesystem:
        _set_options(filesystem, overlay, names)
        for lower in overlay.lowers:
            filesystem.option("lowerdir+", names.short(lower))
        return filesystem.mount()


def _mount_joined(overlay: Overlay) -> int:
    with _Names() as names, NewFilesystem("overlay") as filesystem:
        _set_options(filesystem, overlay, names)
        joined = ":".join(names.short(lower).replace(":", "\\:") for lower in overlay.lowers)
        if len(os.fsencode(joined)) <= _LONGEST:
            filesystem.option("lowerdir", joined)
            return filesystem.mount()
        numbers = ":".join(map(names.number, overlay.lowers))
        here = os.open(".", os.O_PATH | os.O_CLOEXEC)
        os.chdir("/proc/self/fd")
        try:
            filesystem.option("lowerdir", numbers)
            return filesystem.mount()
        finally:
            os.fchdir(here)
            os.close(here)


def _set_options(filesystem: NewFilesystem, overlay: Overlay, names: _Names) -> None:
    filesystem.option("source", "overlay")
    # index=on refuses an upper directory that was used over other lowers (ESTALE), and
    # metacopy=on would leave files without their data in it, to be missed by a diff.
    filesystem.option("index", "off")
    filesystem.option("metacopy", "off")
    if overlay.upper:
        filesystem.option("upperdir", names.short(overlay.upper))
        filesystem.option("workdir", names.short(overlay.work))
        if overlay.volatile:
            filesystem.option("volatile")


class _Names:
    """Paths too long for the kernel, by way of a descriptor while the mount is being made."""

    __slots__ = ("_fds",)

    def __init__(self) -> None:
        self._fds: list[int] = []

    def __enter__(self) -> _Names:
        return self

    def short(self, path: str) -> str:
        """The same directory in at most 255 bytes."""
        if len(os.fsencode(path)) <= _LONGEST:
            return path
        self._fds.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
        return f"/proc/self/fd/{self._fds[-1]}"

    def number(self, path: str) -> str:
        """The same directory, seen from /proc/self/fd."""
        self._fds.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
        return str(self._fds[-1])

    def __exit__(self, *_: object) -> None:
        for fd in self._fds:
            os.close(fd)

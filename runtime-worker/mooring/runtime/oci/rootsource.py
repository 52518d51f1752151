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


def mount_overlay(overlay: Overlay) -> int:
    """An overlay as a detached mount; any number of layers from Linux 6.7."""
    with _Names() as names, NewFilesystem("overlay") as filesystem:
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
        try:
            for lower in overlay.lowers:
                filesystem.option("lowerdir+", names.short(lower))
        except OSError:
            joined = ":".join(names.short(lower).replace(":", "\\:") for lower in overlay.lowers)
            if len(os.fsencode(joined)) > _LONGEST:
                raise
            filesystem.option("lowerdir", joined)
        return filesystem.mount()


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

    def __exit__(self, *_: object) -> None:
        for fd in self._fds:
            os.close(fd)

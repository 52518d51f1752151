"""The files of a container as `docker cp` sees them: its root and its volumes, nothing else.

The process that calls this gets a mount namespace of its own whose root is that view: no procfs,
no sysfs, no devices, no tmpfs of the container's, as in Docker. Whatever links a container makes
meanwhile lead nowhere else. Of a running container the very mount of its root is cloned; of one
that does not run its snapshot is mounted, for reading over a layer that is thrown away. Standard
library only.
"""

from __future__ import annotations

import os

from mooring.runtime.oci.errors import OciError
from mooring.runtime.oci.linux import (
    CLONE_NEWNS,
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    openat2,
    prctl,
    set_capabilities,
    setns,
    unshare,
)
from mooring.runtime.oci.mountapi import NewFilesystem, attach, clone_tree
from mooring.runtime.oci.mountspec import parse
from mooring.runtime.oci.rootfs import Root, detach_from_host
from mooring.runtime.oci.rootsource import Overlay, mount_overlay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PR_SET_DUMPABLE = 4
# chown, dac_override, dac_read_search, fowner, fsetid, mknod, setfcap: what files need.
_CAPABILITIES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 27 | 1 << 31


def enter(job: dict[str, Any], pidfd: int) -> None:
    """Make the view of `job` (`rootfs`, `mounts`, `write`) this process's root; OSError, OciError.

    pidfd: of the container's init, -1 if it does not run.
    """
    prctl(_PR_SET_DUMPABLE, 0)
    mounts = [parse(_plain(mount)) for mount in job["mounts"]]
    trees = [_tree(mount) if mount["type"] == "bind" else None for mount in job["mounts"]]
    host = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    if pidfd >= 0:
        setns(pidfd, CLONE_NEWNS)
        tree = clone_tree("/", recursive=False)
        setns(host, CLONE_NEWNS)
    unshare(CLONE_NEWNS)
    detach_from_host()
    if pidfd < 0:
        tree = _snapshot(job["rootfs"], write=job["write"])
    root = Root(tree)
    root.attach()
    for mount, source in zip(mounts, trees, strict=True):
        try:
            root.mount(mount, source, [])
        except OciError:
            # A running container may have removed the place of a mount.
            if pidfd < 0:
                raise
    root.enter("", readonly=False)
    set_capabilities(_CAPABILITIES, _CAPABILITIES, 0)


def _snapshot(rootfs: dict[str, Any], *, write: bool) -> int:
    lowers, upper = rootfs["lowers"], rootfs["upper"]
    if write:
        return mount_overlay(Overlay(lowers, upper, rootfs["work"]))
    # Reading disturbs no start that comes meanwhile: what has to be made, places of mounts, is
    # made in memory. Nothing of the host's below /sys is needed here.
    with NewFilesystem("tmpfs") as filesystem:
        tmpfs = filesystem.mount()
    place = os.open("/sys", os.O_PATH | os.O_CLOEXEC)
    attach(tmpfs, place)
    os.close(place)
    os.mkdir("/sys/upper", 0o755)
    os.mkdir("/sys/work", 0o755)
    status = os.stat(upper)
    os.chown("/sys/upper", status.st_uid, status.st_gid)
    os.chmod("/sys/upper", status.st_mode & 0o7777)
    os.utime("/sys/upper", ns=(status.st_atime_ns, status.st_mtime_ns))
    return mount_overlay(Overlay([upper, *lowers], "/sys/upper", "/sys/work"))


def _plain(mount: dict[str, Any]) -> dict[str, Any]:
    """Without what is for the container's own access: it is read-only there, not here."""
    return {key: value for key, value in mount.items() if key != "subpath"}


def _tree(mount: dict[str, Any]) -> int:
    recursive = "rbind" in mount["options"]
    if not mount.get("subpath"):
        return clone_tree(mount["source"], recursive=recursive)
    top = os.open(mount["source"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    flags = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
    found = openat2(top, mount["subpath"], os.O_PATH, flags)
    os.close(top)
    return clone_tree("", recursive=recursive, directory=found)

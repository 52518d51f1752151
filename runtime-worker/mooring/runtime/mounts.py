"""Pure: the mounts of a container, Docker's own and the user's, as OCI values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mooring.kit.models.container import HostConfig, MountPoint

from . import defaults


@dataclass(frozen=True, slots=True)
class Files:
    """The three files of the engine that a container sees in /etc; paths on the host."""

    hosts: str
    hostname: str
    resolv: str


def user_mount(point: MountPoint) -> dict[str, Any]:
    """One of the user's mounts as the OCI runtime takes it; images were made overlays before."""
    kind = "bind" if point.type == "volume" else point.type
    result: dict[str, Any] = {
        "destination": point.destination,
        "type": kind,
        "source": "tmpfs" if kind == "tmpfs" else point.source,
        "options": point.options,
    }
    if point.subpath:
        # Not OCI's: below the source, and never out of it whatever links are there.
        result["subpath"] = point.subpath
    return result


def image_mount(point: MountPoint, lowers: Sequence[str]) -> MountPoint:
    """An image as a mount of its own; lowers are its layers, or a part of each, topmost first."""
    if len(lowers) == 1:
        options = ["bind", "rprivate", "ro"]
        return point.model_copy(
            update={"type": "bind", "source": lowers[0], "options": options, "subpath": ""}
        )
    options = ["ro", *(f"lowerdir+={lower}" for lower in lowers)]
    return point.model_copy(
        update={"type": "overlay", "source": "overlay", "options": options, "subpath": ""}
    )


def root_propagation(wanted: Sequence[MountPoint]) -> str:
    """rootfsPropagation: what a bind that is shared or a slave needs of the root; else empty."""
    modes = {item.propagation.removeprefix("r") for item in wanted if item.type == "bind"}
    if "shared" in modes:
        return "shared"
    return "slave" if "slave" in modes else ""


def all_mounts(
    host: HostConfig,
    wanted: Sequence[MountPoint],
    *,
    files: Files | None,
    init: str,
    shm: str,
) -> list[dict[str, Any]]:
    """Every mount in order. shm is the host's path of a shared /dev/shm, empty for one of its own.

    A mount of the user's replaces the default one at the same place.
    """
    taken = {item.destination for item in wanted}
    own = [defaults.PROC, defaults.DEV, defaults.DEVPTS]
    own.append(defaults.sysfs(writable=host.privileged))
    own.append(defaults.cgroup(writable=host.privileged))
    # In the host's IPC namespace, a new mount of mqueue shows the host's queues.
    own.append(defaults.MQUEUE)
    if shm:
        own.append(defaults.bind(shm, "/dev/shm", "rprivate"))
    elif host.ipc_mode != "none":
        own.append(defaults.shm(host.shm_size or defaults.SHM_SIZE))
    mounts = [item for item in own if item["destination"] not in taken]
    user = [user_mount(item) for item in wanted]
    if files is not None:
        access = ("ro",) if host.readonly_rootfs else ()
        for source, destination in (
            (files.resolv, "/etc/resolv.conf"),
            (files.hostname, "/etc/hostname"),
            (files.hosts, "/etc/hosts"),
        ):
            if destination not in taken:
                user.append(defaults.bind(source, destination, "rprivate", *access))
    if init:
        user.append(defaults.bind(init, defaults.INIT_PATH, "rprivate", "ro"))
    # Stable, and parents before what is mounted below them.
    user.sort(key=lambda item: item["destination"].count("/"))
    return mounts + user

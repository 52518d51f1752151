"""Pure: the mounts of a container, Docker's own and the user's, as OCI values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mooring.kit.models.container import HostConfig, MountPoint
from mooring.kit.mountspecs import Bind, Tmpfs

from . import defaults


@dataclass(frozen=True, slots=True)
class Files:
    """The three files of the engine that a container sees in /etc; paths on the host."""

    hosts: str
    hostname: str
    resolv: str


def user_mount(wanted: Bind | Tmpfs) -> dict[str, Any]:
    """One of the user's mounts as the OCI runtime takes it."""
    if isinstance(wanted, Tmpfs):
        return {
            "destination": wanted.destination,
            "type": "tmpfs",
            "source": "tmpfs",
            "options": list(wanted.options),
        }
    options = ["rbind" if wanted.recursive else "bind", wanted.propagation]
    if wanted.read_only:
        # Docker makes submounts read-only too; `rro` is OCI's word for that.
        options.append("rro" if wanted.recursive and wanted.read_only_recursive else "ro")
    return {
        "destination": wanted.destination,
        "type": "bind",
        "source": wanted.source,
        "options": options,
    }


def mount_points(wanted: Sequence[Bind | Tmpfs]) -> list[MountPoint]:
    """What `docker inspect` shows: binds, and the tmpfs mounts given in HostConfig.Mounts."""
    points = []
    for item in wanted:
        if isinstance(item, Bind):
            points.append(
                MountPoint(
                    type="bind",
                    source=item.source,
                    destination=item.destination,
                    mode=item.mode,
                    rw=not item.read_only,
                    propagation=item.propagation,
                )
            )
        elif item.from_mounts:
            writable = "ro" not in item.options
            points.append(MountPoint(type="tmpfs", destination=item.destination, rw=writable))
    return points


def root_propagation(wanted: Sequence[Bind | Tmpfs]) -> str:
    """rootfsPropagation: what a bind that is shared or a slave needs of the root; else empty."""
    modes = {item.propagation.removeprefix("r") for item in wanted if isinstance(item, Bind)}
    if "shared" in modes:
        return "shared"
    return "slave" if "slave" in modes else ""


def all_mounts(
    host: HostConfig,
    wanted: Sequence[Bind | Tmpfs],
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

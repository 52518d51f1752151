"""Pure: what every container gets unless its options say otherwise, the values of Docker."""

from __future__ import annotations

from typing import Any, Final

from .oci import template

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHM_SIZE: Final = 64 << 20
"""Bytes."""
INIT_PATH: Final = "/sbin/docker-init"
OCI_VERSION: Final = "1.2.0"


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


PROC: Final = template.PROC
DEV: Final = template.DEV
DEVPTS: Final = template.DEVPTS
MQUEUE: Final = template.MQUEUE


def sysfs(*, writable: bool) -> dict[str, Any]:
    """/sys; its content depends on the network namespace it is mounted in."""
    return _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "rw" if writable else "ro")


def cgroup(*, writable: bool) -> dict[str, Any]:
    """/sys/fs/cgroup, of whichever version the host has."""
    access = "rw" if writable else "ro"
    return _mount("/sys/fs/cgroup", "cgroup", "cgroup", access, "nosuid", "noexec", "nodev")


def shm(size: int) -> dict[str, Any]:
    """/dev/shm of the container's own; size in bytes."""
    options = ("nosuid", "noexec", "nodev", "mode=1777", f"size={size}")
    return _mount("/dev/shm", "tmpfs", "shm", *options)


def bind(source: str, destination: str, *options: str) -> dict[str, Any]:
    """A file or directory of the host, with what is mounted below it."""
    return _mount(destination, "bind", source, "rbind", *options)


ALLOW_ALL_DEVICES: Final = {"allow": True, "access": "rwm"}
DEVICE_RULES: Final = template.DEVICE_RULES
DEFAULT_DEVICES: Final = frozenset(
    f"/dev/{name}"
    for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "console")
)
"""The nodes that the OCI runtime makes in every container."""

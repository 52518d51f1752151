"""Pure: what every container gets unless its options say otherwise, the values of Docker."""

from __future__ import annotations

from typing import Any, Final

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHM_SIZE: Final = 64 << 20
"""Bytes."""
INIT_PATH: Final = "/sbin/docker-init"
OCI_VERSION: Final = "1.2.0"


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


PROC: Final = _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev")
DEV: Final = _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k")
DEVPTS: Final = _mount(
    "/dev/pts",
    "devpts",
    "devpts",
    "nosuid",
    "noexec",
    "newinstance",
    "ptmxmode=0666",
    "mode=0620",
    "gid=5",
)
MQUEUE: Final = _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev")


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


def _rule(kind: str, major: int | None, minor: int | None, access: str) -> dict[str, Any]:
    rule: dict[str, Any] = {"allow": True, "type": kind, "access": access}
    if major is not None:
        rule["major"] = major
    if minor is not None:
        rule["minor"] = minor
    return rule


DENY_ALL_DEVICES: Final = {"allow": False, "access": "rwm"}
ALLOW_ALL_DEVICES: Final = {"allow": True, "access": "rwm"}
DEVICE_RULES: Final = [
    DENY_ALL_DEVICES,
    # Making a node is harmless as long as it cannot be opened.
    _rule("c", None, None, "m"),
    _rule("b", None, None, "m"),
    _rule("c", 1, 3, "rwm"),  # null
    _rule("c", 1, 5, "rwm"),  # zero
    _rule("c", 1, 7, "rwm"),  # full
    _rule("c", 1, 8, "rwm"),  # random
    _rule("c", 1, 9, "rwm"),  # urandom
    _rule("c", 5, 0, "rwm"),  # tty
    _rule("c", 5, 1, "rwm"),  # console
    _rule("c", 5, 2, "rwm"),  # ptmx
    _rule("c", 136, None, "rwm"),  # pts/*
]
DEFAULT_DEVICES: Final = frozenset(
    f"/dev/{name}"
    for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "console")
)
"""The nodes that the OCI runtime makes in every container."""

"""What nearly every container has in the same way, and can therefore be made before it is known.

These are the values of Docker's default configuration. A container that differs in one of them
gets that part made when it starts instead.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROC = {
    "destination": "/proc",
    "type": "proc",
    "source": "proc",
    "options": ["nosuid", "noexec", "nodev"],
}
DEV = {
    "destination": "/dev",
    "type": "tmpfs",
    "source": "tmpfs",
    "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
}
DEVPTS = {
    "destination": "/dev/pts",
    "type": "devpts",
    "source": "devpts",
    "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
}
MQUEUE = {
    "destination": "/dev/mqueue",
    "type": "mqueue",
    "source": "mqueue",
    "options": ["nosuid", "noexec", "nodev"],
}
SHM = {
    "destination": "/dev/shm",
    "type": "tmpfs",
    "source": "shm",
    "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"],
}
CGROUP = {
    "destination": "/sys/fs/cgroup",
    "type": "cgroup",
    "source": "cgroup",
    "options": ["ro", "nosuid", "noexec", "nodev"],
}
MASKED_IN_PROC = frozenset(
    f"/proc/{name}"
    for name in (
        "acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "sched_debug", "scsi",
        "timer_list", "timer_stats",
    )
)  # fmt: skip
READONLY_IN_PROC = frozenset(
    f"/proc/{name}" for name in ("bus", "fs", "irq", "sys", "sysrq-trigger")
)


def _rule(kind: str, major: int | None, minor: int | None, access: str) -> dict[str, Any]:
    rule: dict[str, Any] = {"allow": True, "type": kind, "access": access}
    if major is not None:
        rule["major"] = major
    if minor is not None:
        rule["minor"] = minor
    return rule


DEVICE_RULES: list[dict[str, Any]] = [
    {"allow": False, "access": "rwm"},
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


def same(mount: dict[str, Any], template: dict[str, Any]) -> bool:
    """Whether two mounts of a configuration come out the same."""
    return (
        mount.get("destination") == template["destination"]
        and mount.get("type") == template["type"]
        and set(mount.get("options") or ()) == set(template["options"])
    )

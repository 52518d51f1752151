"""Capabilities by name: which there are, and how a user may write them."""

from __future__ import annotations

from collections.abc import Iterable

from .errors import InvalidParameter

# In the kernel's order: the position is the capability's number (linux/capability.h).
NAMES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
ALL = "ALL"

DEFAULT = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
"""What a container gets when nothing is said: Docker's set."""

_known = frozenset(NAMES)


def normalise(names: Iterable[str], option: str) -> list[str]:
    """`net_admin` as CAP_NET_ADMIN; InvalidParameter names the option for what does not exist."""
    result = []
    for given in names:
        name = given.upper()
        if name != ALL:
            if not name.startswith("CAP_"):
                name = "CAP_" + name
            if name not in _known:
                raise InvalidParameter(f'invalid {option}: unknown capability: "{name}"')
        result.append(name)
    return result


def from_mask(mask: int) -> tuple[str, ...]:
    """The names of a mask as /proc/<pid>/status shows it; newer ones than we know are left out."""
    return tuple(name for number, name in enumerate(NAMES) if mask >> number & 1)


def chosen(
    add: Iterable[str], drop: Iterable[str], *, privileged: bool, available: Iterable[str]
) -> tuple[str, ...]:
    """The set that --cap-add and --cap-drop choose, of what the host has to give."""
    added, dropped = normalise(add, "CapAdd"), normalise(drop, "CapDrop")
    have = tuple(available)
    if privileged:
        return have
    if ALL in added:
        return tuple(name for name in have if name not in dropped)
    if ALL in dropped:
        wanted = list(added)
    else:
        wanted = [name for name in DEFAULT if name not in dropped and name in have]
        wanted += [name for name in added if name not in wanted]
    for name in wanted:
        if name not in have:
            raise InvalidParameter(f"capability {name} is not available to the engine on this host")
    return tuple(wanted)

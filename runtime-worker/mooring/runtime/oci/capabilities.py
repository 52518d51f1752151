"""Capabilities by name, and the five sets of a process."""

from __future__ import annotations

from .errors import OciError, because
from .linux import (
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAP_AMBIENT_RAISE,
    PR_CAPBSET_DROP,
    permitted_capabilities,
    prctl,
    set_capabilities,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# In the order of their numbers in the kernel.
NAMES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
    "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
    "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
    "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip
_BITS = {f"CAP_{name}": 1 << number for number, name in enumerate(NAMES)}
ALL = (1 << len(NAMES)) - 1


def mask(names: list[str] | None) -> int:
    """A list of CAP_* names as a bit mask."""
    result = 0
    for name in names or ():
        bit = _BITS.get(name.upper())
        if bit is None:
            raise OciError(f"unknown capability {name}")
        result |= bit
    return result


def make_effective() -> None:
    """Take back into force what is permitted: setresuid(2) to a user leaves only that."""
    own = permitted_capabilities()
    set_capabilities(own, own, 0)


class CapabilitySets:
    """What a process may, and may become: the five sets of process.capabilities as masks."""

    __slots__ = ("ambient", "bounding", "effective", "inheritable", "permitted")

    def __init__(self, capabilities: dict[str, Any]) -> None:
        self.bounding = mask(capabilities.get("bounding"))
        self.effective = mask(capabilities.get("effective"))
        self.inheritable = mask(capabilities.get("inheritable"))
        self.permitted = mask(capabilities.get("permitted"))
        # The kernel demands it: ambient lies within permitted and inheritable.
        self.ambient = mask(capabilities.get("ambient")) & self.permitted & self.inheritable

    def bound(self) -> None:
        """Drop from the bounding set whatever is not in it; needs SETPCAP."""
        for number in range(64):
            if self.bounding & (1 << number):
                continue
            try:
                prctl(PR_CAPBSET_DROP, number)
            except OSError as error:
                if error.errno == 22:
                    break  # the last one that this kernel knows was the one before
                raise because("cannot drop a capability", error) from error

    def take(self) -> None:
        """Become what the sets say, as far as we have it ourselves; there is no way back."""
        own = permitted_capabilities()
        try:
            set_capabilities(self.effective & own, self.permitted & own, self.inheritable & own)
        except OSError as error:
            raise because("cannot set the capabilities", error) from error
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
        for number in range(len(NAMES)):
            if self.ambient & own & (1 << number):
                prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)

"""The `mounts` of an OCI configuration as values: which attributes, which options, what kind."""

from __future__ import annotations

from .errors import OciError
from .mountapi import (
    MOUNT_ATTR__ATIME,
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW,
    MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_RELATIME,
    MOUNT_ATTR_STRICTATIME,
    MS_PRIVATE,
    MS_SHARED,
    MS_SLAVE,
    MS_UNBINDABLE,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Option to (attributes set, attributes cleared).
ATTRIBUTES = {
    "ro": (MOUNT_ATTR_RDONLY, 0),
    "rw": (0, MOUNT_ATTR_RDONLY),
    "nosuid": (MOUNT_ATTR_NOSUID, 0),
    "suid": (0, MOUNT_ATTR_NOSUID),
    "nodev": (MOUNT_ATTR_NODEV, 0),
    "dev": (0, MOUNT_ATTR_NODEV),
    "noexec": (MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, MOUNT_ATTR_NOEXEC),
    "nodiratime": (MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, MOUNT_ATTR_NODIRATIME),
    "nosymfollow": (MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, MOUNT_ATTR_NOSYMFOLLOW),
    "relatime": (MOUNT_ATTR_RELATIME, MOUNT_ATTR__ATIME),
    "norelatime": (MOUNT_ATTR_RELATIME, MOUNT_ATTR__ATIME),
    "atime": (MOUNT_ATTR_RELATIME, MOUNT_ATTR__ATIME),
    "noatime": (MOUNT_ATTR_NOATIME, MOUNT_ATTR__ATIME),
    "strictatime": (MOUNT_ATTR_STRICTATIME, MOUNT_ATTR__ATIME),
    "nostrictatime": (MOUNT_ATTR_RELATIME, MOUNT_ATTR__ATIME),
}
PROPAGATION = {
    "private": MS_PRIVATE,
    "shared": MS_SHARED,
    "slave": MS_SLAVE,
    "unbindable": MS_UNBINDABLE,
}
# Words that ask for nothing, or for what can't be seen.
_NOTHING = {"defaults", "silent", "loud"}
_UNSUPPORTED = {"idmap", "ridmap", "remount", "iversion", "noiversion"}


class Mount:
    """One mount: where, what, and with which attributes."""

    __slots__ = (
        "bind",
        "clear",
        "copy_up",
        "destination",
        "fstype",
        "options",
        "propagation",
        "recursive",
        "recursive_clear",
        "recursive_set",
        "set",
        "source",
    )

    def __init__(self, destination: str, fstype: str, source: str) -> None:
        self.destination = destination
        self.fstype = fstype
        self.source = source
        self.bind = fstype == "bind"
        self.recursive = False
        self.copy_up = False
        self.set = self.clear = self.recursive_set = self.recursive_clear = 0
        self.options: list[tuple[str, str | None]] = []
        self.propagation: list[tuple[int, bool]] = []

    def attribute(self, set_: int, clear: int, recursive: bool) -> None:
        """A later option wins over an earlier one."""
        if recursive:
            self.recursive_set = self.recursive_set & ~clear | set_
            self.recursive_clear = self.recursive_clear & ~set_ | clear
        else:
            self.set = self.set & ~clear | set_
            self.clear = self.clear & ~set_ | clear


def parse(mount: dict[str, Any]) -> Mount:
    """A mount of the configuration as a value; OciError names the option that can't be."""
    destination = mount.get("destination") or ""
    if not destination:
        raise OciError("a mount has no destination")
    if not destination.startswith("/"):
        destination = "/" + destination
    if mount.get("uidMappings") or mount.get("gidMappings"):
        raise OciError(f"mount {destination}: ID-mapped mounts are not supported")
    result = Mount(destination, mount.get("type") or "", mount.get("source") or "")
    options = mount.get("options") or ()
    for option in options:
        _apply(result, option)
    if result.bind:
        if not result.source:
            raise OciError(f"bind mount {destination} has no source")
        if result.options:
            key = result.options[0][0]
            raise OciError(f"mount {destination}: unknown option {key} of a bind mount")
    elif not result.fstype:
        raise OciError(f"mount {destination} has no type")
    return result


def _apply(mount: Mount, option: str) -> None:
    if option in ("bind", "rbind"):
        mount.bind = True
        mount.recursive = option == "rbind"
    elif option in ATTRIBUTES:
        mount.attribute(*ATTRIBUTES[option], recursive=False)
    elif option in PROPAGATION:
        mount.propagation.append((PROPAGATION[option], False))
    elif option in _NOTHING:
        pass
    elif option in _UNSUPPORTED:
        raise OciError(f"mount {mount.destination}: option {option} is not supported")
    elif option == "tmpcopyup":
        mount.copy_up = True
    elif option[:1] == "r" and option[1:] in ATTRIBUTES:
        mount.attribute(*ATTRIBUTES[option[1:]], recursive=True)
    elif option[:1] == "r" and option[1:] in PROPAGATION:
        mount.propagation.append((PROPAGATION[option[1:]], True))
    else:
        key, equals, value = option.partition("=")
        mount.options.append((key, value if equals else None))


def propagation_of_root(name: str) -> int:
    """linux.rootfsPropagation as a flag; slave when nothing is said."""
    word = name.removeprefix("r") if name else "slave"
    if word not in PROPAGATION:
        raise OciError(f"unknown linux.rootfsPropagation {name}")
    return PROPAGATION[word]


def is_bind(mount: dict[str, Any]) -> bool:
    """Whether a mount of the configuration shows a part of the host's tree."""
    options = mount.get("options") or ()
    return mount.get("type") == "bind" or "bind" in options or "rbind" in options

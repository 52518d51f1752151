"""Which namespaces a configuration asks for: new ones, those of a path, or the host's."""

from __future__ import annotations

from .errors import OciError
from .linux import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FLAGS = {
    "mount": CLONE_NEWNS,
    "cgroup": CLONE_NEWCGROUP,
    "uts": CLONE_NEWUTS,
    "ipc": CLONE_NEWIPC,
    "user": CLONE_NEWUSER,
    "pid": CLONE_NEWPID,
    "network": CLONE_NEWNET,
}
ALL = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET


class Namespaces:
    """new: CLONE_NEW* flags of namespaces to make; joined: flag to path of those that exist."""

    __slots__ = ("joined", "new")

    def __init__(self, spec: dict[str, Any]) -> None:
        self.new = 0
        self.joined: dict[int, str] = {}
        seen = 0
        for entry in (spec.get("linux") or {}).get("namespaces") or ():
            kind, path = entry.get("type") or "", entry.get("path") or ""
            flag = FLAGS.get(kind)
            if flag is None:
                raise OciError(f"namespace type {kind!r} is not supported")
            if flag == CLONE_NEWUSER:
                raise OciError("user namespaces are not supported")
            if seen & flag:
                raise OciError(f"namespace type {kind} is named twice")
            seen |= flag
            if path:
                self.joined[flag] = path
            else:
                self.new |= flag
        if not self.new & CLONE_NEWNS:
            raise OciError("a container needs a mount namespace of its own")

    def has(self, flag: int) -> bool:
        """Whether it is not the host's."""
        return bool(self.new & flag) or flag in self.joined

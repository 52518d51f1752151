"""The flags of a seccomp filter; the filter itself comes compiled."""

from __future__ import annotations

from .errors import OciError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FLAGS = {
    # One thread only: TSYNC has nobody to synchronise with.
    "SECCOMP_FILTER_FLAG_TSYNC": 0,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
}


def filter_flags(spec: dict[str, Any]) -> int:
    """linux.seccomp.flags as seccomp(2) takes them."""
    profile = (spec.get("linux") or {}).get("seccomp") or {}
    result = 0
    for name in profile.get("flags") or ():
        if name not in FLAGS:
            raise OciError(f"seccomp flag {name} is not supported")
        result |= FLAGS[name]
    return result

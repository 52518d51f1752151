"""The init for `--init`: a static binary of the machine, bound into the container."""

from __future__ import annotations

import os
import struct
from functools import cache

from mooring.kit.errors import NotSupported

CANDIDATES = ("docker-init", "tini-static", "catatonit")
DIRECTORIES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/usr/libexec/docker")
_PT_INTERP = 3


@cache
def find() -> str:
    """Its path on the host; NotSupported, naming packages, if there is none."""
    for name in CANDIDATES:
        for directory in DIRECTORIES:
            path = f"{directory}/{name}"
            if os.access(path, os.X_OK) and is_static(path):
                return path
    raise NotSupported(
        "option Init (--init) needs a static init on the host:"
        " install the package tini or catatonit"
    )


def is_static(path: str) -> bool:
    """Whether an executable needs no loader, which the container's image may not have."""
    with open(path, "rb") as file:
        head = file.read(64)
        if head[:5] != b"\x7fELF\x02":
            return False
        (offset,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        file.seek(offset)
        table = file.read(size * count)
    kinds = [struct.unpack_from("<I", table, index * size)[0] for index in range(count)]
    return _PT_INTERP not in kinds

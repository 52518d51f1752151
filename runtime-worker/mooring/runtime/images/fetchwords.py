"""Why a URL could not be had, as Docker says it. Standard library only, and little of that."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

_PORTS = {"http": 80, "https": 443}


def get_failed(url: str, exc: BaseException) -> str:
    """`Get "URL": why`."""
    # urllib wraps what went wrong.
    why = getattr(exc, "reason", exc)
    return f'Get "{url}": {_why(url, why)}'


def _why(url: str, why: object) -> str:
    try:
        parts = urlsplit(url)
        address = f"{parts.hostname}:{parts.port or _PORTS.get(parts.scheme, 0)}"
    except ValueError:
        return str(why)
    if isinstance(why, TimeoutError):
        return f"dial tcp {address}: i/o timeout"
    if isinstance(why, socket.gaierror):
        return f"dial tcp: lookup {parts.hostname}: no such host"
    if isinstance(why, OSError) and why.errno:
        return f"dial tcp {address}: connect: {os.strerror(why.errno).lower()}"
    return str(why)

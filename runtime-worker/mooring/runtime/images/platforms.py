"""Platforms as `os/architecture/variant`, in the words of the OCI image specification."""

from __future__ import annotations

import os
import re
from functools import cache
from typing import NamedTuple

from mooring.kit.errors import InvalidParameter

_COMPONENT = re.compile(r"[A-Za-z0-9_-]+")
_MACHINES = {
    "x86_64": "amd64",
    "i386": "386",
    "i686": "386",
    "aarch64": "arm64",
    "armv7l": "arm",
    "loongarch64": "loong64",
}
_ALIASES = {"x86_64": "amd64", "x86-64": "amd64", "i386": "386", "aarch64": "arm64"}


class Platform(NamedTuple):
    """What an image is made for."""

    architecture: str
    variant: str = ""


@cache
def host() -> Platform:
    """The platform of this machine."""
    machine = os.uname().machine
    return Platform(_MACHINES.get(machine, machine))


def parse(text: str) -> Platform:
    """The platform a user asks for, the host's if none; InvalidParameter."""
    if not text:
        return host()
    parts = text.split("/")
    for part in parts:
        if not _COMPONENT.fullmatch(part):
            raise InvalidParameter(
                f'"{part}" is an invalid component of "{text}": platform specifier component '
                f'must match "^[A-Za-z0-9_-]+$": invalid argument'
            )
    if len(parts) > 3:
        raise InvalidParameter(f'"{text}": cannot parse platform specifier: invalid argument')
    system, architecture, variant = ([p.lower() for p in parts] + ["", ""])[:3]
    if system != "linux":
        raise InvalidParameter("operating system is not supported")
    return Platform(_ALIASES.get(architecture, architecture) or host().architecture, variant)

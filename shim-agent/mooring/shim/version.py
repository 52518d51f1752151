"""Which code a shim runs: by it an agent knows one that is older. Standard library only."""

from __future__ import annotations

import _imp
import os
import sys

import mooring

SHIM = (
    *("adopt", "beginning", "control", "execs", "frames", "helper", "log", "loop", "operations"),
    *("packets", "pins", "processes", "rawsignal", "record", "rehearsal", "shim", "staging"),
    *("stdin", "stdio", "version", "warm"),
)
"""The modules of this package that a shim consists of; the others are the agent's."""


def digest() -> str:
    """16 hex digits of the interpreter and of all code that a shim forked now would consist of.

    It is read from the files: whoever wants to know its own has to ask as soon as it has imported
    them. OSError.
    """
    together = [sys.version.encode()]
    for path in files():
        with open(path, "rb", 0) as file:
            together.append(_imp.source_hash(0, file.read()))
    return _imp.source_hash(0, b"".join(together)).hex()


def files() -> list[str]:
    """The files of that code, in an order that is always the same."""
    found = [_find(f"shim/{name}.py") for name in SHIM]
    oci = _find("runtime/oci")
    found += [f"{oci}/{name}" for name in sorted(os.listdir(oci)) if name.endswith(".py")]
    return [*found, _find("runtime/launcher.py")]


def _find(name: str) -> str:
    for root in mooring.__path__:
        if os.path.exists(path := f"{root}/{name}"):
            return path
    raise FileNotFoundError(f"mooring/{name}")

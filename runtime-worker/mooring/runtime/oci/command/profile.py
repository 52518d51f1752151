"""linux.seccomp of a configuration, compiled. Only here: a shim is given its filter compiled."""

from __future__ import annotations

import json
import os
from typing import Any

from mooring.runtime.oci.errors import OciError


def compile_profile(spec: dict[str, Any]) -> bytes | None:
    """The BPF program of the configuration's filter; None if it has none."""
    profile = (spec.get("linux") or {}).get("seccomp")
    if not profile:
        return None
    if profile.get("listenerPath"):
        raise OciError("linux.seccomp.listenerPath is not supported")
    from mooring.kit.errors import EngineError
    from mooring.runtime.seccomp.bpf import program
    from mooring.runtime.seccomp.compiler import select
    from mooring.runtime.seccomp.numbers import resolve

    try:
        text = json.dumps({key: value for key, value in profile.items() if key != "flags"})
        return program(select(text, frozenset(), os.uname().machine), resolve)
    except EngineError as error:
        raise OciError(f"linux.seccomp: {error.message}") from error

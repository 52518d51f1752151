"""What an engine has in the kernel and with its process manager, beside what containers own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from tests.engine.harness import Engine

from .installed import Installed

KEEPS = ("shim-agent", "network", "runtime")
"""The services that have descriptors kept for them, each for something of a container.

The gateway keeps pipes for as many sessions as there were at one time; sessions are counted."""
_SLOT = 8192
"""Bytes of a session in the gateway's memory, the first of which says whether it counts."""


def traces(engine: Engine) -> Counter[str]:
    """How much there is of each kind."""
    found: Counter[str] = Counter()
    for service, count in stored(engine).items():
        found[f"descriptors kept for {service}"] = count
    with contextlib.suppress(OSError, KeyError, StopIteration):
        found["sessions"] = _sessions(engine.pids()["gateway"])
    with contextlib.suppress(OSError, KeyError):
        found["namespaces of the worker"] = _namespaces(engine.pids()["runtime"])
    found += links(engine.instance, engine.bridge)
    for record in _table(engine.instance):
        for kind in ("set", "map"):
            if kind in record:
                name, elements = record[kind]["name"], record[kind].get("elem", [])
                found[f"elements of {name}"] = len(elements)
    known = {record["shim_pid"] for _, record in shims(engine)}
    for entry in set(filter(str.isdigit, os.listdir("/proc"))) - set(map(str, known)):
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{entry}/comm").read_text().strip()
            if name.startswith("mooring-") and _belongs(entry, engine):
                found[f"processes {name}"] += 1
    return found


def links(instance: str, bridge: str, net: Path = Path("/sys/class/net")) -> Counter[str]:
    """The bridges of its networks and what is connected to one of them; bridge: the default one.

    A veth that is connected to nothing may be another engine's: of those, see `_namespaces`.
    """
    found: Counter[str] = Counter()
    ours = {bridge}
    for path in net.iterdir():
        with contextlib.suppress(OSError):
            if (path / "ifalias").read_text().startswith(f"mooring:{instance}:"):
                ours.add(path.name)
                found["links of networks"] += 1
    for path in net.iterdir():
        with contextlib.suppress(OSError):
            if os.path.basename(os.readlink(path / "master")) in ours:
                found["links on networks"] += 1
    return found


def _namespaces(worker: int) -> int:
    """How many network namespaces the worker keeps: those of sandboxes that nobody has yet."""
    count = 0
    for path in Path(f"/proc/{worker}/fd").iterdir():
        with contextlib.suppress(OSError):
            count += os.readlink(path).startswith("net:")
    return count


def stored(engine: Engine) -> dict[str, int]:
    """How many descriptors the process manager keeps for each service."""
    if isinstance(engine, Installed):
        return engine.kept(*KEEPS)
    listed = {service["name"]: service["stored"] for service in engine.status()["services"]}
    return {service: listed.get(service, 0) for service in KEEPS}


def shims(engine: Engine) -> list[tuple[Path, dict[str, int]]]:
    """The run directories there are, and the shim.json in each."""
    found = []
    for path in sorted((engine.run / "shims").glob("[!.]*/shim.json")):
        with contextlib.suppress(OSError, ValueError):
            found.append((path.parent, json.loads(path.read_text())))
    return found


def _sessions(gateway: int) -> int:
    """How many clients it is to go on with."""
    descriptors = Path(f"/proc/{gateway}/fd").iterdir()
    table = next(path for path in descriptors if "mooring-sessions" in os.readlink(path))
    return sum(map(bool, table.read_bytes()[::_SLOT]))


def _table(instance: str) -> list[dict[str, dict[str, Any]]]:
    command = ["nft", "-j", "list", "ruleset"]
    out = subprocess.run(command, capture_output=True, text=True).stdout
    records = json.loads(out)["nftables"] if out else []
    return [r for r in records if any(v.get("table") == instance for v in r.values())]


def _belongs(pid: str, engine: Engine) -> bool:
    """Whether a process is this engine's, not another one's on the same machine."""
    said = Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
    # A shim works in its run directory.
    said += os.fsencode(os.readlink(f"/proc/{pid}/cwd"))
    return any(mark.encode() in said for mark in engine.marks())


def more(before: Counter[str], after: Counter[str]) -> list[str]:
    """What there is more of than before."""
    return [
        f"{what}: {count}, {before[what]} before"
        for what, count in sorted(after.items())
        if count > before[what]
    ]

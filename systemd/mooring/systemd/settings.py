"""What the units are written for: directories, addresses, the programs' place."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import mooring
from mooring.kit.config import DEFAULT_FILE, Settings, parse_host

DEFAULT_PREFIX = Path("/usr/local")
"""systemd, systemd-sysusers and systemd-tmpfiles read `lib/…` below it."""
GROUP = "mooring"
"""Whose members may use the API's unix socket."""
SERVICES = ("nats", "lifecycle", "runtime", "shim-agent", "gateway")
"""In the order in which they are started."""
ON_DEMAND = ("network",)
"""Started by a connection to their socket, which is there as long as the engine is."""
TARGET = "mooring.target"
CONTAINERS, SHIMS = "mooring-containers.service", "mooring-shims.service"
SLICE = "mooring.slice"
CONTAINER_SLICE = "mooring-containers.slice"
"""Where each long-lived container has a unit, see mooring.shim.units."""
_WANTED_FILES = 65536
_HOMES = ("/home/", "/root/", "/run/user/")
_TEMPORARY = ("/tmp/", "/var/tmp/")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where an installation puts its files."""

    prefix: Path

    @property
    def units(self) -> Path:
        """Where the units go."""
        return self.prefix / "lib/systemd/system"

    @property
    def sysusers(self) -> Path:
        """Which users are made at boot."""
        return self.prefix / "lib/sysusers.d/mooring.conf"

    @property
    def tmpfiles(self) -> Path:
        """Which directories are made at boot."""
        return self.prefix / "lib/tmpfiles.d/mooring.conf"


ACTIVATORS = tuple(f"mooring-{name}.socket" for name in ON_DEMAND)
"""The sockets of the services on demand; `sockets` are the gateway's."""


def service(name: str) -> str:
    """The unit of a service."""
    return f"mooring-{name}.service"


def sockets(settings: Settings) -> dict[str, str]:
    """The socket units that these settings need, with the ListenStream lines of each."""
    found: dict[str, list[str]] = {}
    for host in settings.host:
        kind, address, port = parse_host(host)
        if kind == "unix":
            unit, text = "mooring-gateway.socket", address
        else:
            unit = "mooring-gateway-tcp.socket"
            text = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        found.setdefault(unit, []).append(f"ListenStream={text}")
    return {unit: "\n".join(lines) for unit, lines in found.items()}


def files(settings: Settings, layout: Layout, config: Path = DEFAULT_FILE) -> dict[Path, str]:
    """Every file of an installation and its content."""
    listen = sockets(settings)
    hardened = harden(_template("hardened").rstrip("\n"), program_directories())
    values = {
        "BIN": str(Path(sys.executable).parent),
        "PYTHON": sys.executable,
        "CONFIG": str(config),
        "STATE": str(settings.state_dir),
        "RUN": str(settings.run_dir),
        "GROUP": GROUP,
        "SOCKETS": " ".join(listen),
        "NOFILE": str(open_files()),
        "HARDENED": hardened,
    }
    found: dict[Path, str] = {}
    for name in _templates():
        match Path(name).suffix:
            case ".sysusers":
                path = layout.sysusers
            case ".tmpfiles":
                path = layout.tmpfiles
            case ".socket" if name not in listen and name not in ACTIVATORS:
                continue
            case ".socket" | ".service" | ".slice" | ".target":
                path = layout.units / name
            case _:
                continue
        text = _template(name)
        if name in listen:
            text = text.replace("ListenStream=@ADDRESS@", listen[name])
        for key, value in values.items():
            text = text.replace(f"@{key}@", value)
        found[path] = text
    return found


def harden(directives: str, program: Iterable[str]) -> str:
    """The directives, but so that the program's own directories can be seen.

    What lies in a home or a directory for temporary files would be hidden from its services.
    """
    hidden = sorted({path for path in program if path.startswith((*_HOMES, *_TEMPORARY))})
    if any(path.startswith(_HOMES) for path in hidden):
        directives = directives.replace("ProtectHome=yes", "ProtectHome=tmpfs")
    return "\n".join([directives, *(f"BindReadOnlyPaths={path}" for path in hidden)])


def program_directories() -> set[str]:
    """Where the interpreter and the packages of this program are."""
    roots = {os.path.dirname(path) for path in mooring.__path__}
    return {os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, *roots)} | roots


def open_files() -> int:
    """How many descriptors a service may have: what it wants, or what this host lets it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _WANTED_FILES if hard == resource.RLIM_INFINITY else min(_WANTED_FILES, hard)


def is_systemd() -> bool:
    """Whether systemd runs this host (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def _templates() -> Iterator[str]:
    folder = resources.files("mooring.systemd") / "units"
    return (entry.name for entry in folder.iterdir())


def _template(name: str) -> str:
    return (resources.files("mooring.systemd") / "units" / name).read_text()

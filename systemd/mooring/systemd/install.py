"""Putting the engine on a systemd host, replacing it service by service, taking it away again."""

from __future__ import annotations

import compileall
import contextlib
import os
import subprocess
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import mooring
from mooring.kit.config import DEFAULT_FILE, Settings, load
from mooring.kit.ending import ending

from . import purge as purging
from . import shims
from .manager import Manager, ManagerError
from .settings import (
    ACTIVATORS,
    CONTAINER_SLICE,
    CONTAINERS,
    ON_DEMAND,
    SERVICES,
    SHIMS,
    SLICE,
    TARGET,
    Layout,
    files,
    is_systemd,
    service,
    sockets,
)

Say = Callable[[str], None]
CGROUP = f"/{SLICE}/{CONTAINERS}"
_DEFAULTS: dict[str, object] = {"cgroup_parent": CGROUP}
REPLACED = ("lifecycle", "shim-agent", "runtime", "gateway")
"""In the order in which an upgrade replaces them. Agent and gateway are each a short pause for who
is attached: the worker is between them, so that one pause is over before the other begins."""


def install(
    layout: Layout, given: Mapping[str, object], say: Say, config: Path = DEFAULT_FILE
) -> Settings:
    """Lay everything down, enable it and start it; repeated, it brings things up to date."""
    _check_host()
    compile_program()
    write_config(config, given)
    settings = load(environ={}, file=config)
    say(f"settings in {config}")
    for path, text in files(settings, layout, config).items():
        _write(path, text)
    say(f"units in {layout.units}")
    _command("systemd-sysusers", str(layout.sysusers))
    _command("systemd-tmpfiles", "--create", str(layout.tmpfiles))
    with Manager() as manager:
        manager.reload()
        manager.enable([TARGET, *ACTIVATORS, *sockets(settings)])
        for unit in (*ACTIVATORS, *sockets(settings)):
            manager.start(unit)
        for name in SERVICES:
            say(f"starting {service(name)}")
            manager.start(service(name))
        manager.start(TARGET)
    return settings


def replace(
    layout: Layout, say: Say, config: Path = DEFAULT_FILE, *, every_shim: bool = False
) -> Settings:
    """Replace the services one by one by what is installed now; containers and clients stay.

    The shims of other code are replaced too, or every_shim.
    """
    _check_host()
    compile_program()
    settings = load(environ={}, file=config)
    for path, text in files(settings, layout, config).items():
        _write(path, text)
    with Manager() as manager:
        manager.reload()
        # What an earlier version did not have: the others count on it.
        manager.enable(ACTIVATORS)
        for unit in ACTIVATORS:
            manager.start(unit)
        for name in (*ON_DEMAND, *REPLACED):
            say(f"replacing {service(name)}")
            manager.restart(service(name))
            if name == "runtime":
                # By a new agent, and when no shim of older code is made any more.
                for line in shims.describe(shims.renew(settings, every=every_shim)):
                    say(line)
    return settings


def uninstall(
    layout: Layout,
    say: Say,
    *,
    purge: Callable[[Settings], None] | None = None,
    config: Path = DEFAULT_FILE,
) -> None:
    """Stop the services and take the units away; containers go on.

    purge: stops the containers while there is an engine. Then everything else is taken away too;
    what still runs of containers is ended by systemd.
    """
    _check_host()
    settings = load(environ={}, file=config)
    with contextlib.ExitStack() as ended:
        if purge is not None and settings.run_dir.is_dir():
            ended.enter_context(ending(settings.run_dir))
            purge(settings)
        _remove_units(settings, layout, say, config, purge=purge is not None)
        if purge is not None:
            purging.purge(settings, say)
    if purge is not None:
        # Last: a purge that was broken off can be done again.
        config.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            # Not if there is something of the operator's in it.
            config.parent.rmdir()


def _remove_units(
    settings: Settings, layout: Layout, say: Say, config: Path, *, purge: bool
) -> None:
    kept = () if purge else (CONTAINERS, SHIMS, CONTAINER_SLICE, SLICE)
    with Manager() as manager:
        manager.disable([TARGET, *ACTIVATORS, *sockets(settings)])
        # Those who take requests first, so that nobody is promised anything any more.
        services = map(service, (*reversed(SERVICES), *ON_DEMAND))
        for unit in (*sockets(settings), *ACTIVATORS, *services, TARGET):
            say(f"stopping {unit}")
            manager.stop(unit)
        if purge:
            for unit in (CONTAINERS, SHIMS, CONTAINER_SLICE, SLICE):
                say(f"stopping {unit}")
                manager.stop(unit)
        for path in files(settings, layout, config):
            # The cgroups of containers that go on are still systemd's to know.
            if path.name not in kept:
                path.unlink(missing_ok=True)
        manager.reload()
        # Else they would be listed for as long as the host is up, as not found.
        manager.forget("mooring")


def write_config(config: Path, given: Mapping[str, object]) -> None:
    """Write the settings file: what was given over what is there over this mode's defaults."""
    known: dict[str, object] = {}
    if config.exists():
        known = tomllib.loads(config.read_text())
    values = {**_DEFAULTS, **known, **given}
    load(values, environ={}, file=Path(os.devnull))  # ConfigError before anything is written.
    if values != known:
        lines = [f"{key} = {_toml(value)}\n" for key, value in values.items()]
        _write(
            config,
            "# The settings of Mooring; `mooring install` keeps what is here.\n" + "".join(lines),
        )


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _check_host() -> None:
    if os.geteuid() != 0:
        raise ManagerError("this needs root: it writes units and starts services")
    if not is_systemd():
        raise ManagerError(
            "systemd does not run this host; `mooring up` runs the engine without it"
        )


def compile_program(paths: Iterable[str] = mooring.__path__) -> None:
    """Write bytecode beside the modules of the package; where that is not possible, none.

    The services may not write there, and without it each start takes a third longer. pip has done
    it, but not for a package that is used where it was developed.
    """
    for path in paths:
        compileall.compile_dir(path, quiet=2)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.chmod(0o644)
    temporary.rename(path)


def _command(*arguments: str) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ManagerError(f"{arguments[0]}: {done.stderr.strip()}")

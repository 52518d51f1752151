"""`mooring install|uninstall|upgrade`: the engine of a systemd host."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.markup import escape

from mooring.kit.config import ConfigError, Settings
from mooring.kit.errors import EngineError
from mooring.kit.nats_server import NoServerError

from .client import ApiError
from .engine import assignments, console, fail, stop_containers

Prefix = Annotated[
    Path, typer.Option(help="lib/systemd, lib/sysusers.d and lib/tmpfiles.d go below it")
]
DEFAULT_PREFIX = Path("/usr/local")
CONTAINER_SECONDS = 10
"""How long a container gets to end itself, as with Docker's stop."""
T = TypeVar("T")


def install(
    prefix: Prefix = DEFAULT_PREFIX,
    host: Annotated[list[str] | None, typer.Option(help="where the API listens")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="any other setting: KEY=VALUE")
    ] = None,
) -> None:
    """Install the engine as systemd units, enable it and start it."""
    from mooring.systemd import install as installing
    from mooring.systemd.settings import Layout

    given = assignments(set_ or []) | ({"host": host} if host else {})
    settings = _carefully(lambda: installing.install(Layout(prefix), given, _say))
    for address in settings.host:
        console.print(f"DOCKER_HOST={address}", highlight=False, soft_wrap=True)


def uninstall(
    prefix: Prefix = DEFAULT_PREFIX,
    purge: Annotated[
        bool, typer.Option("--purge", help="stop the containers, delete everything")
    ] = False,
) -> None:
    """Stop the services and take their units away; containers go on, unless --purge.

    With --purge nothing of the engine stays: neither images nor volumes, users nor settings.
    """
    from mooring.systemd import install as installing
    from mooring.systemd.settings import Layout

    stop = _stop_containers if purge else None
    _carefully(lambda: installing.uninstall(Layout(prefix), _say, purge=stop))


def _stop_containers(settings: Settings) -> None:
    """Stop them while there is an engine, which takes away what they have in the kernel.

    Without one they are ended all the same, by systemd.
    """
    _say("stopping the containers")
    try:
        stop_containers(settings.run_dir, min(settings.host, key=_is_tcp), CONTAINER_SECONDS)
        # Each run is given back a moment after its end: addresses, links, cgroups.
        deadline = time.monotonic() + CONTAINER_SECONDS
        while any((settings.run_dir / "shims").glob("[!.]*")) and time.monotonic() < deadline:
            time.sleep(0.05)
    except (ApiError, TimeoutError, OSError) as exc:
        _say(f"they are ended by systemd: {str(exc) or 'the engine does not answer'}")


def _is_tcp(host: str) -> bool:
    return not host.startswith("unix:")


def upgrade(
    package: Annotated[
        str, typer.Argument(help="what pip installs: a path, a wheel, a version")
    ] = "",
    prefix: Prefix = DEFAULT_PREFIX,
    every_shim: Annotated[
        bool, typer.Option("--every-shim", help="also those of the same code, for a new libc, say")
    ] = False,
) -> None:
    """Install a new version and replace services and shims by it; containers and clients stay."""
    if package:
        _say(f"installing {package}")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", package]
        if subprocess.run(pip, check=False).returncode:
            fail("pip could not install it; nothing was replaced")
    # The rest is the new version's to do: this process has the old one in memory.
    code = f"from mooring.cli.host import replace; replace({str(prefix)!r}, {every_shim})"
    raise typer.Exit(subprocess.run([sys.executable, "-c", code], check=False).returncode)


def replace(prefix: str, every_shim: bool) -> None:
    """The second half of `mooring upgrade`."""
    from mooring.systemd import install as installing
    from mooring.systemd.settings import Layout

    try:
        layout = Layout(Path(prefix))
        _carefully(lambda: installing.replace(layout, _say, every_shim=every_shim))
    except typer.Exit as exc:
        sys.exit(exc.exit_code)


def _say(text: str) -> None:
    console.print(f"[dim]·[/] {escape(text)}", highlight=False, soft_wrap=True)


def _carefully(act: Callable[[], T]) -> T:
    from mooring.systemd.manager import ManagerError

    try:
        return act()
    except (ManagerError, ConfigError, NoServerError, EngineError, OSError) as exc:
        fail(exc)


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    for command in (install, uninstall, upgrade):
        app.command()(command)

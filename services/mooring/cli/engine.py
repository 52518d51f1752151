"""`mooring up|down|status|doctor`: the embedded engine of this host."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mooring.kit.config import ConfigError, Settings, load
from mooring.kit.ending import ending, unended
from mooring.supervisor import control

from .client import ApiError, Client
from .words import duration

_STOP_SLACK = 60.0
"""Seconds beyond the containers' own time after which `mooring down --containers` gives up."""
_LOOK = 0.05

console = Console()
errors = Console(stderr=True)

StateDir = Annotated[Path | None, typer.Option(help="what survives a reboot (/var/lib/mooring)")]
RunDir = Annotated[Path | None, typer.Option(help="sockets and run directories (/run/mooring)")]
Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", help="where the API listens (unix://RUN_DIR/docker.sock)"),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


def fail(message: object) -> NoReturn:
    """Say why on stderr and end with exit status 1."""
    errors.print(f"[red]mooring:[/] {escape(str(message))}", highlight=False, soft_wrap=True)
    raise typer.Exit(1)


def assignments(texts: list[str]) -> dict[str, object]:
    """The settings of `--set KEY=VALUE`."""
    found: dict[str, object] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            fail(f"--set needs KEY=VALUE, not {text}")
        found[key] = value
    return found


def _settings(overrides: dict[str, object], config: Path | None = None) -> Settings:
    try:
        return load(overrides, file=config)
    except ConfigError as exc:
        fail(exc)


def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="return once it answers")] = False,
    state_dir: StateDir = None,
    run_dir: RunDir = None,
    host: Hosts = None,
    config: Annotated[Path | None, typer.Option(help="settings, TOML")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning, error")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="any other setting: KEY=VALUE")
    ] = None,
) -> None:
    """Start the engine: NATS, gateway, lifecycle manager, runtime worker, shim agent."""
    overrides: dict[str, object] = {
        "state_dir": state_dir,
        "run_dir": run_dir,
        "host": host or None,
        "log_level": log_level,
        "log_format": log_format,
    }
    overrides |= assignments(set_ or [])
    settings = _settings(overrides, config)
    if os.geteuid() != 0:
        fail("the engine needs root: it makes namespaces, mounts and cgroups")
    if not detach:
        control.run(settings)
    try:
        with errors.status("starting the engine"):
            started = control.start(settings)
    except control.StartFailed as exc:
        fail(exc)
    for address in started["hosts"]:
        console.print(f"DOCKER_HOST={address}", highlight=False, soft_wrap=True)


def down(
    containers: Annotated[bool, typer.Option("--containers", help="stop containers too")] = False,
    timeout: Annotated[int, typer.Option(help="seconds a container gets to end itself")] = 10,
    state_dir: StateDir = None,
    run_dir: RunDir = None,
) -> None:
    """Stop the services; containers go on, unless --containers."""
    settings = _settings({"state_dir": state_dir, "run_dir": run_dir})
    run_dir = settings.run_dir
    try:
        found = _reach(run_dir)
        with ending(run_dir) if containers else contextlib.nullcontext():
            if containers:
                stop_containers(run_dir, found["hosts"][0], timeout)
            with errors.status("stopping the services"):
                control.stop(run_dir)
    except (control.NotRunning, control.StartFailed, TimeoutError, ApiError) as exc:
        fail(exc)


def _reach(run_dir: Path) -> dict[str, Any]:
    """The status of an engine; one whose supervisor was killed is given another one first."""
    try:
        return control.status(run_dir)
    except control.NotRunning:
        if (before := control.abandoned(run_dir)) is None:
            raise
    settings = _settings(
        {"state_dir": before["state_dir"], "run_dir": run_dir, "host": before["hosts"]}
    )
    with errors.status("taking over from a supervisor that was killed"):
        return control.start(settings)


def stop_containers(run_dir: Path, host: str, timeout: int) -> None:
    """Stop every container of the engine, all at the same time, until nothing of any runs.

    None is started any more (`ending`), but one may have been on its way. TimeoutError, with the
    words of those that do not stop; ApiError.
    """
    import asyncio

    with errors.status("stopping the containers"):
        deadline = time.monotonic() + timeout + _STOP_SLACK
        while True:
            found, refused = asyncio.run(_stop_running(host, timeout))
            left = unended(run_dir)
            if not found and not left:
                return
            if time.monotonic() > deadline:
                words = refused or [f"{name} has not ended" for name in left]
                raise TimeoutError("some containers did not stop: " + "; ".join(words))
            time.sleep(_LOOK)


async def _stop_running(host: str, timeout: int) -> tuple[int, list[str]]:
    """Stop what is running now: how many, and what was said of those that did not stop."""
    import asyncio

    async with asyncio.timeout(timeout + _STOP_SLACK), Client(host) as client:
        found = await client.call("GET", "/containers/json")
        params = {"t": str(timeout)}
        calls = [
            client.call("POST", f"/containers/{item['Id']}/stop", params=params) for item in found
        ]
        done = await asyncio.gather(*calls, return_exceptions=True)
    refused = [
        f"{item['Names'][0].lstrip('/')}: {outcome}"
        for item, outcome in zip(found, done, strict=True)
        if isinstance(outcome, Exception)
    ]
    return len(found), refused


def status(as_json: Json = False, state_dir: StateDir = None, run_dir: RunDir = None) -> None:
    """The API's address, and each service: pid, uptime, restarts, what it is connected to."""
    settings = _settings({"state_dir": state_dir, "run_dir": run_dir})
    try:
        found = control.status(settings.run_dir)
    except control.NotRunning as exc:
        from . import units

        if (of_units := units.installed(settings)) is None:
            fail(exc)
        if as_json:
            print(json.dumps(of_units, indent=2))
        else:
            units.show(of_units, console)
        return
    if as_json:
        print(json.dumps(found, indent=2))
        return
    console.print(f"engine [bold]{found['instance']}[/]: {found['state']}, pid {found['pid']}")
    for address in found["hosts"]:
        console.print(f"API {address}", highlight=False, soft_wrap=True)
    table = Table("SERVICE", "STATE", "PID", "UPTIME", "RESTARTS", "", box=None)
    for item in found["services"]:
        up_for = duration(item["uptime"])
        colour = "green" if item["state"] in ("ready", "idle") else "yellow"
        cells = (str(item["pid"] or "–"), up_for, str(item["restarts"]), escape(item["status"]))
        table.add_row(item["name"], f"[{colour}]{item['state']}[/]", *cells)
    console.print(table)


def doctor(as_json: Json = False) -> None:
    """What this machine has, what is missing, and what that costs."""
    from mooring.kit import nats_server
    from mooring.runtime import node

    findings: list[dict[str, Any]] = [
        {
            "name": item.name,
            "severity": "ok" if item.ok else str(item.severity),
            "detail": item.detail,
            "cost": "" if item.ok else item.cost,
        }
        for item in (*node.examine(), node.forwarding_by_others())
    ]
    try:
        binary = {"severity": "ok", "detail": nats_server.binary(), "cost": ""}
    except nats_server.NoServerError as exc:
        binary = {"severity": "error", "detail": str(exc), "cost": "the engine does not start"}
    findings.append({"name": "NATS", **binary})
    if as_json:
        print(json.dumps(findings, indent=2))
    else:
        _show(findings)
    if any(item["severity"] == "error" for item in findings):
        sys.exit(1)


def _show(findings: list[dict[str, Any]]) -> None:
    table = Table("", "WHAT", "FOUND", "COST", box=None)
    marks = {"ok": "[green]✓[/]", "error": "[red]✗[/]"}
    for item in findings:
        mark = marks.get(item["severity"], "[yellow]![/]")
        table.add_row(mark, item["name"], escape(item["detail"]), escape(item["cost"]))
    console.print(table)


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    for command in (up, down, status, doctor):
        app.command()(command)

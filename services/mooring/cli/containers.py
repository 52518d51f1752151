"""`mooring run|ps|logs|exec|stop|rm|images|load`, for machines without the docker CLI."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn
from rich.table import Table

from . import terminal
from .client import ApiError, Client, default_host, frames, segment

console = Console()
errors = Console(stderr=True)

Host = Annotated[str, typer.Option("--host", "-H", help="the engine's API", envvar="MOORING_HOST")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


def _complain(text: str) -> None:
    errors.print(f"[red]mooring:[/] {escape(text)}", highlight=False, soft_wrap=True)


def engine(host: str, work: Callable[[Client], Coroutine[Any, Any, int]]) -> None:
    """Run the work with a client and end with its exit code; 125 if the engine refused."""

    async def main() -> int:
        async with Client(host or default_host()) as client:
            return await work(client)

    try:
        code = asyncio.run(main())
    except ApiError as exc:
        _complain(str(exc))
        code = 125
    except KeyboardInterrupt:
        code = 130
    # Not typer.Exit: a thread may still be blocked in a read of stdin.
    console.file.flush()
    os._exit(code)


def run(
    image: str,
    command: Annotated[list[str] | None, typer.Argument()] = None,
    name: str = "",
    detach: Annotated[bool, typer.Option("--detach", "-d")] = False,
    interactive: Annotated[bool, typer.Option("--interactive", "-i")] = False,
    tty: Annotated[bool, typer.Option("--tty", "-t")] = False,
    remove: Annotated[bool, typer.Option("--rm")] = False,
    env: Annotated[list[str] | None, typer.Option("--env", "-e")] = None,
    volume: Annotated[list[str] | None, typer.Option("--volume", "-v")] = None,
    network: str = "default",
    user: Annotated[str, typer.Option("--user", "-u")] = "",
    host: Host = "",
) -> None:
    """Create and start a container, and stay with it until it exits (or --detach)."""
    attached = not detach
    body = {
        "Image": image,
        "Cmd": command or None,
        "Env": env or [],
        "User": user,
        "Tty": tty,
        "OpenStdin": interactive,
        "StdinOnce": interactive and attached,
        "AttachStdin": interactive and attached,
        "AttachStdout": attached,
        "AttachStderr": attached,
        "HostConfig": {"AutoRemove": remove, "Binds": volume or [], "NetworkMode": network},
    }

    async def work(client: Client) -> int:
        params = {"name": name} if name else None
        made = await client.call("POST", "/containers/create", params=params, body=body)
        for warning in made.get("Warnings") or []:
            errors.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)
        path = f"/containers/{made['Id']}"
        if detach:
            await client.call("POST", f"{path}/start")
            print(made["Id"])
            return 0
        stdin = "&stdin=1" if interactive else ""
        stream = await client.hijack(f"{path}/attach?stream=1&stdout=1&stderr=1{stdin}")
        condition = "removed" if remove else "next-exit"
        waiting = await client.open("POST", f"{path}/wait", params={"condition": condition})
        await client.call("POST", f"{path}/start")
        await _join(client, path, stream, tty=tty, stdin=interactive)
        return int(json.loads(await waiting.text())["StatusCode"])

    engine(host, work)


async def _join(
    client: Client,
    path: str,
    stream: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    *,
    tty: bool,
    stdin: bool,
) -> None:
    """Be what a container or an exec (at `path`) is attached to, until its stream ends."""

    async def resize(rows: int, columns: int) -> None:
        with contextlib.suppress(ApiError):  # it may have ended
            size = {"h": str(rows), "w": str(columns)}
            await client.call("POST", f"{path}/resize", params=size)

    async with contextlib.AsyncExitStack() as stack:
        if tty:
            stack.enter_context(terminal.raw())
            await stack.enter_async_context(terminal.resizing(resize))
        await terminal.join(*stream, terminal=tty, stdin=stdin)


def ps(
    all_: Annotated[bool, typer.Option("--all", "-a")] = False,
    as_json: Json = False,
    host: Host = "",
) -> None:
    """List containers."""

    async def work(client: Client) -> int:
        params = {"all": "1"} if all_ else None
        found = await client.call("GET", "/containers/json", params=params)
        if as_json:
            print(json.dumps(found, indent=2))
            return 0
        table = Table("CONTAINER ID", "IMAGE", "COMMAND", "STATUS", "NAMES", box=None)
        for item in found:
            command = item["Command"]
            short = command if len(command) <= 24 else command[:23] + "…"
            names = ", ".join(each.lstrip("/") for each in item["Names"])
            table.add_row(item["Id"][:12], item["Image"], short, item["Status"], names)
        console.print(table, markup=False)
        return 0

    engine(host, work)


def logs(
    container: str,
    follow: Annotated[bool, typer.Option("--follow", "-f")] = False,
    tail: str = "all",
    timestamps: Annotated[bool, typer.Option("--timestamps", "-t")] = False,
    since: str = "",
    until: str = "",
    host: Host = "",
) -> None:
    """Show what a container printed."""
    params = {"stdout": "1", "stderr": "1", "tail": tail}
    params |= {"follow": "1"} if follow else {}
    params |= {"timestamps": "1"} if timestamps else {}
    params |= {"since": since} if since else {}
    params |= {"until": until} if until else {}

    async def work(client: Client) -> int:
        path = f"/containers/{segment(container)}"
        described = await client.call("GET", f"{path}/json")
        response = await client.open("GET", f"{path}/logs", params=params)
        if described["Config"]["Tty"]:
            async for data in response.content.iter_any():
                os.write(1, data)
        else:
            async for stream, data in frames(response.content):  # type: ignore[arg-type]
                os.write(2 if stream == 2 else 1, data)
        return 0

    engine(host, work)


def exec_(
    container: str,
    command: list[str],
    interactive: Annotated[bool, typer.Option("--interactive", "-i")] = False,
    tty: Annotated[bool, typer.Option("--tty", "-t")] = False,
    env: Annotated[list[str] | None, typer.Option("--env", "-e")] = None,
    user: Annotated[str, typer.Option("--user", "-u")] = "",
    workdir: Annotated[str, typer.Option("--workdir", "-w")] = "",
    host: Host = "",
) -> None:
    """Run a further command in a running container."""
    body = {
        "Cmd": command,
        "Tty": tty,
        "AttachStdin": interactive,
        "AttachStdout": True,
        "AttachStderr": True,
        "Env": env or [],
        "User": user,
        "WorkingDir": workdir,
    }

    async def work(client: Client) -> int:
        path = f"/containers/{segment(container)}/exec"
        made = (await client.call("POST", path, body=body))["Id"]
        start = {"Detach": False, "Tty": tty}
        stream = await client.hijack(f"/exec/{made}/start", start)
        await _join(client, f"/exec/{made}", stream, tty=tty, stdin=interactive)
        return int((await client.call("GET", f"/exec/{made}/json"))["ExitCode"] or 0)

    engine(host, work)


def stop(
    containers: list[str],
    timeout: Annotated[int | None, typer.Option("--timeout", "-t", help="seconds")] = None,
    host: Host = "",
) -> None:
    """Stop containers."""
    params = {} if timeout is None else {"t": str(timeout)}
    _each(host, containers, "POST", "/containers/{}/stop", params)


def rm(
    containers: list[str],
    force: Annotated[bool, typer.Option("--force", "-f")] = False,
    host: Host = "",
) -> None:
    """Remove containers."""
    _each(host, containers, "DELETE", "/containers/{}", {"force": "1"} if force else {})


def _each(host: str, names: list[str], method: str, path: str, params: dict[str, str]) -> None:
    """One call to a name; print the names that worked and the errors of the others."""

    async def work(client: Client) -> int:
        code = 0
        for name in names:
            try:
                await client.call(method, path.format(segment(name)), params=params)
                print(name)
            except ApiError as exc:
                _complain(str(exc))
                code = 1
        return code

    engine(host, work)


def images(as_json: Json = False, host: Host = "") -> None:
    """List images."""

    async def work(client: Client) -> int:
        found = await client.call("GET", "/images/json")
        if as_json:
            print(json.dumps(found, indent=2))
            return 0
        table = Table("REPOSITORY:TAG", "IMAGE ID", "CREATED", "SIZE", box=None)
        for item in found:
            age = time.strftime("%Y-%m-%d %H:%M", time.localtime(item["Created"]))
            size = f"{item['Size'] / 1e6:.1f} MB"
            for tag in item["RepoTags"] or ["<none>"]:
                table.add_row(tag, item["Id"].removeprefix("sha256:")[:12], age, size)
        console.print(table, markup=False)
        return 0

    engine(host, work)


def load(archive: Path, host: Host = "") -> None:
    """Load images from a tar archive (docker save, or an OCI layout)."""

    async def work(client: Client) -> int:
        bar = Progress("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with bar, bar.open(archive, "rb", description=archive.name) as file:
            response = await client.open("POST", "/images/load", data=file)
            body = await response.text()
        code = 0
        for line in filter(None, body.splitlines()):
            item = json.loads(line)
            if text := item.get("error"):
                _complain(text)
                code = 1
            elif text := item.get("stream"):
                console.print(text.rstrip(), highlight=False, markup=False)
        return code

    engine(host, work)


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    passing = {
        "context_settings": {"ignore_unknown_options": True, "allow_interspersed_args": False}
    }
    app.command(**passing)(run)  # type: ignore[arg-type]
    app.command("exec", **passing)(exec_)  # type: ignore[arg-type]
    for command in (ps, logs, stop, rm, images, load):
        app.command()(command)

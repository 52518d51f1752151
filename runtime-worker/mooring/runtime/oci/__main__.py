"""`mooring-oci`: its command line is runc's, as far as engines use it."""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import REMAINDER, ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Callable
from pathlib import Path

from .command import create, describe, enter, manage
from .command.store import VERSION
from .errors import OciError


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="mooring-oci", description="OCI runtime of Mooring")
    parser.add_argument("--root", type=Path, default=Path("/run/mooring-oci"), help="state")
    parser.add_argument("--log", help="where errors go as well")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    parser.add_argument("--systemd-cgroup", action="store_true", help="refused: not supported")
    parser.add_argument("--version", "-v", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_creation(commands)
    _add_exec(commands)
    _add_management(commands)
    return parser


def _version() -> str:
    return f"mooring-oci\nspec: {VERSION}"


def _command(
    commands: _SubParsersAction[ArgumentParser],
    name: str,
    handler: Callable[[Namespace], int],
    *,
    takes_id: bool = True,
) -> ArgumentParser:
    parser = commands.add_parser(name, help=(handler.__doc__ or "").splitlines()[0])
    parser.set_defaults(handler=handler)
    if takes_id:
        parser.add_argument("id", metavar="CONTAINER")
    return parser


def _add_creation(commands: _SubParsersAction[ArgumentParser]) -> None:
    for name, handler in (("create", create.create), ("run", create.run)):
        parser = _command(commands, name, handler)
        parser.add_argument("--bundle", "-b", default=".")
        _add_process_options(parser)
        if name == "run":
            parser.add_argument("--detach", "-d", action="store_true")
    _command(commands, "start", create.start)
    parser = _command(commands, "spec", describe.write_spec, takes_id=False)
    parser.add_argument("--bundle", "-b", default=".")
    _command(commands, "features", describe.features, takes_id=False)


def _add_process_options(parser: ArgumentParser) -> None:
    parser.add_argument("--console-socket", metavar="PATH")
    parser.add_argument("--pid-file", metavar="PATH")
    parser.add_argument("--preserve-fds", type=int, default=0, metavar="N")


def _add_exec(commands: _SubParsersAction[ArgumentParser]) -> None:
    parser = _command(commands, "exec", enter.execute)
    _add_process_options(parser)
    parser.add_argument("--process", "-p", metavar="FILE", help="an OCI process as JSON")
    parser.add_argument("--detach", "-d", action="store_true")
    parser.add_argument("--tty", "-t", action="store_true")
    parser.add_argument("--env", "-e", action="append", default=[])
    parser.add_argument("--user", "-u", metavar="UID[:GID]")
    parser.add_argument("--cwd")
    parser.add_argument("--cap", "-c", action="append", default=[])
    parser.add_argument("--no-new-privs", action="store_true")
    parser.add_argument("args", nargs=REMAINDER, metavar="COMMAND")


def _add_management(commands: _SubParsersAction[ArgumentParser]) -> None:
    _command(commands, "state", manage.state)
    parser = _command(commands, "kill", manage.kill)
    parser.add_argument("signal", nargs="?", default="TERM")
    parser.add_argument("--all", "-a", action="store_true")
    parser = _command(commands, "delete", manage.delete)
    parser.add_argument("--force", "-f", action="store_true")
    _command(commands, "pause", manage.pause)
    _command(commands, "resume", manage.resume)
    parser = _command(commands, "update", manage.update)
    parser.add_argument("--resources", "-r", metavar="FILE")
    for name in ("memory", "memory-swap", "memory-reservation", "cpu-period", "cpu-quota"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("cpu-share", "pids-limit", "blkio-weight"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("cpuset-cpus", "cpuset-mems"):
        parser.add_argument(f"--{name}")
    parser = _command(commands, "events", manage.events)
    parser.add_argument("--stats", action="store_true")
    parser.add_argument("--interval", type=float, default=5.0, metavar="SECONDS")
    parser = _command(commands, "ps", manage.ps)
    parser.add_argument("--format", "-f", choices=("table", "json"), default="table")
    parser.add_argument("arguments", nargs=REMAINDER)
    parser = _command(commands, "list", manage.list_containers, takes_id=False)
    parser.add_argument("--format", "-f", choices=("table", "json"), default="table")
    parser.add_argument("--quiet", "-q", action="store_true")


def _report(options: Namespace, message: str) -> None:
    print(f"mooring-oci: {message}", file=sys.stderr)
    if not options.log:
        return
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if options.log_format == "json":
        line = json.dumps({"level": "error", "msg": message, "time": now})
    else:
        line = f'time="{now}" level=error msg={json.dumps(message)}'
    with open(options.log, "a") as log:
        log.write(line + "\n")


def main() -> None:
    """Entry point of `mooring-oci`."""
    options = _parser().parse_args()
    try:
        code = options.handler(options)
    except (OciError, OSError) as error:
        if options.debug:
            raise
        _report(options, str(error))
        # 126 and 127 are the program's; every other failure is 1, as runc has it.
        code = getattr(error, "exit_code", 1)
        code = code if code in (126, 127) and options.command in ("exec", "run") else 1
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()

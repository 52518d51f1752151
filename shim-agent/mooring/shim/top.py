"""The processes of a container as `ps` of the host shows them."""

from __future__ import annotations

import asyncio
import re

from mooring.kit.errors import EngineError, InvalidParameter
from mooring.kit.models.host import HostTop, TopResult

from .runs import Containers, running
from .shims import Shims, container_of

PS_SECONDS = 10.0
_RENAMED = re.compile(r"\s+(\w*)=\s*(PID\w*)")


class Top:
    """The handler behind `docker top`."""

    def __init__(self, containers: Containers, shims: Shims) -> None:
        self._containers = containers
        self._shims = shims

    async def list(self, request: HostTop) -> TopResult:
        """Run `ps` with the user's arguments and keep the container's lines."""
        container = container_of(self._containers, self._shims, request.id)
        run = running(container, request.id, request.run)
        check(request.arguments)
        answer = await (await run.reach()).request("pids")
        pids = {int(pid) for pid in answer["pids"]}
        return parse(await _ps(request.arguments.split(), pids), pids)


def check(arguments: str) -> None:
    """Refuse to show anything else under the heading that processes are found by."""
    for name, heading in _RENAMED.findall(arguments):
        if name != "pid":
            raise InvalidParameter(f'specifying "{name}={heading}" is not allowed')


def parse(output: str, pids: set[int]) -> TopResult:
    """The lines of `ps` that are of these processes; with threads, their lines as well."""
    lines = output.splitlines()
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise InvalidParameter("Couldn't find PID field in ps output")
    column = titles.index("PID")
    rows: list[list[str]] = []
    follows = False
    for line in lines[1:]:
        # Only the last column, the command, may hold blanks.
        fields = line.split(None, len(titles) - 1)
        if len(fields) <= column:
            continue
        if fields[column] == "-":
            # A thread, below the line of its process.
            if follows:
                rows.append(fields)
            continue
        if not fields[column].isdecimal():
            raise EngineError(f"Unexpected pid '{fields[column]}'")
        follows = int(fields[column]) in pids
        if follows:
            rows.append(fields)
    return TopResult(titles=titles, processes=rows)


async def _ps(arguments: list[str], pids: set[int]) -> str:
    chosen = ["-q", ",".join(map(str, sorted(pids)))]
    # Asked for by pid `ps` reads less of /proc; some arguments do not go together with that.
    status, output, _ = await _run([*arguments, *chosen])
    if status != 0:
        status, output, error = await _run(arguments)
        if status != 0:
            raise InvalidParameter(f"error running ps: {error.strip() or f'exit status {status}'}")
    return output


async def _run(arguments: list[str]) -> tuple[int, str, str]:
    try:
        process = await asyncio.create_subprocess_exec(
            "ps",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError:
        raise EngineError("this host has no ps: install procps") from None
    try:
        async with asyncio.timeout(PS_SECONDS):
            output, error = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise EngineError("error running ps: it does not end") from None
    return process.returncode or 0, output.decode(errors="replace"), error.decode(errors="replace")

"""The process that talks to registries: started when there is something to do, ended soon after.

It does not touch the store: it fetches, unpacks beside it, and has the worker put things in their
place (host.py). It ends with the worker; what it has fetched is taken up by the next one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from mooring.kit.errors import EngineError
from mooring.runtime.images.store import ImageStore
from mooring.runtime.images.unlayering import Unpacker
from mooring.runtime.images.unpack import Limits, end_with

from . import queries
from .channel import LINE, Channel, error_of
from .client import Http, Patience
from .endpoints import Rules
from .host import Calls, RemoteHost
from .layers import Layers, Places
from .pull import Pull
from .push import Push, Slots
from .words import ConnectionFault, NoCredentials, RegistryError, TransferFault, transfer_error

logger = logging.getLogger(__name__)

_KEPT = 3600.0
"""Seconds that what was fetched of a blob is kept for another attempt."""


class Transfers:
    """Everything under way in this process."""

    def __init__(self, channel: Channel, settings: dict[str, Any], stack: AsyncExitStack) -> None:
        self._channel, self._stack = channel, stack
        self._calls = Calls(channel)
        self.http = Http(
            Rules(
                tuple(settings["mirrors"]),
                tuple(settings["insecure"]),
                Path(settings["certs_dir"]),
            ),
            Patience(settings["stall"], settings["attempts"], settings["delay"]),
        )
        state_dir = Path(settings["state_dir"])
        self.store = ImageStore(state_dir)
        self.places = Places(
            state_dir / "downloads",
            Path(settings["job"]),
            Limits(settings["max_size"], settings["max_files"]),
        )
        self.slots = Slots(
            asyncio.Semaphore(settings["uploads"]), asyncio.Semaphore(os.cpu_count() or 1)
        )
        self.layers = Layers(
            self.places, self._unpacker, self._commit, asyncio.Semaphore(settings["downloads"])
        )
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._unpackers: list[Unpacker] = []
        self._starting = asyncio.Lock()

    async def run(self) -> None:
        """Serve the worker until it closes its end."""
        while (packet := await self._channel.receive()) is not None:
            if "answer" in packet:
                self._calls.answer(packet)
            elif "cancel" in packet:
                if task := self._tasks.get(packet["cancel"]):
                    task.cancel()
            else:
                job = packet["start"]
                task = asyncio.create_task(self._serve(job, packet["op"], packet["args"]))
                self._tasks[job] = task
        for task in tuple(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _serve(self, job: int, op: str, args: dict[str, Any]) -> None:
        host = RemoteHost(self._calls, self._channel, job)
        end: dict[str, Any]
        try:
            end = {"result": await self._operation(op, host)(args)}
        except EngineError as exc:
            end = {"error": error_of(exc)}
        except (ConnectionFault, RegistryError, TransferFault, NoCredentials, OSError) as exc:
            end = {"error": error_of(transfer_error(exc))}
        except asyncio.CancelledError:
            end = {"error": error_of(EngineError("context canceled"))}
        except Exception as exc:
            logger.exception("%s failed", op)
            end = {"error": error_of(EngineError(f"internal error: {exc}"))}
        host.flush()
        del self._tasks[job]
        self._channel.send({"end": job, **end})

    def _operation(
        self, op: str, host: RemoteHost
    ) -> Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]:
        match op:
            case "pull":
                return Pull(self.http, self.layers, self.places, host).run
            case "push":
                return Push(self.http, self.store, self.places, self.slots, host).run
            case "search":
                return partial(queries.search, self.http)
            case "inspect":
                return partial(queries.inspect, self.http)
            case "auth":
                return partial(queries.check_auth, self.http)
        raise EngineError(f"unknown operation {op}")

    async def _commit(self, layer: dict[str, Any]) -> None:
        await self._calls.call(0, "commit", layer)

    async def _unpacker(self) -> Unpacker:
        async with self._starting:
            if not self._unpackers:
                self._unpackers.append(await self._stack.enter_async_context(Unpacker.start()))
            return self._unpackers[0]


def sweep(downloads: Path) -> None:
    """Remove what was fetched an hour ago and not taken up again."""
    horizon = time.time() - _KEPT
    with suppress(FileNotFoundError):
        for entry in os.scandir(downloads):
            with suppress(FileNotFoundError):
                if entry.stat().st_mtime < horizon:
                    os.unlink(entry.path)


async def _main() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=LINE)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(1, "wb", buffering=0, closefd=False)
    )
    channel = Channel(reader, asyncio.StreamWriter(transport, protocol, None, loop))
    settings = json.loads(await reader.readline())
    end_with(settings["parent"])
    sweep(Path(settings["state_dir"]) / "downloads")
    async with AsyncExitStack() as stack:
        transfers = Transfers(channel, settings, stack)
        stack.push_async_callback(transfers.http.close)
        await transfers.run()
    channel.close()


def main() -> None:
    """The process."""
    logging.basicConfig(format="%(levelname)s transfers: %(message)s", stream=sys.stderr)
    # Passwords of other programs are none of ours to send: aiohttp would read ~/.netrc.
    os.environ["NETRC"] = os.devnull
    os.umask(0o022)
    uvloop.run(_main())


if __name__ == "__main__":
    main()

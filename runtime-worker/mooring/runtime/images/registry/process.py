"""The worker's hold on its transfers process: started when needed, ended when idle."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mooring.kit.config import Settings
from mooring.kit.errors import EngineError, Unavailable

from .channel import LINE, Channel, Packet, error_of, raise_error
from .progress import Message

logger = logging.getLogger(__name__)

IDLE = 10.0
"""Seconds that the process stays for the next transfer: starting it takes a third of one."""
_ATTEMPTS = 3
"""How often a transfer is begun when the process dies under it."""

Serve = Callable[["Work", str, dict[str, Any]], Awaitable[Any]]


@dataclass(eq=False, slots=True)
class Work:
    """Something the process was asked for."""

    op: str
    args: dict[str, Any]
    say: Callable[[list[Message]], None]
    directory: Path | None = None
    """Where it notes what it adds to the store."""
    recorded: set[str] = field(default_factory=set)
    """Digests that are recorded, so that they stay."""
    uncertain: bool = False
    """Whether an image was recorded is not known."""


class TransferProcess:
    """Does works, one process for all of them; serve answers what it asks of the store."""

    def __init__(self, settings: Settings, serve: Serve, new_job: Callable[[], Path]) -> None:
        self._settings, self._serve, self._new_job = settings, serve, new_job
        self._child: _Child | None = None
        self._count = 0
        self._idle: asyncio.TimerHandle | None = None
        self._starting = asyncio.Lock()
        self.on_ended: Callable[[Path], None] = lambda job: None
        """Called with the directory of a process that has ended."""

    async def do(self, work: Work) -> dict[str, Any]:
        """What comes of it; EngineError. Cancelled, it is broken off there as well."""
        for attempt in range(1, _ATTEMPTS + 1):
            child = await self._ready()
            self._count += 1
            number = self._count
            try:
                return await child.do(number, work)
            except _Ended as exc:
                logger.warning("the transfers process ended during a %s: %s", work.op, exc)
                if attempt == _ATTEMPTS:
                    raise EngineError(f"the transfers process ended: {exc}") from None
            finally:
                self._settle()
        raise AssertionError

    async def close(self) -> None:
        """End it now."""
        if self._idle is not None:
            self._idle.cancel()
        if self._child is not None:
            await self._child.close()

    @property
    def pid(self) -> int:
        """The process's, or 0."""
        return self._child.pid if self._child is not None else 0

    async def _ready(self) -> _Child:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        async with self._starting:
            if self._child is None or self._child.ended:
                self._child = await _Child.start(
                    self._settings, self._serve, self._new_job(), self._gone
                )
            return self._child

    def _settle(self) -> None:
        if self._child is not None and not self._child.busy and self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(IDLE, self._retire)

    def _retire(self) -> None:
        self._idle = None
        if self._child is not None and not self._child.busy:
            # It ends when it sees the end of its input.
            self._child.dismiss()

    def _gone(self, child: _Child) -> None:
        if self._child is child:
            self._child = None
        self.on_ended(child.job)


class _Ended(Exception):
    """The process is gone; what it was doing can be begun again."""


class _Child:
    """One such process."""

    def __init__(self, process: Process, serve: Serve, job: Path) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._process, self._serve, self.job = process, serve, job
        self._channel = Channel(process.stdout, process.stdin)
        self._works: dict[int, tuple[Work, asyncio.Future[Packet]]] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._reader: asyncio.Task[None]
        self.ended = False

    @classmethod
    async def start(
        cls, settings: Settings, serve: Serve, job: Path, gone: Callable[[_Child], None]
    ) -> _Child:
        """A fresh one."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "mooring.runtime.images.registry.transfers",
            stdin=PIPE,
            stdout=PIPE,
            cwd="/",
            limit=LINE,
        )
        child = cls(process, serve, job)
        child._channel.send(_settings(settings, job))
        child._reader = asyncio.create_task(child._read(gone), name="transfers")
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def busy(self) -> bool:
        return bool(self._works)

    async def do(self, number: int, work: Work) -> dict[str, Any]:
        if self.ended:
            raise _Ended("it has just gone")
        future: asyncio.Future[Packet] = asyncio.get_running_loop().create_future()
        self._works[number] = work, future
        self._channel.send({"start": number, "op": work.op, "args": work.args})
        try:
            packet = await asyncio.shield(future)
        except asyncio.CancelledError:
            # It has to be over before what it did is taken out again.
            self._channel.send({"cancel": number})
            with suppress(_Ended, TimeoutError):
                async with asyncio.timeout(30.0):
                    await future
            raise
        finally:
            del self._works[number]
        if "error" in packet:
            raise_error(packet["error"])
        result: dict[str, Any] = packet["result"]
        return result

    def dismiss(self) -> None:
        """No more is wanted of it: new works need another one."""
        self.ended = True
        self._channel.close()

    async def close(self) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self, gone: Callable[[_Child], None]) -> None:
        try:
            while (packet := await self._channel.receive()) is not None:
                self._take(packet)
        finally:
            self.ended = True
            self._channel.close()
            with suppress(ProcessLookupError):
                if self._process.returncode is None:
                    self._process.kill()
            await self._process.wait()
            for task in tuple(self._calls):
                await asyncio.gather(task, return_exceptions=True)
            for _, future in self._works.values():
                if not future.done():
                    future.set_exception(_Ended(f"status {self._process.returncode}"))
            gone(self)

    def _take(self, packet: Packet) -> None:
        if "say" in packet:
            if found := self._works.get(packet["say"]):
                found[0].say(packet["messages"])
        elif "end" in packet:
            if (found := self._works.get(packet["end"])) and not found[1].done():
                found[1].set_result(packet)
        elif "call" in packet:
            task = asyncio.create_task(self._answer(packet))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    async def _answer(self, packet: Packet) -> None:
        number = packet["call"]
        work = self._works.get(packet["job"], (_NOBODY, None))[0]
        try:
            result = await self._serve(work, packet["op"], packet["args"])
            self._channel.send({"answer": number, "result": result})
        except EngineError as exc:
            self._channel.send({"answer": number, "error": error_of(exc)})
        except OSError as exc:
            error = EngineError(f"cannot store the image: {exc}")
            self._channel.send({"answer": number, "error": error_of(error)})
        except Exception as exc:
            logger.exception("%s failed", packet["op"])
            error = Unavailable(f"internal error: {exc}")
            self._channel.send({"answer": number, "error": error_of(error)})


_NOBODY = Work("", {}, lambda messages: None)


def _settings(settings: Settings, job: Path) -> Packet:
    return {
        "state_dir": str(settings.state_dir),
        "job": str(job),
        "parent": os.getpid(),
        "mirrors": settings.registry_mirrors,
        "insecure": settings.insecure_registries,
        "certs_dir": str(settings.registry_certs_dir),
        "downloads": settings.max_concurrent_downloads,
        "uploads": settings.max_concurrent_uploads,
        "attempts": settings.max_download_attempts,
        "delay": settings.registry_retry_delay,
        "stall": settings.registry_stall_timeout,
        "max_size": settings.image_max_layer_size,
        "max_files": settings.image_max_layer_files,
    }

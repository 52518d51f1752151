"""A loader process (loader.py) as the worker sees it: fed, listened to, asked for its result."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mooring.kit.errors import EngineError, InvalidParameter

_ANSWER = 1 << 28
"""Bytes of the longest answer: the configs of all images of an archive are in it."""

Progress = Callable[[str, int, int], None]
"""Told that of a layer (by 12 digits) so many bytes, of so many, have come."""


class Loader:
    """One job of a loader. `end` it whatever became of it."""

    def __init__(self, process: Process, progress: Progress | None) -> None:
        self._process = process
        self._progress = progress
        self._source = asyncio.Event()
        self._answer = asyncio.create_task(self._listen(), name="loader")

    @classmethod
    async def start(
        cls, job: dict[str, Any], directory: Path, progress: Progress | None = None
    ) -> Loader:
        """Start one in the job's directory."""
        (directory / "job.json").write_text(json.dumps(job))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "mooring.runtime.images.loader",
            str(directory),
            stdin=PIPE,
            stdout=PIPE,
            cwd="/",
            limit=_ANSWER,
        )
        return cls(process, progress)

    async def feed(self, upload: AsyncIterable[memoryview]) -> None:
        """Pass the upload on; a loader that has seen enough closes its end."""
        stdin = self._process.stdin
        assert stdin is not None
        with suppress(BrokenPipeError, ConnectionResetError):
            async for piece in upload:
                stdin.write(piece)
                await stdin.drain()

    async def has_source(self) -> None:
        """Wait until one that gets an archive by itself has all of it, or has failed."""
        waiting = asyncio.create_task(self._source.wait())
        await asyncio.wait({waiting, self._answer}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    async def result(self) -> list[dict[str, Any]]:
        """Tell it that this was all, and wait for the images; InvalidParameter, EngineError."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        answer = await self._answer
        await self._process.wait()
        if not answer:
            raise EngineError(f"the image loader ended with status {self._process.returncode}")
        result: dict[str, Any] = json.loads(answer)
        if "error" in result:
            raise (InvalidParameter if result["fault"] else EngineError)(result["error"])
        images: list[dict[str, Any]] = result["images"]
        return images

    async def end(self) -> None:
        """Have it end now, and wait until it has."""
        self._answer.cancel()
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def _listen(self) -> bytes:
        """Lines on how far it is, and at last the answer."""
        stdout = self._process.stdout
        assert stdout is not None
        while (line := await stdout.readline()).endswith(b"\n"):
            message = json.loads(line)
            if message == "source":
                self._source.set()
            elif self._progress is not None:
                self._progress(*message)
        return line

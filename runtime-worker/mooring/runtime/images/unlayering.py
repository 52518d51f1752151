"""Unpacking layers beside an event loop: for whoever has their bytes still coming in.

async with Unpacker.start() as unpacker:
    layer = await unpacker.unpack(Job(blob=…, target=…, digest=…, size=…))
    layer.grown(4096)
    layer.end()
    unpacked = await layer.result()
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict

from .unpack import Job, Unpacked

Progress = Callable[[int], None]


class Unlayering:
    """One layer that is being unpacked. `close` it in the end, whatever became of it."""

    def __init__(
        self, growth: int, answers: asyncio.StreamReader, transport: asyncio.BaseTransport
    ) -> None:
        self._growth = growth
        self._answers, self._transport = answers, transport
        self._pending = b""

    def grown(self, size: int) -> None:
        """The blob has that many bytes now. Never waits."""
        self._say(b"%d\n" % size)

    def end(self) -> None:
        """The blob is whole."""
        self._say(b"end\n")

    async def result(self, progress: Progress | None = None) -> Unpacked:
        """What came of it; progress is told how many bytes of the blob are unpacked.

        BadArchive for a fault of the layer, OSError for one of this host.
        """
        line = b""
        async for line in self._answers:
            answer = json.loads(line)
            if "progress" not in answer:
                return Unpacked.parse(answer)
            if progress is not None:
                progress(answer["progress"])
        raise OSError(f"unpacking a layer ended without a result{': ' * bool(line)}{line!r}")

    def close(self) -> None:
        """Have the child end; what it made is in the target directory. Can be repeated."""
        if self._growth >= 0:
            loop = asyncio.get_running_loop()
            loop.remove_writer(self._growth)
            os.close(self._growth)
            self._growth = -1
        self._transport.close()

    def _say(self, line: bytes) -> None:
        self._pending += line
        loop = asyncio.get_running_loop()
        self._flush()
        if self._pending:
            loop.add_writer(self._growth, self._flush)

    def _flush(self) -> None:
        try:
            written = os.write(self._growth, self._pending)
        except BlockingIOError:
            return
        except BrokenPipeError:
            # It has failed; its answer says why.
            written = len(self._pending)
        self._pending = self._pending[written:]
        if not self._pending:
            asyncio.get_running_loop().remove_writer(self._growth)


class Unpacker:
    """The process that has children for layers; it, and they, end with this one."""

    def __init__(self, pid: int, requests: socket.socket) -> None:
        self.pid = pid
        self._requests = requests

    @classmethod
    @asynccontextmanager
    async def start(cls) -> AsyncIterator[Unpacker]:
        """Have one for as long as the block lasts."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "mooring.runtime.images.unlayer",
                    stdin=theirs.fileno(),
                    cwd="/",
                )
            try:
                yield cls(process.pid, ours)
            finally:
                ours.close()
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGKILL)
                await process.wait()

    async def unpack(self, job: Job, *, whole: bool = False) -> Unlayering:
        """Begin with a layer. whole: its blob does not grow any more."""
        loop = asyncio.get_running_loop()
        hears, growth = os.pipe()
        answers, says = os.pipe()
        try:
            packet = json.dumps(asdict(job)).encode()
            socket.send_fds(self._requests, [packet], [hears, says])
        except OSError:
            os.close(growth)
            os.close(answers)
            raise
        finally:
            os.close(hears)
            os.close(says)
        os.set_blocking(growth, False)
        reader = asyncio.StreamReader(limit=1 << 27)
        # To its end whatever happens: broken off, uvloop closes the descriptor and leaves the
        # file object to close it once more, when its number may be another file's.
        connecting = asyncio.ensure_future(
            loop.connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader),
                os.fdopen(answers, "rb", buffering=0),
            )
        )
        try:
            transport, _ = await asyncio.shield(connecting)
        except asyncio.CancelledError:
            transport, _ = await connecting
            transport.close()
            os.close(growth)
            raise
        found = Unlayering(growth, reader, transport)
        if whole:
            found.end()
        return found

"""The user's terminal joined to a hijacked connection."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import sys
import termios
import tty
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from .client import frames

CHUNK = 65536


def size() -> tuple[int, int]:
    """(rows, columns) of the terminal on stdout."""
    packed = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
    rows, columns, _, _ = struct.unpack("HHHH", packed)
    return rows, columns


@contextlib.contextmanager
def raw() -> Iterator[None]:
    """stdin in raw mode, given back as it was."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextlib.asynccontextmanager
async def resizing(resize: Callable[[int, int], Awaitable[object]]) -> AsyncIterator[None]:
    """Tell the engine the terminal's size now and whenever it changes."""
    loop, tasks = asyncio.get_running_loop(), set[asyncio.Future[object]]()

    def changed() -> None:
        task = asyncio.ensure_future(resize(*size()))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_signal_handler(signal.SIGWINCH, changed)
    changed()
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
        await asyncio.gather(*tasks, return_exceptions=True)


async def _send(writer: asyncio.StreamWriter) -> None:
    """stdin to the connection until its end, then half-close."""
    loop = asyncio.get_running_loop()
    # Not the loop's own threads: it waits for those at its end, and this one may wait for a key.
    reading = ThreadPoolExecutor(1, "stdin")
    while data := await loop.run_in_executor(reading, os.read, sys.stdin.fileno(), CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def join(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, terminal: bool, stdin: bool
) -> None:
    """Copy both ways until the engine ends the stream."""
    sender = asyncio.create_task(_send(writer)) if stdin else None
    try:
        if terminal:
            while data := await reader.read(CHUNK):
                os.write(1, data)
        else:
            async for stream, data in frames(reader):
                os.write(2 if stream == 2 else 1, data)
    finally:
        if sender:
            sender.cancel()
        writer.close()

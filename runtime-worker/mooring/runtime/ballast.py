"""Room on the disk that is given to nats-server when there is none left.

A container, an image or whatever else shares the file system may fill it to the last byte. A stream
of nats-server that could not be written to once takes nothing more until the server is started
again; and as no record can be changed, nothing could be removed to make room. So a few files are
kept in its directory. Each time the file system is full one of them is deleted and the server is
killed: every service is used to that. What still writes may take that room as well, so there are
several, and longer and longer waits between them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from mooring.kit.config import Settings

logger = logging.getLogger(__name__)

FILES = 8
_LARGEST = 4 << 20
_SHARE = 64
"""A file is at most this part of the file system."""
_LOOK = 0.5
"""Seconds between two looks."""
_PAGE = 4096


class Ballast:
    """The files, on the file system of `directory`, and the server that they are for."""

    def __init__(self, directory: Path, config: Path) -> None:
        """config: the path that the server was given with -c, by which it is found."""
        self._directory = directory
        self._config = config
        self._wait = 0.0
        """Seconds to let pass before one more file is given up."""
        self._size = 0

    async def watch(self) -> None:
        """Look for ever."""
        while True:
            with contextlib.suppress(FileNotFoundError):
                self.look()
            await asyncio.sleep(_LOOK)

    def look(self) -> None:
        """Give up a file if the file system is full; make up for it when there is room again."""
        found = os.statvfs(self._directory)
        free = found.f_bavail * found.f_frsize
        self._size = min(_LARGEST, found.f_blocks * found.f_frsize // _SHARE) // _PAGE * _PAGE
        if free < self._size // 2:
            self._give_up()
            return
        self._wait = 0.0
        if free > 4 * FILES * self._size:
            self._make()

    def _give_up(self) -> None:
        if self._wait > 0:
            self._wait -= _LOOK
            return
        there = [path for path in self._paths() if path.exists()]
        if not there:
            return
        there[-1].unlink()
        self._wait = float(2 ** (FILES - len(there)))
        logger.error("the file system of %s is full: starting nats-server anew", self._directory)
        for pid in _running(self._config):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _make(self) -> None:
        for path in self._paths():
            with contextlib.suppress(FileExistsError):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                descriptor = os.open(path, flags, 0o600)
                try:
                    os.posix_fallocate(descriptor, 0, self._size)
                except OSError:
                    path.unlink()
                    raise
                finally:
                    os.close(descriptor)

    def _paths(self) -> list[Path]:
        return [self._directory / f"ballast.{number}" for number in range(FILES)]


@contextlib.asynccontextmanager
async def kept(settings: Settings) -> AsyncIterator[None]:
    """Look after it for as long as the block lasts, if the server is this host's own."""
    if settings.nats_url:
        yield
        return
    directory = settings.state_dir / "nats"
    ballast = Ballast(directory, directory / "nats.conf")
    watching = asyncio.create_task(ballast.watch(), name="ballast")
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def _running(config: Path) -> list[int]:
    """The servers with this configuration."""
    found = []
    wanted = [b"-c", os.fsencode(config)]
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{entry}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                if words[1:] == wanted and words[0].endswith(b"nats-server"):
                    found.append(int(entry))
    return found

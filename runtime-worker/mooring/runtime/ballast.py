"""Room on the disk that is given to nats-server when there is none left.

A container, an image or whatever else shares the file system may fill it to the last byte. A stream
of nats-server that could not be written to once takes nothing more until the server is started
again; and as no record can be changed, nothing could be removed to make room. So a few files are
kept in its directory. Each time the file system is full one of them is deleted and the server is
killed: every service is used to that. What still writes may take that room as well, so there are
several, and longer and longer waits between them; and as the server may have failed to write
meanwhile, it is killed a last time once there is room for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

from mooring.kit.config import Settings

logger = logging.getLogger(__name__)

FILES = 8
_LARGEST = 4 << 20
_SHARE = 64
"""A file is at most this part of the file system."""
_LOOK, _CLOSE_LOOK = 0.5, 0.05
"""Seconds between two looks; where there is little room, it may be full and empty between two."""
_LITTLE = 32
"""Files' worth of room that are little."""
_PAGE = 4096


class Ballast:
    """The files, on the file system of `directory`, and the server that they are for."""

    def __init__(self, directory: Path, config: Path) -> None:
        """config: the path that the server was given with -c, by which it is found."""
        self._directory = directory
        self._config = config
        self._due = 0.0
        """When one more file may be given up (monotonic)."""
        self._full = False
        """Whether it was, and there has been no room for good since."""
        self._size = 0

    async def watch(self) -> None:
        """Look for ever."""
        while True:
            pause = _LOOK
            with contextlib.suppress(FileNotFoundError):
                if self.look() < _LITTLE * self._size:
                    pause = _CLOSE_LOOK
            await asyncio.sleep(pause)

    def look(self) -> int:
        """Give up a file if the file system is full; make up for it when there is room again.

        Returns the bytes that are free.
        """
        found = os.statvfs(self._directory)
        free = found.f_bavail * found.f_frsize
        self._size = min(_LARGEST, found.f_blocks * found.f_frsize // _SHARE) // _PAGE * _PAGE
        if free < self._size // 2:
            self._full = True
            self._give_up()
            return free
        if self._full and free > 2 * self._size:
            # More than what we have given up ourselves.
            self._full, self._due = False, 0.0
            logger.info("there is room in %s: starting nats-server anew", self._directory)
            self._restart()
        if free > 4 * FILES * self._size:
            self._make()
        return free

    def _give_up(self) -> None:
        now = time.monotonic()
        there = [path for path in self._paths() if path.exists()]
        if now < self._due or not there:
            return
        there[-1].unlink()
        self._due = now + 2 ** (FILES - len(there))
        logger.error("the file system of %s is full: starting nats-server anew", self._directory)
        self._restart()

    def _restart(self) -> None:
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

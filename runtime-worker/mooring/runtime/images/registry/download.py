"""One blob on its way into a file: appended to as it comes, taken up again where it ended.

The file is `downloads/<hex of its digest>`, and its size says how far it is: after whatever kill
the next attempt asks for the rest. Nothing here verifies a digest: who reads the file does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

from .client import Repository, connection_fault, is_transient
from .lean import aiohttp
from .manifests import Descriptor
from .progress import Meter, Say, state
from .words import ConnectionFault, RegistryError, TransferFault

logger = logging.getLogger(__name__)

_WORTH = 64 << 10
"""Bytes after which an attempt was not in vain."""
_RANGE = re.compile(r"bytes (\d+)-")


class Download:
    """A blob that is being fetched, for everyone who wants it."""

    def __init__(self, path: Path, descriptor: Descriptor) -> None:
        self.path, self.descriptor = path, descriptor
        self.size = 0
        """Bytes that the file has now."""
        self.resumed = False
        """Whether some of them are from an earlier process."""
        self._watchers: list[Callable[[int], None]] = []
        self._urls = descriptor.urls if descriptor.foreign else ()
        """Where a foreign layer may be had, the next to be tried first."""

    def watch(self, grown: Callable[[int], None]) -> None:
        """Have a function called with the size whenever it has grown, and now."""
        self._watchers.append(grown)
        if self.size:
            grown(self.size)

    def forget(self) -> None:
        """The bytes are no good: the next one begins again."""
        self.path.unlink(missing_ok=True)

    async def run(self, repository: Repository, say: Say, id_: str) -> None:
        """Fetch it; TransferFault, RegistryError, ConnectionFault, OSError."""
        try:
            with open(self.path, "ab", buffering=0) as file:
                self._tell(file.tell())
                self.resumed = self.size > 0
                if self.size > self.descriptor.size:
                    file.truncate(0)
                    self.size, self.resumed = 0, False
                await self._fetch_all(file.fileno(), repository, say, id_)
                # Now, while it is being unpacked, and not when the layer is stored.
                await asyncio.to_thread(os.fdatasync, file.fileno())
        except (OSError, TransferFault):
            # What can't be right is no start for another attempt; and if the disk is full,
            # nobody needs half a blob that badly.
            self.forget()
            raise

    async def _fetch_all(self, fd: int, repository: Repository, say: Say, id_: str) -> None:
        patience = repository.http.patience
        meter = Meter(say, "Downloading", id_, self.descriptor.size)
        failures = 0
        while self.size < self.descriptor.size or self.descriptor.size == 0:
            before = self.size
            try:
                await self._fetch(fd, repository, meter)
                return
            except (ConnectionFault, RegistryError) as exc:
                if len(self._urls) > 1:
                    self._urls = self._urls[1:]
                    continue
                if not is_transient(exc):
                    raise
                failures = 1 if self.size - before >= _WORTH else failures + 1
                if failures >= patience.attempts:
                    raise
                logger.info("blob %s broke off at %d: %s", id_, self.size, exc)
                wait = exc.wait if isinstance(exc, RegistryError) else 0.0
                await self._pause(wait or min(failures * patience.delay, 30.0), say, id_)

    async def _pause(self, seconds: float, say: Say, id_: str) -> None:
        while seconds > 0:
            whole = max(1, round(seconds))
            say(state(f"Retrying in {whole} second{'s' * (whole != 1)}", id_))
            await asyncio.sleep(min(1.0, seconds))
            seconds -= 1.0

    async def _fetch(self, fd: int, repository: Repository, meter: Meter) -> None:
        """One attempt, from where the file ends."""
        if self.size == self.descriptor.size > 0:
            return
        headers = {"Range": f"bytes={self.size}-"} if self.size else {}
        path = self._urls[0] if self._urls else f"blobs/{self.descriptor.digest}"
        async with repository.send("GET", path, headers=headers, accept=(416,)) as answer:
            if answer.status == 416:
                raise TransferFault(
                    f"the registry has no more than {self.size} bytes of {self.descriptor.digest}"
                )
            skip = self._to_skip(answer)
            try:
                async for piece in answer.content.iter_any():
                    if skip:
                        cut = min(skip, len(piece))
                        skip, piece = skip - cut, piece[cut:]
                    if piece:
                        self._append(fd, piece)
                        meter.at(self.size)
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as exc:
                raise connection_fault("GET", str(answer.url), exc) from exc
        if self.size < self.descriptor.size:
            raise ConnectionFault(f'Get "{path}": unexpected EOF')

    def _to_skip(self, answer: aiohttp.ClientResponse) -> int:
        """How many bytes of an answer are in the file already."""
        if answer.status != 206:
            return self.size
        found = _RANGE.match(answer.headers.get("Content-Range", ""))
        start = int(found[1]) if found else -1
        if not 0 <= start <= self.size:
            raise ConnectionFault(f"the registry sent another range than {self.size} and on")
        return self.size - start

    def _append(self, fd: int, piece: bytes) -> None:
        if self.size + len(piece) > self.descriptor.size:
            raise TransferFault(
                f"filesystem layer verification failed for digest {self.descriptor.digest}: "
                f"more than {self.descriptor.size} bytes"
            )
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(fd, rest) :]
        self._tell(self.size + len(piece))

    def _tell(self, size: int) -> None:
        self.size = size
        for grown in self._watchers:
            grown(size)

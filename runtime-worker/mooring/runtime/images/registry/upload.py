"""One blob on its way to a registry: nothing is sent that is there, and a broken upload goes on."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode, urljoin, urlsplit, urlunsplit

from .client import Repository, is_transient
from .manifests import Descriptor
from .progress import Meter
from .words import ConnectionFault, RegistryError, TransferFault

_PIECE = 512 << 10
_RANGE = re.compile(r"(?:bytes=)?0-(\d+)")
_OCTETS = "application/octet-stream"


async def exists(repository: Repository, descriptor: Descriptor) -> bool:
    """Whether the repository has this blob."""
    async with repository.send("HEAD", f"blobs/{descriptor.digest}", accept=(404,)) as answer:
        return answer.status == 200


@dataclass(slots=True)
class Upload:
    """Sends the bytes of a file under their digest."""

    repository: Repository
    descriptor: Descriptor
    path: Path
    meter: Meter | None = None

    async def mount(self, source: str) -> str:
        """Have the registry take the blob from another repository; empty, or where to send it."""
        query = urlencode({"mount": self.descriptor.digest, "from": source})
        async with self.repository.send("POST", f"blobs/uploads/?{query}") as answer:
            if answer.status == 201:
                return ""
            return self._location(str(answer.url), answer.headers.get("Location", ""))

    async def run(self, location: str = "") -> None:
        """Send it; RegistryError, ConnectionFault. location: an upload that was begun."""
        patience = self.repository.http.patience
        failures = 0
        at = 0
        while True:
            try:
                if not location:
                    location, at = await self._begin(), 0
                location = await self._send(location, at)
                await self._finish(location)
                return
            except (ConnectionFault, RegistryError) as exc:
                failures += 1
                begun = location and isinstance(exc, RegistryError) and exc.status in (404, 416)
                if failures >= patience.attempts or not (begun or is_transient(exc)):
                    raise
                wait = exc.wait if isinstance(exc, RegistryError) else 0.0
                await asyncio.sleep(wait or min(failures * patience.delay, 30.0))
                location, at = await self._progress(location)

    async def _begin(self) -> str:
        async with self.repository.send("POST", "blobs/uploads/") as answer:
            return self._location(str(answer.url), answer.headers.get("Location", ""))

    async def _send(self, location: str, at: int) -> str:
        size = self.descriptor.size
        headers = {"Content-Type": _OCTETS, "Content-Length": str(size - at)}
        if at:
            headers["Content-Range"] = f"{at}-{size - 1}"
        async with self.repository.send(
            "PATCH", location, headers=headers, data=lambda: self._pieces(at)
        ) as answer:
            return self._location(location, answer.headers.get("Location", ""))

    async def _finish(self, location: str) -> None:
        parts = urlsplit(location)
        query = f"{parts.query}&" if parts.query else ""
        query += f"digest={quote(self.descriptor.digest, safe='')}"
        headers = {"Content-Type": _OCTETS, "Content-Length": "0"}
        url = urlunsplit(parts._replace(query=query))
        async with self.repository.send("PUT", url, headers=headers):
            pass

    async def _progress(self, location: str) -> tuple[str, int]:
        """How far the registry has come with an upload that broke off; from the start if unsure."""
        if not location:
            return "", 0
        try:
            async with self.repository.send("GET", location) as answer:
                found = _RANGE.match(answer.headers.get("Range", ""))
                # `0-0` may mean one byte or none.
                end = int(found[1]) if found else 0
                if 0 < end < self.descriptor.size - 1:
                    where = answer.headers.get("Location", "") or location
                    return self._location(location, where), end + 1
        except (ConnectionFault, RegistryError):
            pass
        return "", 0

    async def _pieces(self, at: int) -> AsyncIterator[bytes]:
        fd = os.open(self.path, os.O_RDONLY)
        try:
            while piece := os.pread(fd, _PIECE, at):
                yield piece
                at += len(piece)
                if self.meter is not None:
                    self.meter.at(at)
        finally:
            os.close(fd)

    def _location(self, base: str, location: str) -> str:
        if not location:
            raise TransferFault("the registry does not say where to upload to")
        return urljoin(base, location)

"""The conversation between the worker and its transfers process: a JSON object to a line.

worker → {"start": id, "op", "args"}      child → {"say": id, "messages": […]}
         {"cancel": id}                            {"end": id, "result"/"error": [kind, text]}
         {"answer": n, "result"/"error"}           {"call": n, "job": id, "op", "args"}
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from mooring.kit.errors import KINDS, EngineError

Packet = dict[str, Any]
LINE = 64 << 20
"""Bytes of the longest line: a config and what goes with it."""


def error_of(exc: EngineError) -> list[str]:
    """An error as it crosses."""
    return [exc.kind, exc.message]


def raise_error(error: list[str]) -> None:
    """The same error again."""
    kind, message = error
    raise KINDS.get(kind, EngineError)(message)


class Channel:
    """One side of it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, packet: Packet) -> None:
        """Say something; never waits."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(packet, separators=(",", ":")).encode() + b"\n")

    async def receive(self) -> Packet | None:
        """What the other side says next; None when it is gone."""
        try:
            line = await self._reader.readline()
        except (ConnectionError, ValueError):
            return None
        if not line.endswith(b"\n"):
            return None
        packet: Packet = json.loads(line)
        return packet

    def close(self) -> None:
        """End it."""
        self._writer.close()

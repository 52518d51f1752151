"""What the transfers process asks of the worker, who alone changes the store and the records."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from .channel import Channel, Packet, raise_error
from .progress import Message


class Host(Protocol):
    """The worker, as one transfer sees it.

    `lease` says which of some layers are in the store, and from then on they stay until the
    transfer has ended; so does what `commit` adds. Whatever a transfer that fails has added, and
    nothing else uses, is taken out again by the worker.
    """

    async def lease(self, chain_ids: list[str], config: str) -> tuple[set[str], bool]:
        """The chain ids that are there, and whether the config is."""
        ...

    async def commit(self, layer: dict[str, Any]) -> None:
        """Put an unpacked layer in its place, the layers below being there."""
        ...

    async def add(self, image: dict[str, Any]) -> int:
        """Record an image that is complete, with its references; the revision."""
        ...

    async def compressed(self, layer: dict[str, Any]) -> None:
        """A layer's blob has a compressed form that takes its place."""
        ...

    def say(self, message: Message) -> None:
        """Progress."""
        ...


class Calls:
    """Calls over the channel, and their answers."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._count = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    async def call(self, job: int, op: str, args: dict[str, Any]) -> Any:
        """Ask the worker; its EngineError."""
        self._count += 1
        number = self._count
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._channel.send({"call": number, "job": job, "op": op, "args": args})
        try:
            packet = await future
        finally:
            del self._waiting[number]
        if "error" in packet:
            raise_error(packet["error"])
        return packet["result"]

    def answer(self, packet: Packet) -> None:
        """An answer that came."""
        future = self._waiting.get(packet["answer"])
        if future is not None and not future.done():
            future.set_result(packet)


class RemoteHost:
    """Host, at the other end of the channel."""

    def __init__(self, calls: Calls, channel: Channel, job: int) -> None:
        self._calls, self._channel, self._job = calls, channel, job
        self._messages: list[Message] = []
        self._flushing: asyncio.TimerHandle | None = None

    async def lease(self, chain_ids: list[str], config: str) -> tuple[set[str], bool]:
        """See Host."""
        args = {"chain_ids": chain_ids, "config": config}
        found = await self._calls.call(self._job, "lease", args)
        return set(found["layers"]), bool(found["config"])

    async def commit(self, layer: dict[str, Any]) -> None:
        """See Host."""
        await self._calls.call(self._job, "commit", layer)

    async def add(self, image: dict[str, Any]) -> int:
        """See Host."""
        return int(await self._calls.call(self._job, "add", image))

    async def compressed(self, layer: dict[str, Any]) -> None:
        """See Host."""
        await self._calls.call(self._job, "compressed", layer)

    def say(self, message: Message) -> None:
        """See Host. What is said at about the same time goes in one packet."""
        self._messages.append(message)
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_later(0.02, self.flush)

    def flush(self) -> None:
        """Send what was said."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._messages:
            self._channel.send({"say": self._job, "messages": self._messages})
            self._messages = []

"""RUN: an ordinary container, made, followed and removed over the bus."""

from __future__ import annotations

import asyncio
import codecs
import json
import struct
from collections.abc import Callable
from contextlib import suppress

from mooring.kit import subjects
from mooring.kit.bus import Bus
from mooring.kit.errors import EngineError, NotFound
from mooring.kit.models.base import Done
from mooring.kit.models.build import BuildOptions
from mooring.kit.models.container import (
    ContainerConfig,
    ContainerCreated,
    CreateContainer,
    HostConfig,
    RemoveContainer,
    StartContainer,
)
from mooring.kit.models.host import OpenStream
from mooring.kit.streams import download

from .output import Output

ANNOTATION = "mooring.build"
"""On every container of a build, with the build's id: so that they are found after a kill."""

_HEAD = struct.Struct("<HBBIQ")
_MAGIC, _STDOUT, _STDERR, _RUN_ENDS = 0x4D52, 1, 2, 17
_REMOVE_TIMEOUT = 60.0


class RunFailed(Exception):
    """A command that did not end with status 0."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class BuildContainer:
    """One container of a build. `remove` must be called, whatever happens."""

    def __init__(self, bus: Bus, node: str) -> None:
        self.id = ""
        self._bus = bus
        self._node = node

    async def create(
        self, build: str, config: ContainerConfig, options: BuildOptions, network: str
    ) -> list[str]:
        """Create it; warnings. EngineError."""
        host = host_config(options, network)
        host.annotations = {ANNOTATION: build}
        message = CreateContainer(config=config, host_config=host)
        created = await self._bus.request(subjects.CONTAINER_CREATE, message, ContainerCreated)
        self.id = created.container_id
        return created.warnings

    async def run(self, output: Output) -> int:
        """Start it and pass its output on; its exit status. EngineError if it cannot start."""
        printing = asyncio.create_task(self._print(output), name=f"output of {self.id[:12]}")
        try:
            message = StartContainer(container=self.id)
            await self._bus.request(subjects.CONTAINER_START, message, Done)
            return await printing
        finally:
            printing.cancel()
            await asyncio.gather(printing, return_exceptions=True)

    async def remove(self) -> None:
        """Kill and remove it, with its anonymous volumes."""
        if not self.id:
            return
        message = RemoveContainer(container=self.id, force=True, volumes=True)
        with suppress(NotFound):
            await self._bus.request(
                subjects.CONTAINER_REMOVE, message, Done, timeout=_REMOVE_TIMEOUT
            )

    async def _print(self, output: Output) -> int:
        frames = _Frames(output)
        message = OpenStream(id=self.id, run=1, at_run=1, until_run=1, follow=True)
        subject = subjects.agent(self._node, subjects.AGENT_STREAM_OPEN)
        async with download(self._bus, subject, message, resume=_resume) as reading:
            async for _, data in reading:
                frames.feed(data)
                await output.room()
        if frames.exit_code is None:
            raise EngineError(f"the output of container {self.id[:12]} ended early")
        return frames.exit_code


def host_config(options: BuildOptions, network: str) -> HostConfig:
    """What the options of a build ask for its containers."""
    limits = options.limits
    return HostConfig(
        network_mode=network or options.network_mode,
        extra_hosts=options.extra_hosts or None,
        security_opt=options.security_opt or None,
        memory=limits.memory,
        memory_swap=limits.memory_swap,
        cpu_shares=limits.cpu_shares,
        cpuset_cpus=limits.cpuset_cpus,
        cpuset_mems=limits.cpuset_mems,
        cpu_period=limits.cpu_period,
        cpu_quota=limits.cpu_quota,
        shm_size=limits.shm_size,
        ulimits=limits.ulimits or None,
        cgroup_parent=limits.cgroup_parent,
    )


def _resume(request: OpenStream, offset: int) -> OpenStream:
    return request.model_copy(update={"offset": offset, "at_run": None})


class _Frames:
    """The container's log, told to the client as it comes."""

    def __init__(self, output: Output) -> None:
        self.exit_code: int | None = None
        self._rest = b""
        utf8 = codecs.getincrementaldecoder("utf-8")
        self._say: dict[int, tuple[codecs.IncrementalDecoder, Callable[[str], None]]] = {
            _STDOUT: (utf8("replace"), output.say),
            _STDERR: (utf8("replace"), output.say_red),
        }
        self._stream = 0
        self._left = 0
        self._end = b""

    def feed(self, data: bytes | memoryview) -> None:
        """More bytes of the log."""
        view = memoryview(self._rest + bytes(data)) if self._rest else memoryview(data)
        while view:
            if not self._left:
                if len(view) < _HEAD.size:
                    break
                magic, self._stream, _, self._left, _ = _HEAD.unpack_from(view)
                if magic != _MAGIC:
                    raise EngineError("the log of a build's container is damaged")
                view = view[_HEAD.size :]
            piece, view = view[: self._left], view[self._left :]
            self._left -= len(piece)
            self._payload(bytes(piece))
        self._rest = bytes(view)

    def _payload(self, piece: bytes) -> None:
        if self._stream in self._say:
            decoder, say = self._say[self._stream]
            if text := decoder.decode(piece):
                say(text)
        elif self._stream == _RUN_ENDS:
            self._end += piece
            if not self._left:
                self.exit_code = int(json.loads(self._end)["exit_code"])

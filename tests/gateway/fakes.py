"""Small working versions of the lifecycle manager, a host's agent and its runtime worker."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterable
from typing import Any

from mooring.gateway.frames import HEAD, MAGIC, RUN_BEGINS, RUN_ENDS
from mooring.gateway.gateway import Gateway
from mooring.kit import references, subjects
from mooring.kit.bus import Bus
from mooring.kit.endpoints import predefined_id
from mooring.kit.errors import Conflict, EngineError, InvalidParameter, NotFound, Unavailable
from mooring.kit.models.base import Done
from mooring.kit.models.container import (
    ContainerCreated,
    ContainerRecord,
    ContainerRequest,
    CreateContainer,
    Event,
    KillContainer,
    NoteContainer,
    RemoveContainer,
    StartContainer,
    State,
    StopContainer,
)
from mooring.kit.models.exec import (
    CreateExec,
    ExecCreated,
    ExecRecord,
    ExecStarted,
    ExecState,
    StartExec,
)
from mooring.kit.models.host import (
    ContainerSize,
    HostContainer,
    HostResize,
    HostTop,
    NodeRecord,
    OpenStream,
    StatsSample,
    StdinAck,
    StdinChunk,
    TopResult,
)
from mooring.kit.models.image import (
    ImageRecord,
    ImageRemoved,
    ImagesLoaded,
    ImportImage,
    Layer,
    LoadImages,
    ReferenceRecord,
    RemoveImage,
    TagImage,
)
from mooring.kit.models.network import NetworkRecord
from mooring.kit.store import Bucket, key_for
from mooring.kit.streams import Upload, serve_downloads, serve_uploads

DRIVERS = {"bridge": "bridge", "host": "host", "none": "null"}
NODE = "n1"
SECOND = 1_000_000_000


def frame(stream: int, payload: bytes, time_ns: int = SECOND) -> bytes:
    """One frame of a log."""
    return HEAD.pack(MAGIC, stream, 0, len(payload), time_ns) + payload


class Log:
    """A log in memory, with followers."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.runs: dict[int, int] = {}
        self.ended: set[int] = set()
        self.changed = asyncio.Event()

    def add(self, data: bytes) -> None:
        """Append, and wake whoever follows."""
        self.data += data
        self.wake()

    def wake(self) -> None:
        """Have followers look again."""
        self.changed.set()
        self.changed = asyncio.Event()


class LogSource:
    """A cursor over a Log."""

    def __init__(self, log: Log, request: OpenStream, stop: int | None) -> None:
        self._log = log
        self._until = request.until_run
        self._stop = stop

    async def read(self, offset: int, limit: int) -> bytes:
        """See kit.streams.Source."""
        while True:
            end = len(self._log.data) if self._stop is None else self._stop
            if offset < end:
                return bytes(self._log.data[offset : min(end, offset + limit)])
            if self._stop is not None or self._until in self._log.ended:
                return b""
            await self._log.changed.wait()

    async def close(self) -> None:
        """See kit.streams.Source."""


class FakeEngine:
    """One lifecycle manager and one host, enough of them to be asked by a gateway."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.logs: dict[str, Log] = {}
        self.stdin: dict[str, bytearray] = {}
        self.stdin_ended: dict[str, asyncio.Event] = {}
        self.notes: list[tuple[str, str]] = []
        self.noted = asyncio.Condition()
        self.asked: list[Any] = []
        self.stopping = asyncio.Event()
        """Set by the first stop; each one ends once it may."""
        self.may_stop = asyncio.Event()
        self.may_stop.set()
        self.events = 0
        self.uploaded = b""
        self.echo = False
        self.exec_error = ""
        self.exec_refusal: EngineError | None = None
        self.gateway: Gateway | None = None
        self.containers: Bucket[ContainerRecord]
        self.execs: Bucket[ExecRecord]
        self.images: Bucket[ImageRecord]
        self.names: Bucket[ReferenceRecord]

    async def start_serving(self) -> None:
        """Make the buckets and answer."""
        bus = self.bus
        self.containers = await bus.bucket(subjects.BUCKET_CONTAINERS, ContainerRecord)
        self.execs = await bus.bucket(subjects.BUCKET_EXECS, ExecRecord)
        self.images = await bus.bucket(subjects.BUCKET_IMAGES, ImageRecord)
        self.names = await bus.bucket(subjects.BUCKET_REFERENCES, ReferenceRecord)
        networks = await bus.bucket(subjects.BUCKET_NETWORKS, NetworkRecord)
        for number, (name, driver) in enumerate(DRIVERS.items()):
            id_ = predefined_id(name)
            record = NetworkRecord(id=id_, name=name, driver=driver, created_ns=number + 1)
            await networks.put(id_, record)
        nodes = await bus.bucket(subjects.BUCKET_NODES, NodeRecord)
        await nodes.put(
            NODE,
            NodeRecord(
                id=NODE,
                name="host",
                state_dir="/state",
                filesystem="ext4",
                run_dir="/run/m",
                cpus=2,
            ),
        )
        await bus.serve(subjects.CONTAINER_CREATE, CreateContainer, self.create)
        await bus.serve(subjects.CONTAINER_START, StartContainer, self.start)
        await bus.serve(subjects.CONTAINER_STOP, StopContainer, self.stop)
        await bus.serve(subjects.CONTAINER_KILL, KillContainer, self.kill)
        await bus.serve(subjects.CONTAINER_REMOVE, RemoveContainer, self.remove)
        await bus.serve(subjects.CONTAINER_PAUSE, ContainerRequest, self.pause)
        await bus.serve(subjects.CONTAINER_NOTE, NoteContainer, self.note)
        await bus.serve(subjects.EXEC_CREATE, CreateExec, self.create_exec)
        await bus.serve(subjects.EXEC_START, StartExec, self.start_exec)
        await bus.serve(subjects.IMAGE_TAG, TagImage, self.tag)
        await bus.serve(subjects.IMAGE_REMOVE, RemoveImage, self.untag)
        agent = subjects.agent
        await bus.serve(agent(NODE, subjects.AGENT_STDIN), StdinChunk, self.write_stdin)
        await bus.serve(agent(NODE, subjects.AGENT_RESIZE), HostResize, self.heard)
        await bus.serve(agent(NODE, subjects.AGENT_EXEC_RESIZE), HostResize, self.heard)
        await bus.serve(agent(NODE, subjects.AGENT_TOP), HostTop, self.top)
        await bus.serve(agent(NODE, subjects.AGENT_STATS), HostContainer, self.stats)
        await bus.serve(subjects.runtime(NODE, subjects.RUNTIME_SIZE), HostContainer, self.size)
        await serve_downloads(
            bus, agent(NODE, subjects.AGENT_STREAM_OPEN), OpenStream, self.open_stream
        )
        await serve_uploads(
            bus, subjects.runtime(NODE, subjects.RUNTIME_IMAGE_LOAD), LoadImages, self.load
        )
        await serve_uploads(
            bus, subjects.runtime(NODE, subjects.RUNTIME_IMAGE_IMPORT), ImportImage, self.import_
        )

    # --- as a test arranges it ---

    def watch(self, gateway: Gateway) -> None:
        """Whatever a test arranges from now on, this gateway knows when it is done."""
        self.gateway = gateway

    async def _known(self, revision: int) -> None:
        if self.gateway is not None:
            await self.gateway.engine.containers.mirror.reached(revision)

    async def add_image(self, name: str = "bb", **fields: Any) -> ImageRecord:
        """An image with one name."""
        digest = hashlib.sha256(name.encode()).hexdigest()
        layer = Layer(diff_id=f"sha256:{digest}", chain_id=f"sha256:{digest}", size=5)
        image = ImageRecord(
            id=f"sha256:{digest}", layers=[layer], size=5, created="2024-01-02T03:04:05Z"
        ).model_copy(update=fields)
        await self.images.put(digest, image)
        full = references.normalize(name)
        await self.names.put(key_for(full), ReferenceRecord(reference=full, image_id=image.id))
        if self.gateway is not None:
            views = self.gateway.engine.images
            await views.until(
                lambda: views.names(name) == image.id and views.get(image.id) == image
            )
        return image

    async def add(self, name: str, **fields: Any) -> ContainerRecord:
        """A container; its id is made of its name."""
        container_id = hashlib.sha256(name.encode()).hexdigest()
        record = ContainerRecord(
            id=container_id,
            name=name,
            node=NODE,
            created_ns=time.time_ns(),
            image="bb",
            image_id="sha256:" + hashlib.sha256(b"bb").hexdigest(),
            path="sh",
        ).model_copy(update=fields)
        await self._known(await self.containers.put(container_id, record))
        return record

    async def running(self, name: str, **fields: Any) -> ContainerRecord:
        """A container in its first run."""
        record = await self.add(
            name, state=State.RUNNING, run=1, pid=10, started_ns=time.time_ns(), **fields
        )
        self.begin(record.id, 1)
        return record

    def log(self, container_id: str) -> Log:
        """The log of a container or exec."""
        return self.logs.setdefault(container_id, Log())

    def begin(self, container_id: str, run: int) -> None:
        """A run begins in the log."""
        log = self.log(container_id)
        log.runs[run] = len(log.data)
        log.add(frame(RUN_BEGINS, str(run).encode()))

    def prints(self, container_id: str, payload: bytes, stream: int = 1, at: int = SECOND) -> None:
        """The container prints."""
        self.log(container_id).add(frame(stream, payload, at))

    async def exit(self, container_id: str, code: int = 0) -> None:
        """The run ends: in the log, then in the record."""
        record = (await self.containers.get(container_id)).record
        log = self.log(container_id)
        log.ended.add(record.run)
        log.add(frame(RUN_ENDS, b"{}"))
        await self.change(
            container_id, state=State.EXITED, exit_code=code, finished_ns=time.time_ns(), pid=0
        )

    async def change(self, container_id: str, **fields: Any) -> int:
        """Write the record with some fields changed."""
        entry = await self.containers.get(container_id)
        record = entry.record.model_copy(update=fields)
        revision = await self.containers.put(container_id, record)
        await self._known(revision)
        return revision

    async def emit(self, action: str, actor: str = "c1", **fields: Any) -> Event:
        """An event on the durable stream."""
        self.events += 1
        event = Event(
            id=f"{actor}.{self.events}", action=action, actor=actor, time_ns=time.time_ns()
        ).model_copy(update=fields)
        subject = subjects.event(event.type, action)
        await self.bus.publish_durable(subject, event, msg_id=event.id)
        return event

    # --- the lifecycle manager ---

    async def _resolve(self, name: str) -> ContainerRecord:
        mirror = await self.containers.mirror()
        for entry in mirror.values():
            record = entry.record
            if record.id.startswith(name) or record.name == name:
                return record
        raise NotFound(f"No such container: {name}")

    async def create(self, request: CreateContainer) -> ContainerCreated:
        """Make a record."""
        self.asked.append(request)
        if request.config.image == "missing":
            raise NotFound("No such image: missing:latest")
        record = await self.add(
            request.name or "random",
            config=request.config,
            host_config=request.host_config,
            networking=request.networking,
        )
        revision = (await self.containers.get(record.id)).revision
        return ContainerCreated(container_id=record.id, revision=revision)

    async def start(self, request: StartContainer) -> Done:
        """The run begins."""
        record = await self._resolve(request.container)
        if record.config.cmd == ["lost"]:
            raise Unavailable("nobody knows")
        if record.config.cmd == ["nope"]:
            await self.change(
                record.id, state=State.CREATED, run=record.run + 1, error="not found", exit_code=127
            )
            raise InvalidParameter("exec: nope: executable file not found in $PATH")
        self.begin(record.id, record.run + 1)
        revision = await self.change(
            record.id, state=State.RUNNING, run=record.run + 1, started_ns=time.time_ns(), pid=7
        )
        return Done(revision=revision)

    async def stop(self, request: StopContainer) -> Done:
        """The run ends."""
        self.asked.append(request)
        record = await self._resolve(request.container)
        self.stopping.set()
        await self.may_stop.wait()
        await self.exit(record.id, 143)
        return Done(revision=(await self.containers.get(record.id)).revision)

    async def kill(self, request: KillContainer) -> Done:
        """The run ends, if there is one."""
        record = await self._resolve(request.container)
        if record.state is not State.RUNNING:
            raise Conflict(
                f"cannot kill container: {request.container}: container {record.id} is not running"
            )
        await self.exit(record.id, 137)
        return Done(revision=(await self.containers.get(record.id)).revision)

    async def pause(self, request: ContainerRequest) -> Done:
        """It is frozen."""
        record = await self._resolve(request.container)
        return Done(revision=await self.change(record.id, state=State.PAUSED))

    async def remove(self, request: RemoveContainer) -> Done:
        """A tombstone."""
        self.asked.append(request)
        record = await self._resolve(request.container)
        return Done(revision=await self.change(record.id, state=State.REMOVED))

    async def note(self, request: NoteContainer) -> Done:
        """An event."""
        async with self.noted:
            self.notes.append((request.container, request.action))
            self.noted.notify_all()
        return Done()

    async def create_exec(self, request: CreateExec) -> ExecCreated:
        """Register it."""
        record = await self._resolve(request.container)
        exec_id = hashlib.sha256(repr(request).encode()).hexdigest()
        revision = await self.execs.put(
            exec_id,
            ExecRecord(
                id=exec_id, container=record.id, node=NODE, created_ns=1, config=request.config
            ),
        )
        return ExecCreated(exec_id=exec_id, revision=revision)

    async def start_exec(self, request: StartExec) -> ExecStarted:
        """It runs `cat` if it has input, else prints its command and ends."""
        self.asked.append(request)
        record = (await self.execs.get(request.exec_id)).record
        if self.exec_refusal is not None:
            raise self.exec_refusal
        if self.exec_error:
            await self.end_exec(record.id, 126)
            return ExecStarted(error=self.exec_error, exit_code=126)
        revision = await self.execs.put(
            record.id, record.model_copy(update={"state": ExecState.RUNNING, "pid": 9})
        )
        if not record.config.attach_stdin:
            self.prints(record.id, " ".join(record.config.cmd).encode() + b"\n")
            await self.end_exec(record.id, 3)
        return ExecStarted(revision=revision, pid=9)

    async def end_exec(self, exec_id: str, code: int) -> None:
        """Its output ends, then its record says how."""
        log = self.log(exec_id)
        log.ended.add(0)
        log.wake()
        record = (await self.execs.get(exec_id)).record
        await self.execs.put(
            exec_id, record.model_copy(update={"state": ExecState.EXITED, "exit_code": code})
        )

    async def tag(self, request: TagImage) -> Done:
        """Another name."""
        full = references.normalize(request.reference)
        record = ReferenceRecord(reference=full, image_id=request.image)
        return Done(revision=await self.names.put(key_for(full), record))

    async def untag(self, request: RemoveImage) -> ImageRemoved:
        """The name goes."""
        self.asked.append(request)
        full = references.normalize(request.image)
        await self.names.delete(key_for(full))
        return ImageRemoved(untagged=[references.familiar(full)])

    # --- the agent ---

    async def open_stream(self, request: OpenStream) -> tuple[LogSource, int]:
        """A cursor where the request says."""
        self.asked.append(request)
        log = self.log(request.exec_id or request.id)
        if request.exec_id:
            request = request.model_copy(update={"until_run": 0})
        begin = request.offset or 0
        if request.from_end:
            begin = len(log.data)
        if request.at_run is not None:
            begin = log.runs.get(request.at_run, len(log.data))
        stop = None if request.follow else len(log.data)
        return LogSource(log, request, stop), begin

    async def write_stdin(self, request: StdinChunk) -> StdinAck:
        """Written once, whatever is sent again."""
        key = request.exec_id or request.id
        written = self.stdin.setdefault(key, bytearray())
        new = request.data[len(written) - request.offset :]
        written += new
        if self.echo and new:
            self.prints(key, bytes(new))
        if request.eof:
            self.stdin_ended.setdefault(key, asyncio.Event()).set()
            if request.exec_id:
                await self.end_exec(key, 0)
        return StdinAck(offset=len(written))

    async def heard(self, request: HostResize) -> Done:
        """Remember it."""
        self.asked.append(request)
        return Done()

    async def top(self, request: HostTop) -> TopResult:
        """One process."""
        return TopResult(titles=["PID", "CMD"], processes=[["10", request.arguments]])

    async def stats(self, request: HostContainer) -> StatsSample:
        """One reading."""
        return StatsSample(
            running=True,
            time_ns=SECOND,
            stats={"cpu_stats": {"online_cpus": 2}, "memory_stats": {"usage": 5}},
        )

    # --- the runtime worker ---

    async def size(self, request: HostContainer) -> ContainerSize:
        """Always the same."""
        return ContainerSize(size_rw=3, size_root_fs=8)

    async def load(self, request: LoadImages, upload: Upload) -> ImagesLoaded:
        """Anything but `bad` is an image."""
        return await self._receive(upload, "bb", "Loaded image: bb:latest")

    async def import_(self, request: ImportImage, upload: Upload) -> ImagesLoaded:
        """Likewise."""
        self.asked.append(request)
        return await self._receive(upload, "imported", "")

    async def _receive(
        self, upload: AsyncIterable[memoryview], name: str, line: str
    ) -> ImagesLoaded:
        self.uploaded = b"".join([bytes(piece) async for piece in upload])
        if self.uploaded == b"bad":
            raise InvalidParameter("unexpected EOF")
        image = await self.add_image(name)
        return ImagesLoaded(lines=[line or image.id], image_ids=[image.id])

"""What lifecycle managers and hosts say to each other: commands down, facts up."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from .base import Done, Model, Request
from .container import (
    ContainerConfig,
    ContainerRecord,
    HealthResult,
    NetworkState,
    RestartPolicy,
)
from .exec import ExecConfig
from .image import ImageRecord


class NodeRecord(Model):
    """A host, as its runtime worker describes it at each start."""

    version: int = 1
    id: str
    name: str = ""
    seen_ns: int = 0
    kernel: str = ""
    operating_system: str = ""
    os_version: str = ""
    architecture: str = ""
    cpus: int = 0
    memory: int = 0
    cgroup_version: str = ""
    security_options: list[str] = []
    state_dir: str = ""
    filesystem: str = ""
    """Of the state directory: `ext4`, `xfs`, …"""
    run_dir: str = ""
    warnings: list[str] = []


# --- commands to the runtime worker ---


class HostStart(Request):
    """Start a run of a container. Kept if its policy restarts: then that repeats it."""

    record: ContainerRecord
    image: ImageRecord
    run: int
    peers: dict[str, str] = {}
    """The full id of each container that a mode such as `container:web` names."""
    images: list[ImageRecord] = []
    """Those that are mounted in it (`--mount type=image`)."""
    linked: dict[str, ContainerConfig] = {}
    """What the containers are that legacy links name, by the names that the links have."""


class HostStarted(Done):
    """error is set, with the exit code 126 or 127, when the program could not be executed."""

    pid: int = 0
    started_ns: int = 0
    error: str = ""
    exit_code: int = 0
    network: NetworkState = Field(default_factory=NetworkState)
    over: bool = False
    """It was started before, has ended, and nothing is left of it here: its exit was told."""


class HostContainer(Request):
    """A command about one run of a container on this host; run 0 means whichever there is."""

    id: str
    run: int = 0


class HostRestart(HostContainer):
    """From the agent to the worker: start run `run` of a stored HostStart again."""


class HostSize(HostContainer):
    """How much a container has written."""

    image: int = 0
    """Bytes of the image's layers, to be added for size_root_fs."""


class ContainerSize(Done):
    size_rw: int = 0
    size_root_fs: int = 0


# --- commands to the shim agent ---


class HostStop(HostContainer):
    """Signal, wait `timeout` seconds (-1 for ever), then SIGKILL; answers when it has exited."""

    signal: int = 15
    timeout: int = 10


class HostStopped(Done):
    """`run` is the last run that the host knows of: it may have begun by itself meanwhile."""

    run: int = 0


class HostKill(HostContainer):
    """SIGKILL, and any signal with ends_restarts (the stop signal), end the restart policy
    until the next start. Answers once the signal is sent, for SIGKILL once it has exited."""

    signal: int = 9
    ends_restarts: bool = False


class HostResize(HostContainer):
    rows: int = 0
    columns: int = 0
    exec_id: str = ""


class HostTop(HostContainer):
    arguments: str = "-ef"


class TopResult(Done):
    titles: list[str] = []
    processes: list[list[str]] = []


class HostExec(HostContainer):
    exec_id: str
    config: ExecConfig = ExecConfig()
    attach: bool = True
    rows: int = 0
    columns: int = 0


class HostPolicy(HostContainer):
    """A new restart policy, or (stopped) no restarts until the next start."""

    policy: RestartPolicy | None = None
    stopped: bool = False
    start: HostStart | None = None
    """What to start, with a policy that restarts: only such a container's start is kept."""


class StdinChunk(HostContainer):
    """Bytes for the stdin of a container, or of an exec. Sent again, they are written once."""

    session: str
    """Whose offsets these are: one attached client."""
    offset: int
    """Of the first byte of data in the session."""
    data: bytes = b""
    eof: bool = False
    """After data, this session ends; the stdin itself closes for an exec or with StdinOnce."""
    exec_id: str = ""


class StdinAck(Done):
    offset: int = 0
    """The session's bytes written so far."""
    closed: bool = False
    """Nobody will read any more."""


class StatsSample(Done):
    """Raw numbers of one reading of the cgroup: name to value, as Docker's stats nests them."""

    running: bool = False
    time_ns: int = 0
    stats: dict[str, Any] = {}


class OpenStream(HostContainer):
    """Open the log of a container or the output of an exec as a stream of log bytes.

    Exactly one place to start: `offset` (resume), `tail` (last n lines), `since_ns`, or
    `at_run` (where run number `at_run` begins or will begin: attach), or `from_end`.
    """

    exec_id: str = ""
    offset: int | None = None
    tail: int | None = None
    since_ns: int = 0
    at_run: int | None = None
    from_end: bool = False
    follow: bool = False
    """Go on until the end of the run `until_run`; else stop at what is there now."""
    until_run: int | None = None
    reader: str = ""
    """A name that lasts: the log is kept, and its container may have to wait, for this reader."""
    begun: bool = True
    """False: resumed before a byte of it arrived."""


class RunTruth(Model):
    """What a host knows of one container: a live run, or the record of the last exit."""

    id: str
    run: int
    running: bool = False
    paused: bool = False
    pid: int = 0
    started_ns: int = 0
    finished_ns: int = 0
    exit_code: int | None = None
    oom_killed: bool = False
    restarting: bool = False
    error: str = ""


class RenewShims(Request):
    """Have the shims of older code replaced by shims of the agent's own; `every`: all of them."""

    every: bool = False


class KeptShim(Model):
    """A container whose shim was not replaced, and why."""

    id: str
    reason: str


class ShimsRenewed(Done):
    """What an agent has made of its host's shims since it was started."""

    replaced: int = 0
    current: int = 0
    """Shims that are of its own version anyway."""
    kept: list[KeptShim] = []


class Report(Done):
    """Everything that is on this host; `complete` once the agent has scanned at its start."""

    complete: bool = True
    containers: list[RunTruth] = []


# --- facts ---


class Fact(Model):
    node: str
    time_ns: int = 0


class ContainerExited(Fact):
    """exit_code None: lost with the host (or the kernel could not tell)."""

    id: str
    run: int
    pid: int = 0
    started_ns: int = 0
    finished_ns: int = 0
    exit_code: int | None = None
    oom_killed: bool = False
    error: str = ""
    restarting: bool = False
    """The host will start it again by its policy."""
    restart_count: int = 0


class ContainerStarted(Fact):
    """The host started a run by itself (restart policy)."""

    id: str
    run: int
    pid: int = 0
    started_ns: int = 0
    restart_count: int = 0
    network: NetworkState = Field(default_factory=NetworkState)


class ContainerOom(Fact):
    """The kernel killed something in a container for want of memory, for the nth time in a run."""

    id: str
    run: int
    kills: int = 1


class HealthChecked(Fact):
    id: str
    run: int
    status: str
    failing_streak: int = 0
    result: HealthResult


class ExecExited(Fact):
    id: str
    container: str
    exit_code: int = 0
    pid: int = 0

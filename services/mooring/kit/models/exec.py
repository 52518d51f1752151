"""Execs: further processes in a running container."""

from __future__ import annotations

from enum import StrEnum

from .base import Done, Model, Request
from .container import Event


class ExecState(StrEnum):
    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    EXITED = "exited"


class ExecConfig(Model):
    cmd: list[str] = []
    env: list[str] = []
    user: str = ""
    group_add: list[str] = []
    """The container's further groups, which another user has as well."""
    working_dir: str = ""
    tty: bool = False
    privileged: bool = False
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    detach_keys: str = ""

    @property
    def attached(self) -> bool:
        """Whether a client wants any of its streams."""
        return self.attach_stdout or self.attach_stderr or self.attach_stdin


class ExecRecord(Model):
    """Only the lifecycle manager writes it."""

    version: int = 1
    id: str
    container: str
    node: str
    created_ns: int
    config: ExecConfig = ExecConfig()
    state: ExecState = ExecState.CREATED
    run: int = 0
    """The run of the container that it was started in."""
    pid: int = 0
    exit_code: int | None = None
    command_id: str = ""
    owner: str = ""
    """The lifecycle replica that is starting it."""
    deadline_ns: int = 0
    outbox: list[Event] = []
    """As in ContainerRecord."""


class CreateExec(Request):
    container: str
    config: ExecConfig


class ExecCreated(Done):
    exec_id: str


class StartExec(Request):
    """Start a created exec. attach: whether a client reads its output (else it is discarded)."""

    exec_id: str
    detach: bool = False
    tty: bool | None = None
    rows: int = 0
    columns: int = 0


class ExecStarted(Done):
    """error is set, with the exit code 126 or 127, when the program could not be executed."""

    pid: int = 0
    error: str = ""
    exit_code: int = 0

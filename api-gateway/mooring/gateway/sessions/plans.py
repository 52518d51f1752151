"""What a session is, in the words that another gateway needs to go on with it."""

from __future__ import annotations

from pydantic import Field

from mooring.kit.models.base import Model
from mooring.kit.models.exec import StartExec
from mooring.kit.models.host import OpenStream


class Plan(Model):
    """Any session. kind says who goes on with it."""

    kind: str
    early: bytes = b""
    """What of the client's input had arrived together with its request."""


class OutputPlan(Plan):
    """The output of a container or exec, as one client wants it."""

    node: str
    opened: OpenStream
    raw: bool = False
    """One stream, as of a terminal; else Docker's multiplexed frames."""
    stdout: bool = True
    stderr: bool = True
    timestamps: bool = False
    details: str | None = None
    since_ns: int = 0
    until_ns: int = 0


class AttachPlan(OutputPlan):
    """An attached client; with input if it has a session."""

    container: str = ""
    run: int = 0
    exec_id: str = ""
    start: StartExec | None = None
    """The start of an exec, to be asked for (again) as long as it is only created."""
    session: str = ""
    detach_keys: bytes | None = None
    awaits: bool = False
    """Attached before the run began; started_ns is the container's of then."""
    started_ns: int = 0


class EventsPlan(Plan):
    """`events` without an end, or with one that is to come."""

    filters: dict[str, list[str]] = Field(default_factory=dict)
    begin: int = 0
    until: int | None = None


class WaitPlan(Plan):
    """`wait`: the condition, and the container as it was seen first."""

    container: str = ""
    condition: str = ""
    finished_ns: int = 0


class StartPlan(Plan):
    """The start of a container that is removed when it ends: not begun, it is to be removed."""

    container: str = ""


class StatsPlan(Plan):
    """`stats`, once a second."""

    container: str = ""

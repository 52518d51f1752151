"""What a host's report says against a record. Pure."""

from __future__ import annotations

from enum import StrEnum

from mooring.kit.models.container import ContainerRecord, State
from mooring.kit.models.host import RunTruth

from .exits import is_news


class Action(StrEnum):
    """What has to be done about a difference."""

    NONE = "nothing"
    LOST = "it is gone without a trace"
    EXITED = "it has exited"
    STARTED = "it runs"
    PAUSED = "it is paused"
    UNPAUSED = "it is not paused"
    RELEASE = "a run that has ended still holds its network"
    KILL = "it runs and should not"


def difference(record: ContainerRecord, truth: RunTruth | None) -> Action:
    """What has to be done so that record and host agree."""
    if record.state is State.REMOVED:
        return Action.KILL if truth is not None and truth.running else Action.NONE
    if record.state is State.STARTING:
        return Action.NONE
    if truth is None:
        return Action.LOST if record.pid else Action.NONE
    if truth.running:
        return _running(record, truth)
    if is_news(record, truth.run, truth.started_ns):
        return Action.EXITED
    if record.state in (State.EXITED, State.CREATED, State.DEAD) and truth.run == record.run:
        return Action.RELEASE
    return Action.NONE


def _running(record: ContainerRecord, truth: RunTruth) -> Action:
    if record.state in (State.STOPPING, State.REMOVING):
        return Action.NONE
    if truth.run > record.run or (not record.pid and is_news(record, truth.run, truth.started_ns)):
        return Action.STARTED
    if truth.run != record.run:
        # A run that was given up before a later start was refused because of it.
        return Action.NONE if record.pid else Action.KILL
    match record.state, truth.paused:
        case State.RUNNING, True:
            return Action.PAUSED
        case State.PAUSED, False:
            return Action.UNPAUSED
    return Action.NONE

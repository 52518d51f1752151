"""A child that cannot be started for now."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from mooring.supervisor.child import Child, State
from mooring.supervisor.programs import Program
from tests.descriptors import descriptors


@pytest.mark.parametrize("call", ["pipe", "fork", "pidfd_open"])
def test_what_the_kernel_has_no_room_for_is_started_later(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    child = Child(Program("one"), "/nowhere", [])
    before = descriptors()
    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        child.start()
        child.recorded()
    assert (child.state, child.pid, child.start_time) == (State.WAITING, 0, 0)
    assert (child.due or 0) > 0
    assert descriptors() <= before
    child.stop()
    assert (child.state, child.due) == (State.STOPPED, None)
    child.store.close()

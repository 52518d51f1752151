"""A keeper by itself: what it does when its supervisor, or it, is killed at a bad moment."""

from __future__ import annotations

import os
import select
import signal
import socket
from pathlib import Path

from mooring.supervisor import keeper, notify
from mooring.supervisor.keeper import Kept


def test_a_supervisor_killed_before_it_has_heard_that_its_keeper_is_ready_loses_nothing(
    tmp_path: Path,
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kept = Kept(notify.bind(str(tmp_path / "notify.sock")), {"here": [socket.socket()]})
    pid = os.fork()
    if pid == 0:
        keeper._become(kept, theirs, tmp_path / "keeper.sock", tmp_path / "supervisor.json")
    try:
        theirs.close()
        assert select.select([ours], [], [], 20)[0]
        # With the word unread in it, the keeper gets an error instead of an end.
        ours.close()
        found = keeper.take(tmp_path / "keeper.sock")
        assert found.notified is not None and list(found.listeners) == ["here"]
        for made in (found.notified, found.connection, *found.listeners["here"]):
            assert made is not None
            made.close()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert kept.notified is not None
        for made in (kept.notified, *kept.listeners["here"]):
            made.close()

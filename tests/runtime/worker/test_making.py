"""What is said of a container that was made, and to whom."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from mooring.runtime.bare import BareShim
from mooring.runtime.making import Making
from mooring.shim.control import receive_with
from mooring.shim.log import LogWriter
from mooring.shim.packets import parse
from mooring.shim.processes import Streams


def test_the_agent_is_handed_a_container_whose_shim_was_killed_at_the_last_moment(
    tmp_path: Path,
) -> None:
    """Its program was executed: nobody else has the other ends of what it writes to."""
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours, shims = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    agent.bind(str(tmp_path / "agent.sock"))
    agent.listen()
    with agent, ours, select.epoll() as sleeper:
        shim = cast(BareShim, SimpleNamespace(socket=ours, sleeper=sleeper.fileno()))
        message: dict[str, Any] = {"dir": str(tmp_path), "cgroup": "/none"}
        message["agent_socket"] = str(tmp_path / "agent.sock")
        making = Making(shim, message, {})
        making._streams = Streams(False, False, True)
        making._log = LogWriter(str(tmp_path / "log"), 1 << 20, 2)
        making._kept = {"root": os.open("/", os.O_PATH), "pidfd": os.pidfd_open(os.getpid())}
        shims.close()
        with contextlib.suppress(OSError):
            making._executed()
        connection, _ = agent.accept()
        with connection:
            packet, descriptors = receive_with(connection, 65536)
        assert sorted(parse(packet)["names"]) == ["pidfd", "stderr", "stdout"]
        for descriptor in (*descriptors, *making._kept.values()):
            os.close(descriptor)
        making._streams.close()
        making._log.close()

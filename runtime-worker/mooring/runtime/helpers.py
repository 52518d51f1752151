"""Short-lived processes of ours that do one job: code of the standard library and our own only.

A job and its answer are one JSON packet each, on a socket that is descriptor 3 of the helper.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from typing import Any

from mooring.kit.errors import KINDS, EngineError

from .launching import PACKET, spawn


class Helper:
    """A helper process; leaving the context ends it, whatever it is at."""

    def __init__(self, module: str, environment: dict[str, str]) -> None:
        code = f"import socket; from {module} import main; main(socket.socket(fileno=3))"
        self.pid, self.socket = spawn(code, environment)

    async def __aenter__(self) -> Helper:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.socket.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        # It is dying: this takes no longer than that.
        await asyncio.to_thread(_bury, self.pid)

    def send(self, job: dict[str, Any], descriptors: list[int] | None = None) -> None:
        """Give it its job."""
        data = json.dumps(job, separators=(",", ":")).encode()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, max(len(data) * 2, PACKET))
        socket.send_fds(self.socket, [data], descriptors or [])

    async def answer(self) -> dict[str, Any]:
        """Its answer; the EngineError that it came to, or one if it died."""
        return answer_of(await receive(self.socket))


async def receive(sock: socket.socket) -> bytes:
    """The next packet of a socket; empty at its end."""
    loop = asyncio.get_running_loop()
    try:
        return await loop.sock_recv(sock, PACKET)
    except ConnectionError:
        return b""


def answer_of(packet: bytes) -> dict[str, Any]:
    """What a helper's packet says; its EngineError, or one if there is none."""
    if not packet:
        raise EngineError("a helper process died")
    answer: dict[str, Any] = json.loads(packet)
    if error := answer.get("error"):
        raise KINDS.get(str(answer.get("kind")), EngineError)(str(error))
    return answer


def _bury(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)

"""Services forked from one process that has imported all of them, as `mooring up` forks them.

Tests that kill a service again and again start it in milliseconds: the imports, of which each time
took half a second, are made once. `python -m tests.forks PATH` is that process; it ends with stdin.

    test                         forker                           service
      {"module","environment","output"} →     fork →
      ←  pid                                                         (runs)
      ←  exit status, or minus the signal     ←                      (ends)

A service whose test has let go of it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mooring.kit.config import Settings
from mooring.supervisor.programs import SERVICES, Program, become, preload


class Forked:
    """A service that runs or has ended; its `wait` has one caller at a time."""

    def __init__(
        self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._reader, self._writer = reader, writer

    async def wait(self) -> int:
        """Its exit status, or minus the signal that ended it, once it has ended."""
        if self.returncode is None:
            self.returncode = int(await self._reader.readline())
            self._writer.close()
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()
        return self.returncode

    def kill(self) -> None:
        """SIGKILL; nothing if it has ended."""
        self.send(signal.SIGKILL)

    def send(self, number: int) -> None:
        """A signal."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Forker:
    """What forks: one process for all tests."""

    def __init__(self, path: Path) -> None:
        self._path = path
        command = [sys.executable, "-m", "tests.forks", str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE)

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=30)

    async def start(self, name: str, settings: Settings, **environment: str) -> Forked:
        """Fork a service (see SERVICES) with these settings; its log is `<name>.log`."""
        request = {
            "module": SERVICES[name],
            "environment": {**settings.environment(), **environment},
            "output": str(settings.run_dir / f"{name}.log"),
        }
        reader, writer = await self._connect()
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            return Forked(int(await reader.readline()), reader, writer)
        except BaseException:
            writer.close()
            raise

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with asyncio.timeout(30):
            while True:
                try:
                    return await asyncio.open_unix_connection(self._path)
                except (FileNotFoundError, ConnectionRefusedError):
                    # It listens when it has imported everything.
                    assert self._process.poll() is None
                    await asyncio.sleep(0.02)


@contextlib.contextmanager
def forker(directory: Path) -> Iterator[Forker]:
    """One that ends afterwards."""
    made = Forker(directory / "forks.sock")
    try:
        yield made
    finally:
        made.close()


class _Server:
    """The other side of a Forker."""

    def __init__(self, path: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(sys.stdin, selectors.EVENT_READ, self._end)
        self._pids: set[int] = set()
        self._ended = False

    def run(self) -> None:
        """Until stdin closes; then nothing that was forked is left."""
        while not self._ended:
            for key, _ in self._selector.select():
                key.data()
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)

    def _end(self) -> None:
        self._ended = True

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        with client.makefile() as lines:
            request: dict[str, Any] = json.loads(lines.readline())
        output = Path(request["output"])
        program = Program(
            "forked", request["module"], environment=request["environment"], output=output
        )
        gate, opened = os.pipe()
        os.write(opened, b"!")
        os.close(opened)
        pid = os.fork()
        if not pid:
            become(program, [], "", 0.0, gate)
        os.close(gate)
        self._pids.add(pid)
        pidfd = os.pidfd_open(pid)

        def ended() -> None:
            _, status = os.waitpid(pid, 0)
            self._pids.discard(pid)
            for source in (pidfd, client):
                with contextlib.suppress(KeyError):
                    self._selector.unregister(source)
            os.close(pidfd)
            with client, contextlib.suppress(OSError):
                client.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))

        def left() -> None:
            if pid not in self._pids:
                return  # It has ended in the same moment.
            # It sends no more than its request.
            self._selector.unregister(client)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)

        self._selector.register(pidfd, selectors.EVENT_READ, ended)
        self._selector.register(client, selectors.EVENT_READ, left)
        with contextlib.suppress(OSError):
            client.sendall(b"%d\n" % pid)


def main() -> None:
    """See above."""
    # A terminal, or timeout(1), tells the whole group: it ends after the tests, with all it forked.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    preload()
    gc.collect()
    gc.freeze()
    _Server(sys.argv[1]).run()


if __name__ == "__main__":
    main()

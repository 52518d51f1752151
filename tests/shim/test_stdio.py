"""Output of a terminal when its log takes no more for a while."""

from __future__ import annotations

import os
import select
import tty
from collections.abc import Iterator
from errno import ENOSPC
from pathlib import Path

import pytest

from mooring.shim import stdio
from mooring.shim.log import LogWriter
from mooring.shim.logread import LogReader
from mooring.shim.loop import Loop
from mooring.shim.processes import set_nonblocking
from mooring.shim.stdio import Recorder

from .harness import DEADLINE, eventually, output


class Terminal:
    """A terminal of which somebody prints, and its recorder."""

    def __init__(self, directory: Path, bound: int) -> None:
        self.loop = Loop()
        self.log = LogWriter(str(directory / "log"), 1 << 20, 0)
        self.recorder = Recorder(self.loop, self.log, "e", bound)
        self._reader = LogReader(str(directory / "log"))
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        set_nonblocking(self._master)
        self.recorder.add_terminal(self._master, os.pipe2(os.O_CLOEXEC))

    def print(self, data: bytes) -> None:
        """Returns when some of it has come to the other side."""
        os.write(self._slave, data)
        assert select.select([self._master], [], [], DEADLINE)[0]

    def turn(self, seconds: float = 0.0) -> None:
        """All that is due `seconds` from now."""
        self.loop.later(seconds, self.loop.stop)
        self.loop._stopped = False
        self.loop.run()

    def logged(self) -> bytes:
        return output(self._reader)

    def close(self) -> None:
        self.recorder.close()
        for fd in (self._master, self._slave):
            os.close(fd)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal(tmp_path, bound=1000)
    yield made
    made.close()


def test_what_a_terminal_printed_while_the_disk_was_full_is_logged_when_it_is_not(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in a pipe of the shim by then: nothing that comes to the terminal tells of it."""
    monkeypatch.setattr(stdio, "_RETRY_SECONDS", 0.001)

    def full(*_: object) -> int:
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    terminal.print(b"$ ")
    with monkeypatch.context() as disk:
        disk.setattr(LogWriter, "take", full)
        terminal.recorder.start()
        terminal.turn()
        assert terminal.recorder.error is not None
    terminal.turn(0.01)
    assert terminal.logged() == b"$ "


def test_a_terminal_is_not_read_beyond_what_may_be_unread(terminal: Terminal) -> None:
    for _ in range(10):
        terminal.print(bytes(1000))
    terminal.recorder.start()
    terminal.turn()
    # One read of a terminal takes 4 KiB at most.
    assert 1000 <= len(terminal.logged()) < 5000
    assert terminal.recorder.waiting

    def all_is_logged() -> bool:
        terminal.recorder.trim(terminal.log.end)
        terminal.turn()
        return terminal.logged() == bytes(10_000)

    eventually(all_is_logged)

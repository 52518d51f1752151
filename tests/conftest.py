"""Fixtures for every test: a real nats-server, settings that point at it, a connected bus."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from mooring.kit import nats_server
from mooring.kit.bus import Bus
from mooring.kit.config import Settings, load

from .forks import Forker, forker


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of our own."""
    parser.addoption("--cgroup2", action="store_true", help="see cgroup v2, also on a hybrid host")


def pytest_configure(config: pytest.Config) -> None:
    """Where it is asked for, /sys/fs/cgroup is the unified hierarchy for all that runs here."""
    if config.getoption("--cgroup2") and not os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        libc = ctypes.CDLL(None, use_errno=True)
        recursive_private, bind, new_mounts = 0x44000, 0x1000, 0x20000
        if (
            libc.unshare(new_mounts)
            or libc.mount(None, b"/", None, recursive_private, None)
            or libc.mount(b"/sys/fs/cgroup/unified", b"/sys/fs/cgroup", None, bind, None)
        ):
            raise pytest.UsageError(f"no cgroup v2 here: {os.strerror(ctypes.get_errno())}")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the event loop that the services run on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def controllers() -> None:
    """Limits can be set; not so on the unified hierarchy of a hybrid host (`--cgroup2`)."""
    file = Path("/sys/fs/cgroup/cgroup.controllers")
    if file.exists() and "memory" not in file.read_text():
        pytest.skip("the controllers are version 1's on this host")


class NatsProcess:
    """A nats-server of ours that can be killed and started again on the same port and store."""

    def __init__(self, state_dir: Path, run_dir: Path) -> None:
        self.state_dir = state_dir
        self.run_dir = run_dir
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        command, environment = nats_server.prepare(self.state_dir, self.run_dir)
        self.url = json.loads((self.run_dir / "nats.json").read_text())["url"]
        with (self.run_dir / "nats.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        port = int(self.url.rpartition(":")[2])
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.run_dir / "nats.log").read_text()) from None
                time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def _nats_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsProcess]:
    root = tmp_path_factory.mktemp("nats")
    server = NatsProcess(root / "state", root / "run")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def nats(_nats_session: NatsProcess) -> NatsProcess:
    """The session's nats-server, with JetStream; running even if the test before killed it."""
    if _nats_session.process is None or _nats_session.process.poll() is not None:
        _nats_session.start()
    return _nats_session


@pytest.fixture
async def settings(nats: NatsProcess, tmp_path: Path) -> AsyncIterator[Settings]:
    """Settings of an engine with directories of its own, on the session's nats-server.

    Its streams and buckets are deleted afterwards: every test finds an empty JetStream.
    """
    settings = load(
        {
            "state_dir": tmp_path / "state",
            "run_dir": tmp_path / "run",
            "nats_url": nats.url,
            "nats_credentials": nats.state_dir / "secrets" / "nats.json",
            "log_level": "debug",
        },
        environ={},
    )
    settings.run_dir.mkdir(parents=True)
    yield settings
    if nats.process is None:
        nats.start()
    async with Bus.connect(settings, "cleanup") as bus:
        listing = await bus.jetstream.api("STREAM.NAMES", {})
        for name in listing["streams"] or []:
            await bus.jetstream.api(f"STREAM.DELETE.{name}", {})


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    """What starts services that are killed, without importing them each time."""
    with forker(tmp_path_factory.mktemp("forks")) as made:
        yield made


@pytest.fixture
async def bus(settings: Settings) -> AsyncIterator[Bus]:
    """A connected bus with the streams of facts and events."""
    async with Bus.connect(settings, "test") as connected:
        await connected.ensure_streams()
        yield connected

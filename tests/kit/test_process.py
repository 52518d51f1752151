"""A service under a process manager: READY, STOPPING, the watchdog, sockets and descriptors."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mooring.kit import faults, process
from mooring.supervisor import notify

SERVICE = """
import asyncio, os, sys
from mooring.kit.process import run

async def serve(settings, service):
    passed = "LISTEN_FDS" in os.environ
    print(sorted(service.listeners()), sorted(service.stored()), passed, flush=True)
    reading, writing = os.pipe()
    service.store("pipe", reading)
    await service.ready()
    if settings.log_level == "error":
        raise RuntimeError("broken")
    await service.stop_requested()

run("test", serve)
"""


def start(tmp_path: Path, notified: Path, **environ: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", SERVICE],
        env={
            **os.environ,
            "MOORING_STATE_DIR": str(tmp_path / "state"),
            "MOORING_RUN_DIR": str(tmp_path / "run"),
            "NOTIFY_SOCKET": str(notified),
            **environ,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def messages(notified: socket.socket, wanted: str) -> list[dict[str, str]]:
    """Everything up to the first message that has the field `wanted`."""
    notified.settimeout(20)
    found = []
    while True:
        message = notify.receive(notified)
        assert message is not None
        for descriptor in message.descriptors:
            os.close(descriptor)
        found.append({**message.fields, "descriptors": str(len(message.descriptors))})
        if wanted in message.fields:
            return found


def test_a_service_tells_its_manager_what_it_does(tmp_path: Path) -> None:
    with notify.bind(str(tmp_path / "n.sock")) as notified:
        service = start(tmp_path, tmp_path / "n.sock", WATCHDOG_USEC="200000")
        seen = messages(notified, "READY")
        assert seen[0]["FDSTORE"] == "1"
        assert (seen[0]["FDNAME"], seen[0]["descriptors"]) == ("pipe", "1")
        messages(notified, "WATCHDOG")
        messages(notified, "WATCHDOG")
        service.send_signal(signal.SIGTERM)
        messages(notified, "STOPPING")
        out, err = service.communicate(timeout=20)
    assert service.returncode == 0, err
    assert out == b"[] [] False\n"


def test_what_was_stored_is_its_users_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A duplicate that was made to look at it was left: a stdin never ended then."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    for name, value in (("FDS", "1"), ("FDNAMES", "stdin"), ("PID", str(os.getpid()))):
        monkeypatch.setenv(f"LISTEN_{name}", value)
    monkeypatch.setattr(process, "_FIRST_FD", writing)
    service = process.Service()
    assert service.stored() == {"stdin": [writing]}
    os.close(writing)
    assert os.read(reading, 1) == b""
    os.close(reading)
    # By now the number is another file's.
    with socket.create_server(("127.0.0.1", 0)) as other:
        os.dup2(other.fileno(), writing)
        assert service.listeners() == {}
        os.close(writing)


def test_a_service_that_fails_ends_with_status_1_and_its_traceback(tmp_path: Path) -> None:
    with notify.bind(str(tmp_path / "n.sock")):
        service = start(tmp_path, tmp_path / "n.sock", MOORING_LOG_LEVEL="error")
        _, err = service.communicate(timeout=20)
    assert service.returncode == 1
    assert b"RuntimeError: broken" in err


def test_bad_settings_end_it_with_their_key(tmp_path: Path) -> None:
    service = start(tmp_path, tmp_path / "n.sock", MOORING_WARM_SHIMS="-1")
    _, err = service.communicate(timeout=20)
    assert service.returncode == 1
    assert b"mooring-test: warm_shims:" in err


def test_an_armed_fault_point_kills_once(tmp_path: Path) -> None:
    armed = tmp_path / "start.claimed"
    armed.touch()
    pid = os.fork()
    if pid == 0:
        faults.enable(str(tmp_path))
        faults.point("another")
        faults.point("start.claimed")
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert not armed.exists()


def test_a_point_that_is_not_enabled_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "start.claimed").touch()
    monkeypatch.chdir(tmp_path)
    faults.point("start.claimed")
    assert (tmp_path / "start.claimed").exists()

"""Texts of others are shown as they are: brackets in them mean nothing."""

from __future__ import annotations

import json
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

COMMAND = "[ -f /x ] [/bold]"
CONTAINER = {
    "Id": "c0ffee" * 10,
    "Names": ["/web"],
    "Image": "bb[red]",
    "Command": COMMAND,
    "State": "running",
    "Status": "Up",
    "Created": 0,
    "Ports": [],
}
REFUSAL = "Invalid container name (s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"


class Api(BaseHTTPRequestHandler):
    """One container is listed, everything else refused."""

    def do_GET(self) -> None:
        self._answer(200, [CONTAINER])

    def do_DELETE(self) -> None:
        self._answer(400, {"message": REFUSAL})

    def do_POST(self) -> None:
        self._answer(400, {"message": REFUSAL})

    def _answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "docker.sock")
    with socketserver.ThreadingUnixStreamServer(path, Api) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"unix://{path}"
        server.shutdown()
        thread.join()


def mooring(host: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mooring.cli", *args, "--host", host]
    environment = {"PATH": "/usr/bin:/bin", "COLUMNS": "200"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_container_s_command_and_image(host: str) -> None:
    done = mooring(host, "ps")
    assert (done.returncode, done.stderr) == (0, "")
    assert COMMAND in done.stdout and "bb[red]" in done.stdout


@pytest.mark.parametrize("command", ["rm", "stop"])
def test_what_the_engine_says_against_it(host: str, command: str) -> None:
    done = mooring(host, command, "s")
    assert done.returncode
    assert REFUSAL in done.stderr

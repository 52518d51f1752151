"""A small API for the `mooring` command."""

from __future__ import annotations

import json
import socketserver
import struct
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
    """One container is listed, an exec says a word and ends; everything else is refused."""

    def do_GET(self) -> None:
        self._answer(200, {"ExitCode": 5} if "/exec/" in self.path else [CONTAINER])

    def do_DELETE(self) -> None:
        self._answer(400, {"message": REFUSAL})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.endswith("/exec"):
            self._answer(201, {"Id": "e"})
        elif self.path.endswith("/exec/e/start"):
            self.send_response(101)
            self.end_headers()
            self.wfile.write(struct.pack(">BxxxI", 1, 5) + b"word\n")
            self.close_connection = True
        else:
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

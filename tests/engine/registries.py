"""Debian's docker-registry as tests need it: open, with a password, with TLS; killed and back."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

USER, PASSWORD = "me", "secret"


@dataclass
class RealRegistry:
    """One process, with its store in a folder of its own."""

    folder: Path
    address: str
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        with open(self.folder / "log", "ab") as log:
            command = ["docker-registry", "serve", str(self.folder / "config.yml")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        host, _, port = self.address.partition(":")
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection((host, int(port)), 1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.folder / "log").read_text()) from None
                time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL it."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


@contextlib.contextmanager
def registry(*, password: bool = False, tls: bool = False) -> Iterator[RealRegistry]:
    """A registry with an empty store on a free port of loopback."""
    if shutil.which("docker-registry") is None:
        pytest.skip("no docker-registry on PATH")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="moor-registry-") as name:
        folder = Path(name)
        lines = [
            "version: 0.1",
            "log: {level: error}",
            f"storage: {{filesystem: {{rootdirectory: {folder}/store}}}}",
        ]
        secured = ""
        if tls:
            _certificate(folder)
            secured = (
                f", tls: {{certificate: {folder}/server.crt, key: {folder}/server.key,"
                f" clientcas: [{folder}/server.crt]}}"
            )
        lines.append(f"http: {{addr: '127.0.0.1:{port}', secret: tests{secured}}}")
        if password:
            words = ["htpasswd", "-Bbn", "-C", "4", USER, PASSWORD]
            made = subprocess.run(words, check=True, capture_output=True)
            (folder / "htpasswd").write_bytes(made.stdout)
            lines.append(f"auth: {{htpasswd: {{realm: tests, path: {folder}/htpasswd}}}}")
        (folder / "config.yml").write_text("\n".join(lines) + "\n")
        made_registry = RealRegistry(folder, f"127.0.0.1:{port}")
        made_registry.start()
        try:
            yield made_registry
        finally:
            made_registry.kill()


def _certificate(folder: Path) -> None:
    """A certificate that signs itself, for the server and for its client."""
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-days", "2", "-subj", "/CN=registry", "-addext",
            "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:TRUE",
            "-keyout", str(folder / "server.key"), "-out", str(folder / "server.crt"),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip


def trust(certs: Path, made: RealRegistry, *, client: bool) -> None:
    """Docker's layout: the CA, and the client's certificate and key."""
    directory = certs / made.address
    directory.mkdir(parents=True)
    shutil.copy(made.folder / "server.crt", directory / "ca.crt")
    if client:
        shutil.copy(made.folder / "server.crt", directory / "client.cert")
        shutil.copy(made.folder / "server.key", directory / "client.key")


def big_layers(count: int, size: int) -> bytes:
    """A docker-archive `big:1` of layers that hardly compress."""
    from tests.runtime.images.archives import Entry, Image, docker_archive, layer

    layers = [
        layer([Entry(f"data/{number}-{part}", data=os.urandom(size // 4)) for part in range(4)])
        for number in range(count)
    ]
    return docker_archive(Image(layers, ["big:1"], {"Cmd": ["/none"]}))

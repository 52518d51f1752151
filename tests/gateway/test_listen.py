"""Where the API listens, and who may talk to it."""

from __future__ import annotations

import asyncio
import grp
import shutil
import socket
import ssl
import stat
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mooring.gateway.app import serve
from mooring.gateway.gateway import Gateway
from mooring.gateway.http.listen import open_all, tls_context
from mooring.kit.config import ConfigError, Settings
from mooring.kit.listening import GROUPS
from mooring.kit.models.container import ContainerConfig

from .client import Connection
from .conftest import FakeService
from .fakes import FakeEngine
from .test_streams import STREAMS, UPGRADE, mux


def test_the_unix_socket_is_for_its_group(settings: Settings) -> None:
    [(sock, context)] = open_all(settings, {})
    with sock:
        path = settings.run_dir / "docker.sock"
        assert context is None
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        names = {entry.gr_name for entry in grp.getgrall()} & set(GROUPS)
        if names:
            assert grp.getgrgid(path.stat().st_gid).gr_name in names
        # Somebody listens there already: it is not taken away.
        with pytest.raises(ConfigError, match="already listens"):
            open_all(settings, {})
    [(again, _)] = open_all(settings, {})
    again.close()


def test_sockets_that_were_handed_over_are_used(settings: Settings) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        assert open_all(settings, {"unix": [sock], "other": []}) == [(sock, None)]


def test_tcp_needs_certificates_or_consent_in_so_many_words(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="tls_cert"):
        tls_context(settings)
    assert tls_context(settings.model_copy(update={"tcp_insecure": True})) is None
    half = settings.model_copy(update={"tcp_insecure": True, "tls_cert": Path("/x")})
    with pytest.raises(ConfigError, match="tls_key"):
        tls_context(half)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and cert.pem with key.pem of both sides, signed by it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "rsa:2048", "-nodes")
    openssl(*new, "-x509", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    openssl(*new, "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "cert.csr")
    (folder / "ext").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl("x509", "-req", "-in", "cert.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-extfile", "ext", "-out", "cert.pem")  # fmt: skip
    return folder


@pytest.fixture
async def port(settings: Settings, engine: FakeEngine, certificates: Path) -> AsyncIterator[int]:
    """A gateway that listens on TCP with TLS."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        number: int = probe.getsockname()[1]
    tls = {f"tls_{name}": certificates / f"{name}.pem" for name in ("cert", "key", "ca")}
    gateway = Gateway(settings.model_copy(update={"host": [f"tcp://127.0.0.1:{number}"], **tls}))
    service = FakeService()
    running = asyncio.create_task(serve(gateway, service))
    await service.is_ready.wait()
    engine.watch(gateway)
    yield number
    service.stop()
    await running


def client_context(certificates: Path, *, identified: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    if identified:
        context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    return context


async def test_attach_works_over_tls(port: int, engine: FakeEngine, certificates: Path) -> None:
    record = await engine.running("web", config=ContainerConfig(open_stdin=True))
    engine.echo = True
    context = client_context(certificates, identified=True)
    connection = Connection(*await asyncio.open_connection("127.0.0.1", port, ssl=context))
    assert (await connection.request("GET", "/containers/json")).json[0]["Id"] == record.id
    connection.send("POST", f"/containers/web/attach?{STREAMS}&stdin=1", headers=UPGRADE)
    assert (await connection.head()).status == 101
    connection.writer.write(b"over tls")
    assert mux(await connection.reader.readexactly(16)) == [(1, b"over tls")]
    await engine.exit(record.id)
    assert await connection.reader.read() == b""
    connection.writer.close()


async def test_who_has_no_certificate_gets_no_answer(port: int, certificates: Path) -> None:
    context = client_context(certificates, identified=False)
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        connection = Connection(reader, writer)
        try:
            await connection.request("GET", "/_ping")
        finally:
            writer.close()

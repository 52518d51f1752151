"""What a client must not be able to do, and the words it gets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .harness import Engine

pytestmark = pytest.mark.kernel

CREATE = "/containers/create"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"Image": "bb", "Unknown": 1, "Cmd": ["true"]}, 201, ""),
        ({"Image": 7}, 400, "Image"),
        ({"Image": "bb", "Env": "A=1"}, 400, "Env"),
        ({"Image": "bb", "HostConfig": {"Memory": "lots"}}, 400, "Memory"),
        ({"Image": "bb", "HostConfig": {"Memory": -1}}, 400, ""),
        ({"Image": "bb", "HostConfig": {"ShmSize": -1}}, 400, "SHM"),
        ({"Image": "bb", "HostConfig": {"NanoCpus": -1}}, 400, "CPU"),
        ({"Image": "bb", "HostConfig": {"Binds": ["/a:/b:nope"]}}, 400, "invalid mode"),
        ({"Image": "bb", "HostConfig": {"Binds": ["/a:relative"]}}, 400, "relative"),
        ({"Image": "bb", "HostConfig": {"RestartPolicy": {"Name": "sometimes"}}}, 400, "sometimes"),
        ({"Image": "bb", "HostConfig": {"Sysctls": {"kernel.panic": "1"}}}, 400, "kernel.panic"),
        ({"Image": "missing"}, 404, "No such image: missing:latest"),
        ({"Image": "bb/UPPER"}, 400, "must be lowercase"),
        ({"Cmd": ["true"]}, 400, ""),
    ],
)
def test_create(docker: Engine, body: Any, status: int, words: str) -> None:
    answer = docker.api("POST", CREATE, body)
    assert answer.status == status, answer.body
    if words:
        assert words in answer.message
    if status != 201:
        assert docker.api("GET", "/containers/json?all=1").json == []


@pytest.mark.parametrize(
    ("raw", "headers", "status"),
    [
        (b"{", {"Content-Type": "application/json"}, 400),
        (b'{"Image":"bb"} trailing', {"Content-Type": "application/json"}, 400),
        (b"[" * 100_000, {"Content-Type": "application/json"}, 400),
        (b'{"Image":"bb"}', {"Content-Type": "text/plain"}, 400),
        (b'{"Image":"' + b"b" * (6 << 20) + b'"}', {"Content-Type": "application/json"}, 413),
        (b"\xff\xfe", {"Content-Type": "application/json"}, 400),
    ],
)
def test_bodies(docker: Engine, raw: bytes, headers: dict[str, str], status: int) -> None:
    assert docker.api("POST", CREATE, raw=raw, headers=headers).status == status


@pytest.mark.parametrize("name", ["a", "-a", "a b", "../x", "ä", "a/b", ".x"])
def test_names(docker: Engine, name: str) -> None:
    from urllib.parse import quote

    answer = docker.api("POST", f"{CREATE}?name={quote(name, safe='')}", {"Image": "bb"})
    assert answer.status == 400
    assert "Invalid container name" in answer.message


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/v1.99/info", 400, "client version 1.99 is too new"),
        ("GET", "/v1.12/info", 400, "client version 1.12 is too old"),
        ("GET", "/nowhere", 404, "page not found"),
        ("PUT", "/containers/json", 404, "page not found"),
        ("GET", "/containers/json?limit=x", 400, ""),
        ("GET", "/containers/nope/json", 404, "No such container: nope"),
        ("GET", "/events?since=yesterday", 400, ""),
        ("GET", "/swarm", 503, "This node is not a swarm manager"),
        ("POST", "/containers/nope/wait?condition=never", 400, ""),
        ("GET", "/images/nope/json", 404, "No such image: nope:latest"),
        ("POST", "/images/bb/tag?repo=UP&tag=x", 400, "invalid reference format"),
    ],
)
def test_requests(docker: Engine, method: str, path: str, status: int, words: str) -> None:
    answer = docker.api(method, path)
    assert answer.status == status, answer.body
    assert words in answer.body.decode()


def test_a_links_target_in_the_image_cannot_lead_out(docker: Engine, tmp_path: Any) -> None:
    """A bind whose target lies below a link to / is made inside the container, not on the host."""
    import io
    import tarfile

    from image import busybox_layer

    base = busybox_layer()
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(base)) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in old:
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, "/../../.." + str(tmp_path)
        new.addfile(link)
    answer = docker.api("POST", "/images/create?fromSrc=-&repo=evil&tag=1", raw=out.getvalue(),
                        headers={"Content-Type": "application/x-tar"})  # fmt: skip
    assert answer.status == 200
    docker.docker("run", "--rm", "-v", "/etc/hostname:/out/made", "evil:1", "true")
    assert list(tmp_path.iterdir()) == []
    docker.docker("rmi", "evil:1")


def test_a_request_that_breaks_off_changes_nothing(docker: Engine) -> None:
    import socket

    body = json.dumps({"Image": "bb", "Cmd": ["true"]}).encode()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(docker.socket)
        head = f"POST {CREATE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        sock.sendall(f"{head}Content-Length: {len(body) + 10}\r\n\r\n".encode() + body)
    assert docker.api("GET", "/containers/json?all=1").json == []

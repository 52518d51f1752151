"""docker cp: files in and out of containers, whether they run or not."""

from __future__ import annotations

import base64
import bz2
import contextlib
import gzip
import http.client
import io
import json
import lzma
import os
import signal
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from .harness import Engine, engine, until

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def made() -> Iterator[Engine]:
    with engine() as found:
        yield found


@pytest.fixture
def docker(made: Engine) -> Iterator[Engine]:
    yield made
    made.remove_all()
    made.docker("volume", "prune", "-fa")


@pytest.fixture(params=["directly", "by way of the bus"])
def way(request: pytest.FixtureRequest, made: Engine) -> Iterator[None]:
    """Both ways that the bytes may take between the host and the gateway."""
    place, away = made.run / "archive", made.run / "archive.away"
    if request.param != "directly":
        place.rename(away)
    yield
    if request.param != "directly":
        away.rename(place)


def tar_of(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in entries:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def entry(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def put(docker: Engine, name: str, path: str, data: bytes, query: str = "") -> tuple[int, str]:
    answer = docker.api("PUT", f"/containers/{name}/archive?path={path}{query}", raw=data)
    return answer.status, answer.message if answer.status != 200 else ""


def get(docker: Engine, name: str, path: str) -> tarfile.TarFile:
    answer = docker.api("GET", f"/containers/{name}/archive?path={path}")
    assert answer.status == 200, answer.body
    return tarfile.open(fileobj=io.BytesIO(answer.body))


def run(docker: Engine, script: str, *options: str) -> None:
    docker.docker("run", "-d", "--name", "web", *options, "bb", "sh", "-c", f"{script}; sleep 1000")
    until("it is made", lambda: docker.docker("exec", "web", "true", check=False).returncode == 0)


@pytest.mark.parametrize("state", ["created", "running", "exited"])
def test_a_tree_goes_in_and_comes_out_as_it_was(
    docker: Engine, tmp_path: Path, state: str, way: None
) -> None:
    docker.docker("create", "--name", "web", "-v", "data:/vol", "bb", "sleep", "1000")
    if state != "created":
        docker.docker("start", "web")
    if state == "exited":
        docker.docker("kill", "web")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "large").write_bytes(os.urandom(3_000_000))
    (tree / "a" / ("n" * 120)).write_text("a long name")
    (tree / "a" / "link").symlink_to("b")
    (tree / "a" / "program").write_text("#!/bin/sh\n")
    (tree / "a" / "program").chmod(0o4755)
    for place in ("/var", "/vol"):
        docker.docker("cp", str(tree), f"web:{place}/")
        docker.docker("cp", f"web:{place}/tree", str(tmp_path / f"back{place[1:]}"))
        back = tmp_path / f"back{place[1:]}"
        same = subprocess.run(["diff", "-r", "--no-dereference", tree, back], capture_output=True)
        assert same.returncode == 0, same.stdout
        assert (back / "a" / "program").stat().st_mode & 0o7777 == 0o4755


def test_a_single_file_streams_and_events(docker: Engine) -> None:
    docker.docker("create", "--name", "single", "bb")
    docker.docker("cp", "-", "single:/tmp", stdin=tar_of(entry("f", b"in a tar")).decode("latin-1"))
    out = subprocess.run(
        ["docker", "cp", "single:/tmp/f", "-"], env=docker.env, capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(out)) as tar:
        file = tar.extractfile("f")
        assert file is not None and file.read() == b"in a tar"
    assert docker.actions("single") == ["create", "extract-to-dir", "archive-path"]


def test_the_header_says_what_is_there(docker: Engine) -> None:
    run(docker, "mkdir /a; echo hi > /a/f; chmod 4755 /a/f; ln -s /a /l; ln -s ../nope /a/dang")

    def stat(path: str) -> tuple[str, int, int, str]:
        answer = docker.api("HEAD", f"/containers/web/archive?path={path}")
        assert answer.status == 200
        found = json.loads(base64.b64decode(answer.headers["X-Docker-Container-Path-Stat"]))
        return found["name"], found["size"], found["mode"], found["linkTarget"]

    assert stat("/a/f") == ("f", 3, 1 << 23 | 0o755, "")
    assert stat("/l") == ("l", 2, 1 << 27 | 0o777, "/a")
    assert stat("/a/dang")[3] == "/nope"
    for path, name in (("/a", "a"), ("/l/", "l"), ("/l/.", "."), ("/", "/")):
        assert (stat(path)[0], stat(path)[2] >> 31) == (name, 1)


def test_names_in_the_archive_are_those_of_docker(docker: Engine) -> None:
    run(docker, "mkdir -p /a/b; touch /a/b/f; ln /a/b/f /a/hard; ln -s /a /l")
    assert get(docker, "web", "/a").getnames() == ["a", "a/b", "a/b/f", "a/hard"]
    assert get(docker, "web", "/l/.").getnames() == [".", "./b", "./b/f", "./hard"]
    assert get(docker, "web", "/l").getmember("l").linkname == "/a"
    assert get(docker, "web", "/a").getmember("a/hard").linkname == "a/b/f"


@pytest.mark.parametrize("path", ["/nope", "/nope/x", "/proc/cpuinfo", "/dev/null", "/tf/x"])
def test_what_is_not_there_and_what_docker_does_not_show(docker: Engine, path: str) -> None:
    run(docker, "touch /tf/x", "--tmpfs", "/tf")
    answer = docker.api("GET", f"/containers/web/archive?path={path}")
    assert answer.status == 404
    assert answer.message == f"Could not find the file {path} in container web"
    assert docker.api("HEAD", f"/containers/web/archive?path={path}").status == 404


def test_places_that_are_read_only(docker: Engine, tmp_path: Path) -> None:
    run(
        docker, "true", "--read-only", "-v", "data:/rw", "-v", "data:/ro:ro", "-v", f"{tmp_path}:/b"
    )
    data = tar_of(entry("f", b"x"))
    assert put(docker, "web", "/tmp", data) == (403, "container rootfs is marked read-only")
    assert put(docker, "web", "/ro", data) == (403, "mounted volume is marked read-only")
    assert put(docker, "web", "/rw", data)[0] == 200
    assert put(docker, "web", "/b", data)[0] == 200
    assert (tmp_path / "f").read_text() == "x"
    assert put(docker, "web", "/etc/passwd", data) == (400, "extraction point is not a directory")
    assert put(docker, "web", "/no", data)[0] == 404
    assert put(docker, "web", "", data) == (400, "bad parameter: path cannot be empty")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([entry("../../zz")], '"../../zz" is outside of "/a"'),
        (
            [entry("ln", kind=tarfile.SYMTYPE, linkname="../../etc")],
            'invalid symlink "/a/ln" -> "../../etc"',
        ),
        (
            [entry("h", kind=tarfile.LNKTYPE, linkname="../../etc/passwd")],
            'invalid hardlink "/etc/passwd" -> "../../etc/passwd"',
        ),
        (
            [entry("h", kind=tarfile.LNKTYPE, linkname="/etc/passwd")],
            "link /a/etc/passwd /a/h: no such file or directory",
        ),
        ([entry("f", kind=b"Z")], "unhandled tar header type 90"),
    ],
)
def test_a_hostile_archive_is_refused(
    docker: Engine, entries: list[tuple[tarfile.TarInfo, bytes]], words: str
) -> None:
    run(docker, "mkdir /a")
    expected = f"Error processing tar file(exit status 1): {words}"
    assert put(docker, "web", "/a", tar_of(*entries)) == (500, expected)
    assert docker.out("exec", "web", "ls", "-A", "/a") == ""
    assert not Path("/zz").exists()


def test_broken_archives(docker: Engine) -> None:
    docker.docker("create", "--name", "web", "bb")
    whole = tar_of(entry("f", os.urandom(5000)))
    words = "Error processing tar file(exit status 1): "
    assert put(docker, "web", "/tmp", whole[:2000]) == (500, f"{words}unexpected EOF")
    answer = put(docker, "web", "/tmp", os.urandom(1000))
    assert answer == (500, f"{words}archive/tar: invalid tar header")
    assert put(docker, "web", "/tmp", b"")[0] == 200


def test_absolute_names_land_below_and_links_in_the_way_are_replaced(docker: Engine) -> None:
    run(docker, "mkdir /a /b; ln -s /b /a/l")
    data = tar_of(entry("/etc/abs", b"1"), entry("l", b"2"), entry("c/d/e", b"3", uid=5, gid=6))
    assert put(docker, "web", "/a", data) == (200, "")
    script = (
        "cat /a/etc/abs /a/l /a/c/d/e; ls /b; stat -c %u:%g /a/c/d/e; test -L /a/l || echo file"
    )
    assert docker.out("exec", "web", "sh", "-c", script).split() == ["1235:6", "file"]


def test_directories_and_files_do_not_overwrite_each_other_if_asked(docker: Engine) -> None:
    run(docker, "mkdir -p /a/d; touch /a/f")
    no = "&noOverwriteDirNonDir=true"
    words = "Error processing tar file(exit status 1): cannot overwrite "
    over_file, over_directory = tar_of(entry("f", kind=tarfile.DIRTYPE)), tar_of(entry("d", b"x"))
    answer = put(docker, "web", "/a", over_file, no)
    assert answer == (500, f'{words}non-directory "/a/f" with directory "/a"')
    answer = put(docker, "web", "/a", over_directory, no)
    assert answer == (500, f'{words}directory "/a/d" with non-directory "/a"')
    assert (
        put(docker, "web", "/a", over_file)[0] == put(docker, "web", "/a", over_directory)[0] == 200
    )
    assert docker.out("exec", "web", "stat", "-c", "%F", "/a/f", "/a/d").split("\n") == [
        "directory",
        "regular file",
    ]


@pytest.mark.parametrize(
    "compress", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress]
)
def test_an_archive_may_be_compressed(docker: Engine, compress: object) -> None:
    assert callable(compress)
    docker.docker("create", "--name", "web", "bb")
    data = tar_of(entry("f", b"hello" * 1000))
    assert put(docker, "web", "/tmp", compress(data)) == (200, "")
    file = get(docker, "web", "/tmp/f").extractfile("f")
    assert file is not None and file.read() == b"hello" * 1000


def test_ownership_is_the_users_if_asked(docker: Engine) -> None:
    docker.docker("create", "--name", "web", "--user", "app", "bb")
    data = tar_of(entry("f", b"x", uid=7, gid=8))
    assert put(docker, "web", "/tmp", data)[0] == 200
    assert get(docker, "web", "/tmp/f").getmember("f").uid == 7
    assert put(docker, "web", "/tmp", data, "&copyUIDGID=true")[0] == 200
    found = get(docker, "web", "/tmp/f").getmember("f")
    assert (found.uid, found.gid) == (1000, 1000)


def test_a_container_that_swaps_directories_for_links_leads_nowhere(
    docker: Engine, tmp_path: Path
) -> None:
    """While it does so, files are copied in and out: nothing of the host is read or written."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "f").write_text("the host's")
    secret.chmod(0o777)
    script = (
        f"mkdir /a; (while true; do ln -s {secret} /a/d; rm -rf /a/d; ln -s /proc/1/root /a/d;"
        " rm -rf /a/d; mkdir /a/d; echo mine > /a/d/f; rm -rf /a/d; done) 2>/dev/null & true"
    )
    run(docker, script, "--pid", "host")
    data = tar_of(entry("d/g", b"x"), entry("d/sub/h", b"x"))
    marks = {path.name for path in Path("/").iterdir()}
    for _ in range(8):
        put(docker, "web", "/a", data)
        put(docker, "web", "/a/d", tar_of(entry("g", b"x")))
        for path in ("/a/d/.", "/a/d/f", "/a"):
            # What vanishes in the very middle breaks the answer off.
            with contextlib.suppress(http.client.IncompleteRead):
                answer = docker.api("GET", f"/containers/web/archive?path={path}")
                assert b"the host's" not in answer.body
    assert [path.name for path in secret.iterdir()] == ["f"]
    assert {path.name for path in Path("/").iterdir()} == marks


def test_a_disk_that_is_full_is_said(docker: Engine) -> None:
    docker.docker("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=1m",
                  "small")  # fmt: skip
    run(docker, "true", "-v", "small:/s")
    answer = put(docker, "web", "/s", tar_of(entry("f", bytes(3_000_000))))
    words = "Error processing tar file(exit status 1): write /s/f: no space left on device"
    assert answer == (500, words)


def helpers(docker: Engine) -> list[int]:
    """The pids of helper processes of the worker."""
    worker = docker.pids()["runtime"]
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                line = Path(f"/proc/{name}/cmdline").read_bytes()
                parent = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == worker and b"archive.helper" in line:
                found.append(int(name))
    return found


def test_a_client_that_leaves_half_way_leaves_nothing(docker: Engine) -> None:
    docker.docker("create", "--name", "web", "bb")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(docker.socket)
        client.sendall(
            b"PUT /containers/web/archive?path=/tmp HTTP/1.1\r\nHost: x\r\n"
            b"Content-Length: 1000000\r\n\r\n" + tar_of(entry("f", bytes(20000)))[:8000]
        )
        until("a helper is at work", lambda: helpers(docker))
    until("it is gone", lambda: not helpers(docker))
    assert put(docker, "web", "/tmp", tar_of(entry("g", b"x")))[0] == 200
    until("the helpers are gone", lambda: not helpers(docker))


def test_a_client_that_falls_silent_keeps_no_container_from_starting() -> None:
    with engine("--set", "copy_stall_timeout=1") as docker:
        docker.docker("create", "--name", "web", "bb", "sleep", "1000")
        begun = (
            b"PUT /containers/web/archive?path=/tmp HTTP/1.1\r\nHost: x\r\n"
            b"Content-Length: 1000000\r\n\r\n" + tar_of(entry("f", bytes(20000)))[:8000]
        )
        for way in ("directly", "by way of the bus"):
            if way != "directly":
                (docker.run / "archive").rename(docker.run / "away")
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(docker.socket)
                client.sendall(begun)
                until("a helper is at work", lambda: helpers(docker))
                docker.docker("start", "web")
                docker.docker("kill", "web")
        (docker.run / "away").rename(docker.run / "archive")


@pytest.mark.fault
@pytest.mark.parametrize("victim", ["helper", "runtime", "gateway", "lifecycle", "nats"])
def test_a_kill_never_makes_half_an_archive_look_whole(docker: Engine, victim: str) -> None:
    run(docker, "head -c 60000000 /dev/zero > /big")
    docker.docker("exec", "web", "sh", "-c", "until test $(stat -c %s /big) = 60000000; do :; done")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(docker.socket)
        client.sendall(b"GET /containers/web/archive?path=/big HTTP/1.1\r\nHost: x\r\n\r\n")
        got = len(client.recv(1 << 20))
        old = 0
        if victim == "helper":
            os.kill(helpers(docker)[0], signal.SIGKILL)
        else:
            old = docker.kill(victim)
        tail = b""
        try:
            while data := client.recv(1 << 20):
                got += len(data)
                tail = (tail + data)[-5:]
                if tail == b"0\r\n\r\n":
                    break
        except ConnectionError:
            pass
    whole = tail == b"0\r\n\r\n"
    assert whole == (got > 60_000_000)
    assert not (whole and victim in ("helper", "gateway"))
    if old:
        docker.back(victim, old)
    until(
        "it can be read",
        lambda: docker.api("HEAD", "/containers/web/archive?path=/big").status == 200,
    )
    until("the helpers are gone", lambda: not helpers(docker))


def test_what_is_copied_into_a_created_container_is_there_when_it_starts(docker: Engine) -> None:
    # Its run may have been made by then, with the same files below: that is taken back first.
    for number in range(5):
        name = f"early{number}"
        docker.docker("create", "--name", name, "bb", "cat", "/given")
        assert put(docker, name, "/", tar_of(entry("given", b"%d" % number)))[0] == 200
        assert docker.out("start", "-a", name) == str(number)

"""`docker build` that fails, is refused, is cancelled, or loses a process of the engine."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import subprocess
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from .builds import STEPS, build, context, engine, image_id, post
from .harness import Engine, until

pytestmark = [pytest.mark.kernel]
__all__ = ["context", "engine"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM bb\nFOO x", "dockerfile parse error line 2: unknown instruction: FOO"),
        ("FROM bb\nRUN false", "The command '/bin/sh -c false' returned a non-zero code: 1"),
        (
            'FROM bb\nRUN ["sh", "-c", "exit 3"]',
            "The command 'sh -c exit 3' returned a non-zero code: 3",
        ),
        (
            "FROM bb\nCOPY nope /",
            "COPY failed: file not found in build context or excluded by .dockerignore: "
            "stat nope: file does not exist",
        ),
        ("FROM bb\nCOPY nope* /", "COPY failed: no source files were specified"),
        (
            "FROM bb\nCOPY ../one /",
            "COPY failed: forbidden path outside the build context: ../one ()",
        ),
        (
            "FROM bb\nCOPY one dir /x",
            "When using COPY with more than one source file, "
            "the destination must be a directory and end with a /",
        ),
        (
            "FROM bb\nCOPY --chown=nope one /",
            "unable to convert uid/gid chown string to host mapping: "
            "can't find uid for user nope: no such user: nope",
        ),
        (
            "FROM bb\nCOPY --from=0 one /",
            "invalid from flag value 0: refers to current build stage",
        ),
        ("FROM bb\nEXPOSE abc", "Invalid containerPort: abc"),
        ("FROM scratch\n", "No image was generated. Is your Dockerfile empty?"),
        ("FROM ${X}\n", "base name (${X}) should not be blank"),
        (
            "FROM --platform=linux/s390x bb\n",
            "wanted linux/s390x, actual: linux/amd64",
        ),
    ],
)
def test_a_bad_build_fails_in_dockers_words(
    engine: Engine, context: Path, text: str, message: str
) -> None:
    done = build(engine, context, text, "--force-rm", check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert engine.out("ps", "-aq") == ""


def test_an_error_in_a_step_is_a_line_with_its_code(engine: Engine) -> None:
    status, lines = post(engine, "forcerm=1", {"Dockerfile": "FROM bb\nRUN echo x; exit 42"})
    words = "The command '/bin/sh -c echo x; exit 42' returned a non-zero code: 42"
    assert status == 200
    assert lines[-1] == {"errorDetail": {"code": 42, "message": words}, "error": words}


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("version=2", 400, "BuildKit is not supported by this engine"),
        ("squash=1", 501, "the build option squash is not supported"),
        ("target=x", 400, "failed to reach build target x in Dockerfile"),
        ("dockerfile=x", 400, "Cannot locate specified Dockerfile: x"),
        ("buildargs=x", 400, "error reading build args"),
        ("memory=1000", 400, "Minimum memory limit allowed is 6MB"),
        ("t=A:b", 400, "must be lowercase"),
        ("platform=windows", 400, "operating system is not supported"),
    ],
)
def test_what_is_wrong_before_the_first_step_is_a_status(
    engine: Engine, query: str, status: int, message: str
) -> None:
    got, lines = post(engine, query, {"Dockerfile": "FROM bb\n"})
    assert got == status
    assert message in lines[0]["message"]


def test_a_context_that_is_no_tar_is_refused(engine: Engine) -> None:
    answer = engine.api("POST", "/build", raw=b"nothing " * 100)
    assert answer.status == 400
    assert "Error processing tar file" in answer.message


def test_a_hostile_context_leaves_its_directory_nowhere(engine: Engine, tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("Dockerfile", "../../../../../../tmp/build-escape", "/abs", "link/x"):
            text = b"FROM bb\nCOPY . /x\nCOPY up /y\nRUN find /x /y | sort\n"
            if name == "link/x":
                link = tarfile.TarInfo("up")
                link.type, link.linkname = tarfile.SYMTYPE, "../../../../etc/hostname"
                tar.addfile(link)
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
    answer = engine.api("POST", "/build?networkmode=none", raw=out.getvalue())
    assert not Path("/tmp/build-escape").exists()
    # The link leads to etc/hostname of the context, which has none.
    assert "stat up: file does not exist" in answer.body.decode()


def test_a_quiet_build_says_the_id_alone(engine: Engine, context: Path) -> None:
    done = build(engine, context, STEPS, "-q", "-t", "quiet")
    assert done.stdout.strip() == image_id(engine, "quiet")


def test_a_quiet_build_of_what_is_no_dockerfile_is_refused(engine: Engine, context: Path) -> None:
    done = build(engine, context, "FROM bb\nNOPE x\n", "-q", check=False)
    words = "dockerfile parse error line 2: unknown instruction: NOPE"
    assert f"Error response from daemon: {words}" in done.stderr


def test_what_is_in_between_is_shown_with_all_and_goes_with_the_image(
    engine: Engine, context: Path
) -> None:
    build(engine, context, "FROM bb\nENV I=1\nENV I=2\nENV I=3\n", "-t", "between")
    ids = engine.out("history", "-q", "--no-trunc", "between").splitlines()
    assert ids[:4] == [i for i in ids[:3]] + [image_id(engine, "bb")]
    shown = engine.out("images", "-q", "--no-trunc").splitlines()
    everything = engine.out("images", "-aq", "--no-trunc").splitlines()
    assert ids[1] in everything
    assert ids[1] not in shown
    removed = engine.out("rmi", "between")
    assert all(f"Deleted: {each}" in removed for each in ids[:3])


# --- cancelled and killed ---


def _begin(engine: Engine, context: Path, text: str) -> subprocess.Popen[str]:
    (context / "Dockerfile").write_text(text)
    return subprocess.Popen(
        ["docker", "build", "--no-cache", "--network", "none", str(context)],
        env=engine.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _leftovers(engine: Engine) -> list[str]:
    left = [*(engine.state / "builds").iterdir(), *(engine.state / "containers").iterdir()]
    return [*map(str, left), *engine.out("ps", "-aq").split()]


def test_a_client_that_goes_away_ends_its_build(engine: Engine, context: Path) -> None:
    client = _begin(engine, context, "FROM bb\nCOPY one /\nRUN sleep 1000\n")
    until("the container runs", lambda: engine.out("ps", "-q"))
    client.kill()
    client.communicate()
    until("nothing is left", lambda: not _leftovers(engine))


@pytest.mark.fault
def test_a_build_ends_with_the_gateway_that_its_client_was_at(
    engine: Engine, context: Path
) -> None:
    client = _begin(engine, context, "FROM bb\nCOPY one /\nRUN sleep 1000\n")
    until("the container runs", lambda: engine.out("ps", "-q"))
    old = engine.kill("gateway")
    output, _ = client.communicate(timeout=20)
    assert client.returncode == 1
    assert output.rstrip().endswith("unexpected EOF")
    engine.back("gateway", old)
    until("nothing is left", lambda: not _leftovers(engine))


class _Endless(BaseHTTPRequestHandler):
    """Sends a file without an end, or one that ends before it is whole."""

    asked = threading.Event()
    gone = threading.Event()

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/cut":
            self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"some")
        self.asked.set()
        if self.path == "/endless":
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(bytes(1 << 16))
                    self.gone.wait(0.01)
            self.gone.set()

    def log_message(self, *args: object) -> None:
        pass


def test_a_download_ends_with_its_build_and_has_to_be_whole(engine: Engine, context: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Endless)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        done = build(engine, context, f"FROM bb\nADD {url}/cut /\n", check=False)
        assert done.returncode == 1
        assert f"ADD failed: failed to GET {url}/cut: unexpected EOF" in done.stderr
        _Endless.asked.clear()
        client = _begin(engine, context, f"FROM bb\nADD {url}/endless /\n")
        assert _Endless.asked.wait(20)
        client.kill()
        client.communicate()
        assert _Endless.gone.wait(20), "it goes on to be read"
        until("nothing is left", lambda: not _leftovers(engine))
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.fault
@pytest.mark.parametrize(
    "point",
    [
        "build.stored",
        "build.container.created",
        "build.container.exited",
    ],
)
def test_a_builder_that_is_killed_leaves_nothing(engine: Engine, context: Path, point: str) -> None:
    text = f"FROM bb\nENV P={point}\nCOPY one /\nRUN echo x > /y\n"
    before = set(engine.out("images", "-aq").split())
    engine.arm(point)
    done = build(engine, context, text, check=False)
    assert done.returncode != 0
    assert "was restarted" in done.stdout + done.stderr
    until("nothing is left", lambda: not _leftovers(engine))
    again = build(engine, context, text, "-t", "again")
    assert engine.out("run", "--rm", "--network", "none", "again", "cat", "/y", "/one") == "x\none"
    assert "Successfully built" in again.stdout
    assert before <= set(engine.out("images", "-aq").split())


@pytest.mark.fault
def test_builders_killed_at_any_moment_leave_nothing(engine: Engine, context: Path) -> None:
    chance = random.Random(0)
    before = set(engine.out("images", "-aq").split())
    for turn in range(2):
        text = f"FROM bb\nENV T={turn}\nCOPY . /x\nRUN ls -R /x > /y\nCOPY one /z\n"
        client = _begin(engine, context, text)
        time.sleep(chance.uniform(0, 0.8))  # the moment is the test
        for pid in _builders(engine):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        output, _ = client.communicate(timeout=60)
        assert ("Successfully built" in output) == (client.returncode == 0)
        until("nothing is left", lambda: not _leftovers(engine))
        build(engine, context, text)
    assert before <= set(engine.out("images", "-aq").split())


def _builders(engine: Engine) -> list[int]:
    """The builder of this engine's worker."""
    worker = engine.pids()["runtime"]
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                if b"mooring.runtime.build" in words and str(worker).encode() in words:
                    found.append(int(entry))
    return found


@pytest.mark.fault
@pytest.mark.parametrize("service", ["runtime", "lifecycle", "shim-agent", "nats"])
def test_a_service_killed_during_a_build_is_survived_or_said(
    engine: Engine, context: Path, service: str
) -> None:
    text = f"FROM bb\nENV S={service}\nRUN for i in 1 2 3 4 5 6; do echo $i; sleep 0.2; done\n"
    client = _begin(engine, context, text)
    until("the container runs", lambda: engine.out("ps", "-q"))
    pid = engine.kill(service)
    output, _ = client.communicate(timeout=60)
    engine.back(service, pid)
    if service == "runtime":
        assert client.returncode != 0
        assert "restarted" in output
    else:
        assert client.returncode == 0, output
        assert "1\n2\n3\n4\n5\n6\n" in output
    until("nothing is left", lambda: not _leftovers(engine))

"""`docker build` with the classic builder: what a user types, and what comes of it."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import docker
import docker.errors
import pytest

from .builds import STEPS, build, config, context, engine, image_id, post, said
from .harness import Engine
from .registries import registry

pytestmark = [pytest.mark.kernel]


__all__ = ["context", "engine"]


def test_a_build_says_each_step_and_its_image_runs(engine: Engine, context: Path) -> None:
    done = build(engine, context, STEPS, "-t", "steps", "-t", "steps:2")
    lines = [line for line in done.stdout.splitlines() if not line.startswith("Sending")]
    assert [line for line in lines if line.startswith("Step")] == [
        "Step 1/6 : FROM bb",
        'Step 2/6 : ENV A=1 B="two words"',
        "Step 3/6 : RUN echo hi; echo $B > /b",
        "Step 4/6 : COPY one /x/",
        "Step 5/6 : WORKDIR /w",
        'Step 6/6 : CMD ["cat", "/b"]',
    ]
    at = lines.index("Step 3/6 : RUN echo hi; echo $B > /b")
    assert lines[at + 1].startswith(" ---> Running in ")
    assert lines[at + 2] == "hi"
    assert lines[at + 3].startswith("Removing intermediate container ")
    short = image_id(engine, "steps").removeprefix("sha256:")[:12]
    assert lines[-4:] == [
        f" ---> {short}",
        f"Successfully built {short}",
        "Successfully tagged steps:latest",
        "Successfully tagged steps:2",
    ]
    assert engine.out("run", "--rm", "--network", "none", "steps") == "two words"
    assert engine.out("run", "--rm", "--network", "none", "steps", "pwd") == "/w"
    assert "Running in" not in done.stderr
    assert engine.out("ps", "-aq") == ""


def test_the_second_time_everything_comes_from_the_cache(engine: Engine, context: Path) -> None:
    build(engine, context, STEPS, "-t", "cached")
    first = image_id(engine, "cached")
    os.utime(context / "one", (1, 1))
    again = build(engine, context, STEPS, "-t", "cached")
    assert again.stdout.count(" ---> Using cache\n") == 5
    assert image_id(engine, "cached") == first


@pytest.mark.parametrize(
    ("change", "hits"),
    [
        ("content", 2),
        ("mode", 2),
        ("name", 2),
        ("step", 1),
    ],
)
def test_what_changes_ends_the_use_of_the_cache(
    engine: Engine, context: Path, change: str, hits: int
) -> None:
    text = f"FROM bb\nENV C={change}\nRUN echo > /r\nCOPY one* /x/\nENV D=1\n"
    build(engine, context, text)
    if change == "content":
        (context / "one").write_text("two\n")
    elif change == "mode":
        (context / "one").chmod(0o600)
    elif change == "name":
        (context / "one").rename(context / "one2")
    else:
        text = text.replace("echo >", "echo  >")
    assert build(engine, context, text).stdout.count("Using cache") == hits


def test_no_cache_does_everything_again(engine: Engine, context: Path) -> None:
    build(engine, context, STEPS)
    assert "Using cache" not in build(engine, context, STEPS, "--no-cache").stdout


def test_cache_from_uses_what_another_image_says_of_itself(engine: Engine, context: Path) -> None:
    text = "FROM bb\nENV E=cache-from\nRUN echo $E > /e\nCOPY one /e1\nCMD e\n"
    build(engine, context, text, "-t", "source")
    first = image_id(engine, "source")
    saved = subprocess.run(
        ["docker", "save", "source", "bb"], env=engine.env, capture_output=True, check=True
    )
    engine.docker("rmi", "source")
    assert "Using cache" not in build(engine, context, text, "-q").stdout
    engine.docker("image", "prune", "-f")
    subprocess.run(["docker", "load", "-q"], env=engine.env, input=saved.stdout, check=True)
    assert image_id(engine, "source") == first
    done = build(engine, context, text, "--cache-from", "source", "-t", "again")
    assert done.stdout.count("Using cache") == 4
    assert image_id(engine, "again") == first


def test_build_arguments_are_seen_by_run_and_are_part_of_the_cache(
    engine: Engine, context: Path
) -> None:
    text = "ARG BASE=nope\nFROM $BASE\nARG V=1\nARG W\nRUN echo V=$V W=$W\nENV X=${V}x\n"
    base = ("--build-arg", "BASE=bb")
    assert "V=1 W=\n" in build(engine, context, text, *base).stdout
    done = build(engine, context, text, *base, "--build-arg", "V=2", "--build-arg", "Z=1")
    assert "V=2 W=\n" in done.stdout
    assert "[Warning] One or more build-args [Z] were not consumed" in done.stdout
    again = build(engine, context, text, *base, "--build-arg", "V=2", "-t", "args")
    assert again.stdout.count("Using cache") == 4
    assert "X=2x" in config(engine, "args")["Env"]
    assert "|1 V=2 /bin/sh -c echo V=$V W=$W" in engine.out(
        "history", "--no-trunc", "--format", "{{.CreatedBy}}", "args"
    )


def test_stages_copy_from_each_other_and_from_images(engine: Engine, context: Path) -> None:
    text = (
        "FROM bb AS one\nRUN mkdir /out; echo 1 > /out/a; ln -s a /out/l\n"
        "FROM scratch AS two\nCOPY --from=one /out /o/\nCOPY --from=bb /bin/busybox /bin/sh\n"
        'FROM two\nCOPY --from=0 /out/l /l\nCMD ["/bin/sh"]\n'
    )
    build(engine, context, text, "-t", "staged")
    script = "test -L /o/l && read x < /l && echo $x"
    assert engine.out("run", "--rm", "--network", "none", "staged", "/bin/sh", "-c", script) == "1"
    target = build(engine, context, text, "--target", "one")
    assert "Step 2/2" in target.stdout


def test_a_stage_without_a_layer_has_directories_and_files_to_come(
    engine: Engine, context: Path
) -> None:
    text = (
        "FROM scratch AS empty\nWORKDIR /w\nCOPY one sub/\nFROM scratch AS none\nENV A=1\n"
        "FROM bb\nCOPY --from=empty / /x\nCOPY --from=none / /y\nRUN find /x /y | sort\n"
    )
    out = build(engine, context, text).stdout
    assert "/x\n/x/w\n/x/w/sub\n/x/w/sub/one\n/y\n" in out


def test_the_config_is_what_the_instructions_say(engine: Engine, context: Path) -> None:
    text = (
        'FROM bb\nMAINTAINER me\nEXPOSE 80 53/udp\nVOLUME ["/v"]\nUSER app\nWORKDIR /a\nWORKDIR b\n'
        'LABEL a=1 "b c"="d e"\nSTOPSIGNAL SIGINT\nSHELL ["/bin/sh", "-ec"]\nONBUILD RUN x\n'
        'HEALTHCHECK --interval=5s --retries=2 CMD true\nCMD foo\nENTRYPOINT ["e"]\n'
    )
    build(engine, context, text, "-t", "configured", "--label", "z=y")
    found = config(engine, "configured")
    assert found["ExposedPorts"] == {"80/tcp": {}, "53/udp": {}}
    assert found["Volumes"] == {"/v": {}}
    assert (found["User"], found["WorkingDir"]) == ("app", "/a/b")
    assert found["Labels"] == {"a": "1", "b c": "d e", "z": "y"}
    assert (found["StopSignal"], found["Shell"]) == ("SIGINT", ["/bin/sh", "-ec"])
    assert found["OnBuild"] == ["RUN x"]
    assert found["Healthcheck"] == {
        "Test": ["CMD-SHELL", "true"],
        "Interval": 5_000_000_000,
        "Retries": 2,
    }
    assert (found["Cmd"], found["Entrypoint"]) == (["/bin/sh", "-ec", "foo"], ["e"])
    assert engine.out("image", "inspect", "-f", "{{.Author}}", "configured") == "me"


def test_an_entry_point_takes_the_command_of_the_base_image_away(
    engine: Engine, context: Path
) -> None:
    build(engine, context, 'FROM bb\nENTRYPOINT ["echo", "x"]\n', "-t", "entry")
    assert not config(engine, "entry").get("Cmd")
    assert engine.out("run", "--rm", "--network", "none", "entry") == "x"


def test_triggers_of_the_base_image_come_first(engine: Engine, context: Path) -> None:
    build(engine, context, "FROM bb\nONBUILD COPY one /t\nONBUILD RUN cat /t\n", "-t", "trigger")
    done = build(engine, context, "FROM trigger\nRUN echo mine\n", "-t", "triggered")
    assert "# Executing 2 build triggers\n" in done.stdout
    assert done.stdout.index("one\n") < done.stdout.index("mine\n")
    assert not config(engine, "triggered").get("OnBuild")


def test_files_arrive_with_their_modes_and_the_owners_asked_for(
    engine: Engine, context: Path
) -> None:
    text = (
        "FROM bb\nRUN mkdir -m 700 /sec && chown 5:6 /sec && ln -s /sec /ln && ln -s ../.. /up\n"
        "COPY dir /sec\nCOPY --chown=app:2 dir /new/deep\nCOPY --chown=7 --chmod=640 one /up/m\n"
        "COPY one /ln/\nCOPY dir/* /star/\n"
        "RUN stat -c '%n %u:%g %a' /sec /sec/run.sh /sec/sub /sec/one /new /new/deep/f /m /star/g\n"
    )
    out = build(engine, context, text).stdout
    found = [line for line in out.splitlines() if line.startswith("/")]
    assert found == [
        "/sec 5:6 700",
        "/sec/run.sh 0:0 755",
        "/sec/sub 0:0 755",
        "/sec/one 0:0 644",
        "/new 1000:2 755",
        "/new/deep/f 1000:2 644",
        "/m 7:7 640",
        "/star/g 0:0 644",
    ]


def test_what_is_copied_from_a_stage_keeps_its_owner(engine: Engine, context: Path) -> None:
    text = (
        "FROM bb AS made\nRUN mkdir -p /src/dir && echo a > /src/f && ln -s f /src/l"
        " && chown -hR 5:6 /src && chown 7:8 /src/dir && chmod 4755 /src/f\n"
        "FROM bb\nCOPY --from=made /src /new\nCOPY --from=made /src/f /one\n"
        "COPY --from=made --chown=20:30 /src /owned\nCOPY --from=made --chmod=600 /src/f /mode\n"
        "RUN stat -c '%n %u:%g %a' /new /new/f /new/l /new/dir /one /owned/dir /mode\n"
    )
    out = build(engine, context, text).stdout
    assert [line for line in out.splitlines() if line.startswith("/")] == [
        "/new 0:0 755",
        "/new/f 5:6 4755",
        "/new/l 5:6 777",
        "/new/dir 7:8 755",
        "/one 5:6 4755",
        "/owned/dir 20:30 755",
        "/mode 5:6 600",
    ]


def test_add_unpacks_local_archives_and_fetches_urls(engine: Engine, context: Path) -> None:
    for name, mode in (("a.tar", "w"), ("b.tgz", "w:gz"), ("c.tar.xz", "w:xz"), ("d", "w:bz2")):
        with tarfile.open(context / name, mode) as tar:  # type: ignore[call-overload]
            tar.add(context / "dir" / "f", f"{name}.d/f")
    (context / "broken.gz").write_bytes(b"\x1f\x8b\x08nothing")
    text = (
        "FROM bb\nADD a.tar b.tgz c.tar.xz d /x/\nADD one broken.gz /x/\nCOPY a.tar /x/\n"
        "ADD http://127.0.0.1:{port}/dir/file.tar /x/\nADD http://127.0.0.1:{port}/f /x/g\n"
        "RUN find /x -type f | sort; stat -c %a:%Y /x/g; cat /x/g\n"
    )
    with _Server() as port:
        out = build(engine, context, text.format(port=port)).stdout
        again = build(engine, context, text.format(port=port)).stdout
    names = ["a.tar", "a.tar.d/f", "b.tgz.d/f", "broken.gz", "c.tar.xz.d/f", "d.d/f", "file.tar"]
    listed = "".join(f"/x/{name}\n" for name in [*names, "g", "one"])
    assert f"{listed}600:1700000000\nfetched\n" in out
    assert again.count("Using cache") == 6


class _Server:
    """A web server on loopback."""

    def __enter__(self) -> int:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Last-Modified", "Tue, 14 Nov 2023 22:13:20 GMT")
                self.send_header("Content-Length", "8")
                self.end_headers()
                self.wfile.write(b"fetched\n")

            def log_message(self, *args: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self._server.server_port

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_heredocs_are_scripts_and_files(engine: Engine, context: Path) -> None:
    text = (
        "FROM bb\nENV N=name\nCOPY <<A <<'B' /h/\n$N\nA\n$N\nB\n"
        "RUN <<EOF\ncat /h/A /h/B\nEOF\nRUN <<EOF\n#!/bin/busybox sh\necho shebang $0\nEOF\n"
        "RUN cat <<EOF > /c && cat /c\nin $N\nEOF\n"
    )
    out = build(engine, context, text).stdout
    assert "name\n$N\n" in out
    assert "shebang /dev/shm/EOF\n" in out
    assert "in name\n" in out


def test_dockerignore_leaves_files_out(engine: Engine, context: Path) -> None:
    (context / ".dockerignore").write_text("dir\n!dir/f\nDockerfile\n.dockerignore\n")
    out = build(engine, context, "FROM bb\nCOPY . /x\nRUN find /x -type f | sort\n").stdout
    assert "/x/dir/f\n/x/one\n" in out
    assert "/x/Dockerfile" not in out
    assert "/x/dir/sub" not in out


def test_a_dockerfile_comes_from_stdin_or_has_another_name(engine: Engine, context: Path) -> None:
    done = engine.docker("build", "-", stdin="FROM bb\nENV X=stdin\n")
    assert "Successfully built" in done.stdout
    (context / "dir" / "Other").write_text("FROM bb\nCOPY one /\n")
    done = engine.docker("build", "-f", str(context / "dir" / "Other"), str(context))
    assert "Step 2/2 : COPY one /" in done.stdout


def test_a_git_repository_is_a_context(engine: Engine, context: Path) -> None:
    def git(*args: str) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@x", "-c", "init.defaultBranch=main"]
        subprocess.run(["git", *identity, *args], cwd=context, check=True, capture_output=True)

    (context / ".dockerignore").write_text("*.no\n")
    (context / "dir" / "a.no").write_text("")
    (context / "dir" / "Dockerfile").write_text("FROM bb\nCOPY . /g\nRUN ls -A /g\n")
    git("init")
    git("checkout", "-b", "branch")
    git("add", ".")
    git("commit", "-m", "x")
    git("update-server-info")
    with _Files(context) as port:
        url = f"http://127.0.0.1:{port}/.git#branch:dir"
        status, lines = post(engine, f"remote={url.replace('#', '%23')}", {})
    assert status == 200
    assert "Dockerfile\na.no\nf\nrun.sh\nsub\n" in said(lines)


class _Files:
    """A directory served over HTTP, on loopback."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> int:
        import functools
        from http.server import SimpleHTTPRequestHandler

        class Quiet(SimpleHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

        handler = functools.partial(Quiet, directory=str(self._directory))
        self._server = HTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self._server.server_port

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_an_image_that_is_not_here_is_pulled(engine: Engine, context: Path) -> None:
    with registry() as real:
        base = f"{real.address}/base"
        engine.docker("tag", "bb", base)
        engine.docker("push", "-q", base)
        engine.docker("rmi", base)
        out = build(engine, context, f"FROM {base}\nRUN echo pulled\n", "-t", "pulled").stdout
        assert f"Status: Downloaded newer image for {base}:latest" in out
        assert "pulled\n" in out
        again = build(engine, context, f"FROM {base}\nRUN echo pulled\n", "--pull").stdout
        assert f"Status: Image is up to date for {base}:latest" in again
        missing = build(engine, context, f"FROM {real.address}/nope\n", check=False)
        assert "manifest unknown" in missing.stderr
        engine.docker("rmi", base)


def test_docker_py_builds_with_the_options_it_has(engine: Engine, context: Path) -> None:
    client = docker.DockerClient(base_url=engine.host)
    (context / "Dockerfile").write_text("FROM bb\nARG A\nRUN echo $A > /a\nCOPY . /c\n")
    image, lines = client.images.build(
        path=str(context),
        tag="py:1",
        buildargs={"A": "from-py"},
        labels={"l": "v"},
        network_mode="none",
        rm=True,
        container_limits={"memory": 64 << 20, "cpushares": 100},
    )
    assert image.labels == {"l": "v"}
    assert {"stream": "Successfully tagged py:1\n"} in list(lines)
    printed = client.containers.run(
        "py:1", ["cat", "/a", "/c/one"], network_mode="none", remove=True
    )
    assert printed == b"from-py\none\n"
    with pytest.raises(docker.errors.BuildError, match="returned a non-zero code: 7"):
        client.images.build(
            fileobj=io.BytesIO(b"FROM bb\nRUN exit 7"), network_mode="none", rm=True, forcerm=True
        )
    client.close()


def test_limits_and_hosts_are_those_of_the_containers(engine: Engine, context: Path) -> None:
    text = "FROM bb\nRUN ulimit -n; df /dev/shm | tail -1; grep extra /etc/hosts\n"
    options = ["--ulimit", "nofile=77:77", "--shm-size", "8m", "--add-host", "extra:10.9.8.7"]
    out = build(engine, context, text, *options, "--memory", "64m", "--cpu-shares", "100").stdout
    assert "77\n" in out
    assert " 8192 " in out
    assert "10.9.8.7\textra\n" in out

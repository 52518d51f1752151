"""`docker run`, with and without a terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time

import pytest

from .harness import Engine, until

pytestmark = pytest.mark.kernel


class Terminal:
    """A docker command on a pseudo-terminal."""

    def __init__(self, engine: Engine, *args: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            ["docker", *args], env=engine.env, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def send(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, text: str, seconds: float = 20) -> None:
        """Read until the text has appeared."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise AssertionError(f"no {text!r} in {self.seen!r}")
            try:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
            except OSError as exc:
                raise AssertionError(f"ended without {text!r}: {self.seen!r}") from exc

    def end(self) -> int:
        code = self.process.wait(20)
        os.close(self.master)
        return code


def test_run_prints_and_gives_the_exit_code(docker: Engine) -> None:
    done = docker.docker(
        "run", "--rm", "bb", "sh", "-c", "echo out; echo err >&2; exit 7", check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)
    assert docker.out("ps", "-aq") == ""


def test_run_detached_prints_the_id_and_goes_on(docker: Engine) -> None:
    made = docker.out("run", "-d", "--name", "web", "bb", "sleep", "1000")
    assert len(made) == 64
    assert docker.out("ps", "--format", "{{.Names}} {{.State}}") == "web running"


def test_run_gives_stdin_to_the_container(docker: Engine) -> None:
    text = "".join(f"line {n}\n" for n in range(5000))
    assert docker.docker("run", "-i", "--rm", "bb", "cat", stdin=text).stdout == text


def test_run_without_stdin_reads_nothing(docker: Engine) -> None:
    assert docker.out("run", "--rm", "bb", "wc", "-c") == "0"


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["bb", "nope"], 127, "executable file not found"),
        (["bb", "/nope"], 127, "no such file or directory"),
        (["bb", "/etc/passwd"], 126, "permission denied"),
        (["bb", "/etc"], 126, "is a directory"),
        (["missing:1"], 125, ""),
        (["--user", "nosuch", "bb", "true"], 125, "unable to find user nosuch"),
        (["--memory", "1m", "bb", "true"], 125, "Minimum memory limit allowed is 6MB"),
        (["--cap-add", "NOPE", "bb", "true"], 125, "NOPE"),
        (["--name", "a b", "bb", "true"], 125, "Invalid container name"),
    ],
)
def test_what_cannot_run_has_dockers_exit_code_and_words(
    docker: Engine, args: list[str], code: int, words: str
) -> None:
    done = docker.docker("run", "--rm", *args, check=False)
    assert done.returncode == code, done.stderr
    assert words in done.stderr


def test_a_terminal_has_a_size_echo_and_an_exit_code(docker: Engine) -> None:
    terminal = Terminal(docker, "run", "-it", "--rm", "bb", "sh")
    terminal.expect("# ")
    terminal.send("tty; echo $((20+3)) done; exit 9\n")
    terminal.expect("/dev/pts/0")
    terminal.expect("23 done")
    assert terminal.end() == 9


def test_detach_keys_leave_the_container_running_and_attach_comes_back(docker: Engine) -> None:
    terminal = Terminal(docker, "run", "-it", "--name", "shell", "bb", "sh")
    terminal.expect("# ")
    terminal.send("x=kept\n")
    terminal.expect("# ")
    terminal.send("\x10\x11")
    assert terminal.end() == 0
    assert docker.state_of("shell") == "running"
    again = Terminal(docker, "attach", "shell")
    again.send("echo $x again\n")
    again.expect("kept again")
    again.send("exit 3\n")
    assert again.end() == 3


def test_attach_joins_the_output_from_now_on(docker: Engine) -> None:
    loop = "while [ ! -e /go ]; do sleep 0.05; done; echo late; exit 4"
    docker.docker("run", "-d", "--name", "web", "bb", "sh", "-c", f"echo early; {loop}")
    until("the first line", lambda: "early" in docker.out("logs", "web"))
    attached = docker.popen("attach", "web")
    until("attached", lambda: "attach" in docker.actions("web"))
    docker.docker("exec", "web", "touch", "/go")
    out, _ = attached.communicate(timeout=20)
    assert (out, attached.returncode) == ("late\n", 4)


def test_start_a_joins_and_gives_the_exit_code(docker: Engine) -> None:
    docker.docker("create", "--name", "job", "bb", "sh", "-c", "echo run; exit 5")
    first = docker.docker("start", "-a", "job", check=False)
    second = docker.docker("start", "-a", "job", check=False)
    assert (first.stdout, first.returncode) == ("run\n", 5)
    assert (second.stdout, second.returncode) == ("run\n", 5)
    assert docker.out("logs", "job") == "run\nrun"


def test_exec_has_output_exit_code_and_stdin(docker: Engine) -> None:
    docker.docker("run", "-d", "--name", "web", "-e", "A=1", "bb", "sleep", "1000")
    done = docker.docker("exec", "-e", "B=2", "web", "sh", "-c", "echo $A$B; exit 6", check=False)
    assert (done.stdout, done.returncode) == ("12\n", 6)
    assert docker.docker("exec", "-i", "web", "cat", stdin="hello").stdout == "hello"
    assert (
        docker.out("exec", "-u", "app", "-w", "/tmp", "web", "sh", "-c", "id -u; pwd")
        == "1000\n/tmp"
    )
    missing = docker.docker("exec", "web", "nope", check=False)
    assert missing.returncode == 127
    assert "executable file not found" in missing.stderr + missing.stdout


def _exec_made(docker: Engine, *command: str) -> str:
    body = {"AttachStdout": True, "Cmd": [*command]}
    reply = docker.api("POST", "/containers/web/exec", body)
    return str(reply.json["Id"])


def test_an_exec_that_nobody_starts_is_not_there(docker: Engine) -> None:
    docker.docker("run", "-d", "--name", "web", "bb", "sleep", "1000")
    for _ in range(3):
        _exec_made(docker, "touch", "/executed")
        assert len(docker.out("top", "web").splitlines()) == 2
    docker.docker("pause", "web")
    docker.docker("unpause", "web")
    made = _exec_made(docker, "touch", "/executed")
    assert docker.docker("exec", "web", "ls", "/executed", check=False).stdout == ""
    docker.docker("kill", "web")
    assert docker.api("GET", f"/exec/{made}/json").json["Running"] is False


def test_exec_with_a_terminal(docker: Engine) -> None:
    docker.docker("run", "-d", "--name", "web", "bb", "sleep", "1000")
    terminal = Terminal(docker, "exec", "-it", "web", "sh")
    terminal.expect("# ")
    terminal.send("echo $((40+2)) here; exit 8\n")
    terminal.expect("42 here")
    assert terminal.end() == 8


def test_exec_in_a_container_that_does_not_run_is_refused(docker: Engine) -> None:
    made = docker.out("create", "--name", "web", "bb", "true")
    done = docker.docker("exec", "web", "true", check=False)
    assert done.returncode == 1
    assert f"container {made} is not running" in done.stderr


def test_a_container_that_exits_at_once_loses_nothing(docker: Engine) -> None:
    for _ in range(20):
        done = docker.docker("run", "--rm", "bb", "echo", "x", check=False)
        assert (done.stdout, done.returncode) == ("x\n", 0)

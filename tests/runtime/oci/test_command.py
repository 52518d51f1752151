"""`mooring-oci` as an engine calls it: each test runs the command itself."""

from __future__ import annotations

import array
import json
import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mooring.runtime.oci import cgroups

from .conftest import default_spec

pytestmark = pytest.mark.kernel


class Runtime:
    """A --root of its own, and a bundle."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bundle = directory / "bundle"
        self.name = f"mooring-test-{uuid.uuid4().hex[:8]}"

    def configure(self, *args: str, **changes: Any) -> None:
        spec = default_spec(*args)
        spec["linux"]["cgroupsPath"] = f"/{self.name}"
        spec.update(changes)
        (self.bundle / "config.json").write_text(json.dumps(spec))

    def __call__(self, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mooring.runtime.oci", "--root", f"{self.directory}/root"]
        return subprocess.run(
            [*command, *args],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            **options,
        )

    def create(self) -> None:
        """Create, with the program's output in a file (a pipe would be held open by it)."""
        with (self.directory / "output").open("w") as output:
            command = [sys.executable, "-m", "mooring.runtime.oci"]
            command += ["--root", f"{self.directory}/root", "create", "-b", str(self.bundle)]
            subprocess.run(
                [*command, self.name], stdin=subprocess.DEVNULL, stdout=output, check=True
            )

    @property
    def output(self) -> str:
        return (self.directory / "output").read_text()

    def status(self) -> str:
        return str(json.loads(self("state", self.name).stdout)["status"])


@pytest.fixture
def runtime(busybox: Path, tmp_path: Path) -> Iterator[Runtime]:
    result = Runtime(tmp_path)
    result.bundle.mkdir()
    shutil.copytree(busybox, result.bundle / "rootfs", symlinks=True)
    yield result
    result("delete", "--force", result.name)
    assert not cgroups.attach(f"/{result.name}").exists()
    assert not (tmp_path / "root" / result.name).exists()


def until_stopped(runtime: Runtime) -> None:
    pid = json.loads(runtime("state", runtime.name).stdout)["pid"]
    if pid:
        pidfd = os.pidfd_open(pid)
        import select

        select.select([pidfd], [], [], 10)
        os.close(pidfd)


def test_a_container_goes_from_created_to_deleted(runtime: Runtime) -> None:
    runtime.configure("sh", "-c", "echo ran; sleep 100")
    runtime.create()
    assert runtime.status() == "created"
    assert runtime.output == ""
    assert runtime("start", runtime.name).returncode == 0
    assert runtime.status() == "running"
    assert "is not stopped" in runtime("delete", runtime.name).stderr
    assert runtime("kill", runtime.name, "KILL").returncode == 0
    until_stopped(runtime)
    assert runtime.status() == "stopped"
    assert runtime("delete", runtime.name).returncode == 0
    assert "does not exist" in runtime("state", runtime.name).stderr


def test_run_has_the_exit_code_and_leaves_nothing(runtime: Runtime) -> None:
    runtime.configure("sh", "-c", "echo out; exit 9")
    result = runtime("run", "-b", str(runtime.bundle), runtime.name)
    assert (result.returncode, result.stdout) == (9, "out\n")
    assert runtime("list", "-q").stdout == ""


def test_a_missing_program_is_an_error_of_create(runtime: Runtime) -> None:
    runtime.configure("nope")
    result = runtime("create", "-b", str(runtime.bundle), runtime.name)
    assert result.returncode == 1
    assert 'exec: "nope": executable file not found in $PATH' in result.stderr


def test_errors_go_to_the_log_as_json(runtime: Runtime) -> None:
    log = runtime.directory / "log"
    runtime("--log", str(log), "--log-format", "json", "start", "nobody")
    line = json.loads(log.read_text())
    assert (line["level"], line["msg"]) == ("error", 'container "nobody" does not exist')


def test_exec_runs_in_the_container(runtime: Runtime) -> None:
    runtime.configure("sleep", "100")
    runtime.create()
    runtime("start", runtime.name)
    result = runtime(
        "exec", "--cwd", "/tmp", "-u", "5:6", runtime.name, "sh", "-c", "pwd; id -u; exit 4"
    )
    assert (result.returncode, result.stdout) == (4, "/tmp\n5\n")
    assert runtime("exec", runtime.name, "nope").returncode == 127


def test_exec_takes_a_process_file_and_detaches(runtime: Runtime) -> None:
    runtime.configure("sleep", "100")
    runtime.create()
    runtime("start", runtime.name)
    # Its output is not ours to wait for.
    command = "exec sleep 50 > /dev/null 2>&1"
    process = default_spec("sh", "-c", command)["process"]
    (runtime.directory / "process.json").write_text(json.dumps(process))
    pid_file = runtime.directory / "pid"
    arguments = ("--process", f"{runtime.directory}/process.json", "--detach")
    done = runtime("exec", *arguments, "--pid-file", str(pid_file), runtime.name)
    assert done.returncode == 0, done.stderr
    assert int(pid_file.read_text()) in json.loads(runtime("ps", "-f", "json", runtime.name).stdout)


def test_pause_and_resume(runtime: Runtime) -> None:
    runtime.configure("sleep", "100")
    runtime.create()
    runtime("start", runtime.name)
    assert runtime("pause", runtime.name).returncode == 0
    assert runtime.status() == "paused"
    assert "paused" in runtime("exec", runtime.name, "true").stderr
    assert runtime("resume", runtime.name).returncode == 0
    assert runtime.status() == "running"


@pytest.mark.usefixtures("controllers")
def test_limits_are_updated_and_counted(runtime: Runtime) -> None:
    runtime.configure("sleep", "100")
    runtime.create()
    assert runtime("update", "--pids-limit", "77", runtime.name).returncode == 0
    event = json.loads(runtime("events", "--stats", runtime.name).stdout)
    assert event["id"] == runtime.name
    if "pids" in cgroups.attach("/").stats():
        assert event["data"]["pids"]["limit"] == 77


def test_the_console_socket_gets_the_terminal(runtime: Runtime) -> None:
    runtime.configure("sh", "-c", "tty")
    spec = json.loads((runtime.bundle / "config.json").read_text())
    spec["process"]["terminal"] = True
    (runtime.bundle / "config.json").write_text(json.dumps(spec))
    path = str(runtime.directory / "console")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        arguments = ("-b", str(runtime.bundle), "--console-socket", path, runtime.name)
        assert runtime("create", *arguments).returncode == 0
        connection, _ = listener.accept()
        with connection:
            size = array.array("i").itemsize
            _, rights, _, _ = connection.recvmsg(100, socket.CMSG_SPACE(size))
            master = array.array("i", rights[0][2])[0]
    runtime("start", runtime.name)
    assert os.read(master, 100).strip() == b"/dev/pts/0"
    os.close(master)


def test_a_detached_terminal_needs_a_console_socket(runtime: Runtime) -> None:
    runtime.configure("true")
    spec = json.loads((runtime.bundle / "config.json").read_text())
    spec["process"]["terminal"] = True
    (runtime.bundle / "config.json").write_text(json.dumps(spec))
    result = runtime("create", "-b", str(runtime.bundle), runtime.name)
    assert "console socket" in result.stderr


def test_hooks_run_in_order_with_the_state_on_stdin(runtime: Runtime) -> None:
    order = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    log = runtime.directory / "hooks"
    hooks: dict[str, Any] = {
        name: [{"path": "/bin/sh", "args": ["sh", "-c", f"echo {name} $(cat) >> {log}"]}]
        for name in order
    }
    inside = [{"path": "/bin/sh", "args": ["sh", "-c", "echo inside > /hook"]}]
    runtime.configure("cat", "/hook", hooks={**hooks, "startContainer": inside})
    result = runtime("run", "-b", str(runtime.bundle), runtime.name)
    assert result.stdout == "inside\n"
    lines = [line.split(" ", 1) for line in log.read_text().splitlines()]
    assert [name for name, _ in lines] == list(order)
    states = [json.loads(state) for _, state in lines]
    assert {state["id"] for state in states} == {runtime.name}
    assert states[1]["status"] == "creating"
    assert states[1]["pid"] > 0
    assert states[-1]["status"] == "stopped"


def test_a_hook_that_fails_fails_the_create(runtime: Runtime) -> None:
    hooks = {"createRuntime": [{"path": "/bin/false"}]}
    runtime.configure("true", hooks=hooks)
    result = runtime("create", "-b", str(runtime.bundle), runtime.name)
    assert "createRuntime hook /bin/false failed: exit status 1" in result.stderr


def test_the_seccomp_profile_of_the_configuration_is_applied(runtime: Runtime) -> None:
    runtime.configure("sh", "-c", "mkdir /x; echo $?")
    spec = json.loads((runtime.bundle / "config.json").read_text())
    calls = [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]
    spec["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": calls}
    (runtime.bundle / "config.json").write_text(json.dumps(spec))
    result = runtime("run", "-b", str(runtime.bundle), runtime.name)
    assert result.stdout == "1\n"
    assert "not supported" in result.stderr


def test_descriptors_are_preserved_when_asked(runtime: Runtime) -> None:
    runtime.configure("sh", "-c", "cat <&3")
    reader, writer = os.pipe()
    os.write(writer, b"through")
    os.close(writer)
    code = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.execv(sys.argv[2], sys.argv[2:])"
    command = [sys.executable, "-m", "mooring.runtime.oci", "--root", f"{runtime.directory}/root"]
    command += ["run", "--preserve-fds", "1", "-b", str(runtime.bundle), runtime.name]
    result = subprocess.run(
        [sys.executable, "-c", code, str(reader), *command],
        pass_fds=[reader],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    os.close(reader)
    assert result.stdout == "through", result.stderr


def test_the_systemd_driver_is_refused(runtime: Runtime) -> None:
    runtime.configure("true")
    result = runtime("--systemd-cgroup", "create", "-b", str(runtime.bundle), runtime.name)
    assert "systemd cgroup driver is not supported" in result.stderr


def test_spec_and_features_are_json(runtime: Runtime) -> None:
    assert runtime("spec", "-b", str(runtime.bundle)).returncode == 0
    spec = json.loads((runtime.bundle / "config.json").read_text())
    assert spec["process"]["args"] == ["sh"]
    assert "exists already" in runtime("spec", "-b", str(runtime.bundle)).stderr
    assert "rro" in json.loads(runtime("features").stdout)["mountOptions"]

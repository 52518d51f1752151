"""A launcher and its shims for tests, and a small client of the shim's socket."""

from __future__ import annotations

import array
import json
import os
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from mooring.shim.logread import LogReader, frames

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "/usr/bin/python3"
DEADLINE = 10.0

Packet = dict[str, Any]


class Launcher:
    """A launcher process, spoken to as the worker does."""

    def __init__(self, environment: dict[str, str] | None = None, fake: bool = True) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket = ours
        self.code = ""
        """What the shim that was forked last runs."""
        paths = [str(ROOT / "runtime-worker"), str(ROOT / "shim-agent")]
        code = f"import sys; sys.path[:0] = {[*paths, str(ROOT)]!r}\n"
        code += "from mooring.runtime.launcher import main\n"
        code += "from tests.shim import fake_oci\nmain(fake_oci)" if fake else "main()"
        self.process = subprocess.Popen(
            [PYTHON, "-I", "-S", "-c", code],
            # Descriptor 3 is the launcher's socket, whatever number it has here.
            preexec_fn=lambda: os.dup2(theirs.fileno(), 3, inheritable=True),
            close_fds=False,
            env={"PATH": "/usr/bin:/bin", **(environment or {})},
        )
        theirs.close()

    def fork(self, **fields: Any) -> tuple[int, socket.socket]:
        """A warm shim: its pid, and the socket for its start command."""
        self.socket.send(json.dumps({"op": "fork", "cgroup": None, **fields}).encode())
        data, fds, _, _ = socket.recv_fds(self.socket, 4096, 1)
        self.code = json.loads(data)["code"]
        return json.loads(data)["pid"], socket.socket(fileno=fds[0])

    def succeed(self, directory: Path) -> socket.socket:
        """A process that is to take a run over: the socket that an agent speaks to it over."""
        self.socket.send(b"successor " + os.fsencode(directory))
        _, fds, _, _ = socket.recv_fds(self.socket, 4096, 1)
        return socket.socket(fileno=fds[0])

    def close(self) -> None:
        """End the launcher; its shims go on."""
        self.socket.close()
        self.process.wait(DEADLINE)


class Container:
    """One run of a container under a shim, and the files and sockets to look at it."""

    def __init__(
        self,
        launcher: Launcher,
        directory: Path,
        args: list[str],
        run: int = 1,
        log: Path | None = None,
        meanwhile: Callable[[int], None] | None = None,
        **fields: Any,
    ) -> None:
        """meanwhile: is called with the pid of the shim before it is given the start command."""
        self.launcher = launcher
        self.directory = directory / f"c.{run}"
        self.directory.mkdir(parents=True)
        self.bundle = directory / "bundle"
        self.bundle.mkdir(exist_ok=True)
        self.log = log or directory / "log"
        process: Packet = {"args": args, "cwd": "/", "env": ["PATH=/usr/bin:/bin"]}
        process |= {"terminal": bool(fields.get("tty"))}
        spec = fields.pop("spec", None) or {"process": process, "linux": {"namespaces": []}}
        (self.bundle / "config.json").write_text(json.dumps(spec))
        self.request: Packet = {
            "op": "start",
            "id": "c",
            "run": run,
            "dir": str(self.directory),
            "inode": self.directory.stat().st_ino,
            "bundle": str(self.bundle),
            "log_dir": str(self.log),
            "log_max_size": 64 << 20,
            "log_max_files": 16,
            "tty": False,
            "stdin": False,
            "stdin_once": False,
            "rootfs": None,
            "cgroup": "/c",
            "seccomp": None,
            "agent_socket": "",
            "console_size": None,
            "timings": False,
            **fields,
        }
        self.clients: list[Client] = []
        self.shim, sock = launcher.fork()
        self.pidfd = os.pidfd_open(self.shim)
        if meanwhile is not None:
            meanwhile(self.shim)
        with sock:
            sock.settimeout(DEADLINE)
            sock.send(json.dumps({**self.request, "code": launcher.code}).encode())
            self.answer: Packet = json.loads(sock.recv(1 << 16) or b"{}")

    def client(self) -> Client:
        """A connection to shim.sock."""
        self.clients.append(Client(self.directory))
        return self.clients[-1]

    def wait(self, seconds: float = DEADLINE) -> Packet:
        """Wait for the shim to end; the exit record."""
        readable, _, _ = select.select([self.pidfd], [], [], seconds)
        assert readable, "the shim is still there"
        return self.exit()

    def exit(self) -> Packet:
        """exit.json."""
        record: Packet = json.loads((self.directory / "exit.json").read_text())
        return record

    def reader(self) -> LogReader:
        """A reader of its log."""
        return LogReader(str(self.log))

    def output(self, stream: int | None = None) -> bytes:
        """All that was logged, of one stream or of both."""
        return output(self.reader(), stream)

    def kill(self) -> None:
        """End it all, whatever state it is in."""
        try:
            os.kill(self.answer["pid"], 9)
        except (KeyError, ProcessLookupError):
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        for client in self.clients:
            client.close()
        if not select.select([self.pidfd], [], [], 10.0)[0]:
            os.kill(self.shim, 9)
        os.close(self.pidfd)


Run = Callable[..., Container]
"""Starts one that is ended with the test, see conftest."""


def shell(run: Run, script: str, **fields: Any) -> Container:
    """A container that runs a script."""
    return run("sh", "-c", script, **fields)


class Client:
    """What an agent does: packets to a shim, answers and events back."""

    def __init__(self, directory: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(DEADLINE)
        number = os.open(directory, os.O_PATH)
        self.socket.connect(f"/proc/self/fd/{number}/shim.sock")
        os.close(number)
        self.events: list[Packet] = []
        self.fds: list[int] = []
        self._serial = 0

    def tell(self, op: str, raw: bytes = b"", **fields: Any) -> int:
        """Send a request; its id."""
        self._serial += 1
        head = json.dumps({"op": op, "id": self._serial, **fields}).encode()
        self.socket.send(head + b"\n" + raw if raw else head)
        return self._serial

    def ask(self, op: str, raw: bytes = b"", **fields: Any) -> Packet:
        """Send a request and wait for its answer."""
        return self.answer(self.tell(op, raw, **fields))

    def answer(self, ident: int) -> Packet:
        """The answer to request `ident`; whatever comes before it is kept."""
        for packet in self.events:
            if packet.get("id") == ident:
                self.events.remove(packet)
                return packet
        while True:
            packet = self.receive()
            if packet.get("id") == ident:
                return packet
            self.events.append(packet)

    def event(self, name: str) -> Packet:
        """The next event of this name."""
        for event in self.events:
            if event.get("event") == name:
                self.events.remove(event)
                return event
        while True:
            packet = self.receive()
            if packet.get("event") == name:
                return packet
            self.events.append(packet)

    def receive(self) -> Packet:
        """The next packet; EOFError at the end."""
        data, ancillary, _, _ = self.socket.recvmsg(1 << 18, socket.CMSG_SPACE(64 * 4))
        for _, _, rights in ancillary:
            numbers = array.array("i")
            numbers.frombytes(rights)
            self.fds += numbers
        if not data:
            raise EOFError("the shim closed the connection")
        packet: Packet = json.loads(data.partition(b"\n")[0])
        return packet

    def close(self) -> None:
        """End the conversation."""
        self.socket.close()


def everything(reader: LogReader) -> Iterator[tuple[int, bytes]]:
    """(stream, payload) of all frames."""
    parts = []
    offset = reader.first()
    while data := reader.read(offset, 1 << 20):
        parts.append(data)
        offset += len(data)
    for _, stream, _, payload in frames(b"".join(parts)):
        yield stream, bytes(payload)


def output(reader: LogReader, stream: int | None = None) -> bytes:
    """The payload of a log, of one stream or of both."""
    wanted = (1, 2) if stream is None else (stream,)
    return b"".join(payload for number, payload in everything(reader) if number in wanted)


def eventually(condition: Any, seconds: float = DEADLINE) -> None:
    """Wait until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False

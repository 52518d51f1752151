"""A shim that a test speaks for: its run directory, its sockets and its log are real."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from mooring.kit.config import Settings
from mooring.shim import version
from mooring.shim.frames import HEADER, MAGIC, RUN_BEGINS, RUN_ENDS, STDOUT, segment_name
from mooring.shim.keeping import Keeping, Nobody
from mooring.shim.vestibule import Key
from tests.fakes import FakeManager

CONTAINER = "c0ffee" * 10 + "beef"

NOBODY = (1 << 22) + 1
"""A pid beyond the kernel's largest."""


def start_time(pid: int) -> int:
    """Field 22 of /proc/<pid>/stat."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def frame(stream: int, payload: bytes) -> bytes:
    """One frame of a log."""
    return HEADER.pack(MAGIC, stream, 0, len(payload), time.time_ns()) + payload


class FakeShim:
    """Answers as ARCHITECTURE 3 says; `ops` keeps what was asked of it."""

    def __init__(self, settings: Settings, id_: str = CONTAINER, run: int = 1) -> None:
        self.id, self.run = id_, run
        self.run_dir = settings.run_dir
        self.directory = settings.run_dir / "shims" / f"{id_}.{run}"
        self.container = settings.state_dir / "containers" / id_
        self.log = self.container / "log"
        self.ops: list[dict[str, Any]] = []
        self.refuse: dict[str, dict[str, Any]] = {}
        self.stdin = b""
        self.pid = os.getpid()
        """Of the process that stands for it."""
        self.code = version.digest()
        """What it runs; the same as a successor of it would: an agent leaves it in peace."""
        self.descriptors: dict[str, int] = {}
        """What it hands out."""
        self.silent: set[str] = set()
        """Operations that it does not answer."""
        self.on_signal: dict[int, int] = {15: 143, 9: 137}
        """Which signals end it, and with what exit code."""
        self.init = subprocess.Popen(["sleep", "1000"])
        self.armed: dict[str, int] = {}
        self._sockets: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self._execs: dict[str, int] = {}
        self.ended = False

    @property
    def record(self) -> dict[str, Any]:
        """shim.json."""
        return {
            "version": 1,
            "id": self.id,
            "run": self.run,
            "shim_pid": self.pid,
            "shim_start": start_time(self.pid),
            "code": self.code,
            "init_pid": self.init.pid,
            "init_start": start_time(self.init.pid),
            "started_ns": time.time_ns(),
            "bundle": str(self.container / "bundle"),
            "log_dir": str(self.log),
            "cgroup": f"/mooring/{self.id}",
            "tty": False,
            "stdin": True,
            "exec_marker": "",
        }

    def start(self, *, hello: bool = True) -> FakeShim:
        """Begin the run; hello False: no agent listens."""
        self.log.mkdir(parents=True, exist_ok=True)
        (self.directory / "execs").mkdir(parents=True, exist_ok=True)
        (self.container / "bundle").mkdir(exist_ok=True)
        spec = {"process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/", "env": []}}
        (self.container / "bundle" / "config.json").write_text(json.dumps(spec))
        self._write("shim.json", self.record)
        (self.directory / "executed").touch()
        self.append(RUN_BEGINS, b"%d" % self.run)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._bind(listener)
        listener.listen(16)
        listener.setblocking(False)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._accept)
        if hello:
            self.connect()
        return self

    def connect(self) -> None:
        """Say hello to the agent."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with _directory(self.run_dir) as short:
            sock.connect(f"{short}/agent.sock")
        self._talk(sock)
        self._send(sock, {"event": "hello", **self._hello()})

    def print(self, text: bytes, stream: int = STDOUT) -> None:
        """The container printed something."""
        self.append(stream, text)

    def append(self, stream: int, payload: bytes, exec_id: str = "") -> None:
        """Add a frame to the log (of an exec) and tell who waits for it."""
        log = self.directory / "execs" / exec_id / "log" if exec_id else self.log
        with (log / segment_name(0)).open("ab") as file:
            file.write(frame(stream, payload))
        end = (log / segment_name(0)).stat().st_size
        if end > self.armed.get(exec_id, 1 << 62):
            del self.armed[exec_id]
            event = {"event": "log", "end": end}
            self.tell({**event, "exec": exec_id} if exec_id else event)

    def exit(self, code: int, *, announce: bool = True, **fields: Any) -> None:
        """The container's init has exited."""
        if self.ended:
            return
        self.ended = True
        self.init.kill()
        self.init.wait()
        end = json.dumps({"run": self.run, "exit_code": code}, separators=(",", ":"))
        self.append(RUN_ENDS, end.encode())
        record = {
            "version": 1,
            "id": self.id,
            "run": self.run,
            "pid": self.init.pid,
            "started_ns": time.time_ns() - 1_000_000,
            "finished_ns": time.time_ns(),
            "exit_code": code,
            "signal": 0,
            "oom_killed": False,
            "error": "",
            **fields,
        }
        self._write("exit.json", record)
        if announce:
            self.tell({"event": "exit", **record})
        self.close()

    def exec_exit(self, exec_id: str, code: int) -> None:
        """An exec is over."""
        pid = self._execs[exec_id]
        record = {"exec": exec_id, "exit_code": code, "pid": pid}
        self._write(f"execs/{exec_id}/exit.json", record)
        self.tell({"event": "exec_exit", **record})

    def vanish(self) -> None:
        """Break all connections, as a crash does."""
        for sock in self._sockets[:]:
            self._drop(sock)

    def close(self) -> None:
        """End every conversation."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        self.vanish()

    def cleanup(self) -> None:
        """Leave no process behind."""
        if self.init.poll() is None:
            self.init.kill()
            self.init.wait()
        self.close()

    def tell(self, event: dict[str, Any]) -> None:
        """Send an event to every agent that is connected."""
        for sock in self._sockets:
            self._send(sock, event)

    def _hello(self) -> dict[str, Any]:
        size = (self.log / segment_name(0)).stat().st_size
        execs = [{"exec": id_, "pid": pid} for id_, pid in self._execs.items()]
        return {**self.record, "log_end": size, "paused": False, "execs": execs}

    def _answer(self, message: dict[str, Any], data: bytes) -> dict[str, Any] | None:
        op = message["op"]
        if op in self.refuse:
            return {"error": self.refuse[op]}
        match op:
            case "hello":
                return self._hello()
            case "watch_log":
                exec_id = message.get("exec", "")
                self.armed[exec_id] = message["after"]
                self._rearm(exec_id)
                return None
            case "kill":
                number = message["signal"]
                if number in self.on_signal:
                    code = self.on_signal[number]
                    asyncio.get_running_loop().call_soon(self.exit, code)
            case "stdin":
                skipped = len(self.stdin) - message["offset"]
                self.stdin += data[skipped:]
                return {"offset": len(self.stdin), "closed": bool(message.get("eof"))}
            case "exec":
                log = self.directory / "execs" / message["exec"] / "log"
                log.mkdir(parents=True, exist_ok=True)
                self._execs[message["exec"]] = NOBODY
                return {"pid": NOBODY}
            case "pids":
                return {"pids": [os.getpid()]}
            case "stats":
                return {"stats": {"pids": {"current": 3}, "memory": {"usage": 4096}}}
        return {}

    def _rearm(self, exec_id: str) -> None:
        log = self.directory / "execs" / exec_id / "log" if exec_id else self.log
        end = (log / segment_name(0)).stat().st_size if any(log.iterdir()) else 0
        if end > self.armed[exec_id]:
            del self.armed[exec_id]
            event = {"event": "log", "end": end}
            self.tell({**event, "exec": exec_id} if exec_id else event)

    def _accept(self) -> None:
        assert self._listener is not None
        self._talk(self._listener.accept()[0])

    def _talk(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sockets.append(sock)
        asyncio.get_running_loop().add_reader(sock, self._readable, sock)

    def _readable(self, sock: socket.socket) -> None:
        try:
            packet = sock.recv(256 << 10)
        except OSError:
            packet = b""
        if not packet:
            self._drop(sock)
            return
        head, _, data = packet.partition(b"\n")
        message = json.loads(head)
        self.ops.append(message)
        if message["op"] in self.silent:
            return
        answer = self._answer(message, data)
        if "id" in message and answer is not None:
            fds = self.descriptors if message["op"] == "descriptors" else {}
            self._send(sock, {"id": message["id"], "ok": True, **answer}, fds)

    def answer(self, op: str) -> None:
        """Answer all that was asked of this kind."""
        self.silent.discard(op)
        for message in self.ops:
            if message["op"] == op:
                answer = {"id": message["id"], "ok": True, **(self._answer(message, b"") or {})}
                for sock in self._sockets:
                    self._send(sock, answer, self.descriptors if op == "descriptors" else {})

    def _send(
        self, sock: socket.socket, message: dict[str, Any], fds: dict[str, int] | None = None
    ) -> None:
        if sock in self._sockets:
            packet = {**message, "names": list(fds)} if fds else message
            socket.send_fds(sock, [json.dumps(packet).encode()], list((fds or {}).values()))

    def _drop(self, sock: socket.socket) -> None:
        if sock in self._sockets:
            self._sockets.remove(sock)
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()

    def _bind(self, listener: socket.socket) -> None:
        with _directory(self.directory) as short:
            listener.bind(f"{short}/shim.sock")

    def _write(self, name: str, fields: dict[str, Any]) -> None:
        path = self.directory / name
        new = path.with_suffix(".new")
        new.write_text(json.dumps(fields))
        new.rename(path)


class _directory:
    """A short path of a directory, for socket addresses."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_PATH)

    def __enter__(self) -> str:
        return f"/proc/self/fd/{self._fd}"

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def write_policy(settings: Settings, id_: str = CONTAINER, **fields: Any) -> Path:
    """What the worker writes at a start."""
    directory = settings.state_dir / "containers" / id_
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "policy.json"
    path.write_text(
        json.dumps({"name": "no", "max": 0, "count": 0, "stopped": False, "run": 1, **fields})
    )
    return path


SIGTERM, SIGKILL = int(signal.SIGTERM), int(signal.SIGKILL)


class Manager(FakeManager, Nobody):
    """Keeps descriptors, and has no listeners."""

    def found(self, key: Key) -> dict[str, int]:
        """What an agent that starts now finds of a run or an exec: names and inodes."""
        keeping = Keeping(self)
        _, named = keeping.take(key)
        inodes = {name: os.fstat(descriptor).st_ino for name, descriptor in named.items()}
        for descriptor in named.values():
            os.close(descriptor)
        keeping.forget_rest()
        keeping.close()
        return inodes

    def close(self) -> None:
        """Let go of all."""
        for name in list(self.kept):
            self.unstore(name)

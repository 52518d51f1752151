"""What clients do, each forever until told to end, each checking every byte that it sees."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from tests.engine.harness import Engine, UnixHTTP, numbers, until

T = TypeVar("T")
IMAGE = "bb"
PATIENCE = 90.0
"""Seconds that a command may need while the engine is killed under it."""


class Torn(Exception):
    """Something was lost, doubled, or out of order; the message says what."""


class Client(threading.Thread):
    """One client. `one` does one thing from its beginning to its end, under a name of its own."""

    kind = ""

    def __init__(self, engine: Engine, number: int, seed: int) -> None:
        super().__init__(name=f"{self.kind}-{number}", daemon=True)
        self.engine, self.number = engine, number
        self.chance = random.Random(f"{seed} {self.name}")
        self.ended = threading.Event()
        self.wrong: list[str] = []
        self.done = 0
        self.containers: list[tuple[str, int]] = []
        """Name of each container that came and went, and its exit code."""

    def run(self) -> None:
        at = 0
        while not self.ended.is_set():
            at += 1
            name = f"{self.name}-{at}"
            try:
                self.one(name)
                self.done += 1
            except Exception as exc:
                self.wrong.append(f"{name}: {type(exc).__name__}: {exc}\n{self.record(name)}")

    def one(self, name: str) -> None:
        raise NotImplementedError

    def record(self, name: str) -> str:
        """All there is to say about a container that something is wrong with."""
        with contextlib.suppress(AssertionError):
            until("the API answers", self.engine.answers)
        lines = [line for line in self.engine.logs().splitlines() if name in line]
        found: Any = None
        with contextlib.suppress(AssertionError, OSError, http.client.HTTPException, ValueError):
            found = self.engine.inspect(name)
            short = found["Id"][:12]
            lines += [line for line in self.engine.logs().splitlines() if short in line]
            lines.append(f"events: {self.engine.actions(name)}")
        return "\n".join([f"  state: {found and found['State']}", *(f"  {x}" for x in lines[-30:])])

    # --- commands that are sent until the engine has taken them ---

    def calm(self, what: str, step: Callable[[], T]) -> T:
        """The step's value, as soon as it has one: a kill under it is no failure of its own."""
        last: list[str] = []

        def attempt() -> T | None:
            try:
                return step()
            except (OSError, http.client.HTTPException, ValueError, AssertionError) as exc:
                last[:] = [repr(exc)[:300]]
            return None

        try:
            found: T = until(what, attempt, PATIENCE)
        except AssertionError as exc:
            raise Torn(f"{exc}: {last}") from None
        return found

    def exists(self, name: str) -> bool:
        return self.engine.api("GET", f"/containers/{name}/json").status == 200

    def create(self, name: str, script: str, **fields: Any) -> None:
        body = {"Image": IMAGE, "Cmd": ["sh", "-c", script], **fields}

        def created() -> bool:
            self.engine.api("POST", f"/containers/create?name={name}", body)
            return self.exists(name)

        self.calm(f"create {name}", created)

    def begin(self, name: str) -> None:
        def started() -> bool:
            if self.engine.state_of(name) == "created":
                self.engine.api("POST", f"/containers/{name}/start", timeout=60)
            return self.engine.state_of(name) in ("running", "exited")

        self.calm(f"start {name}", started)

    def exited(self, name: str, code: int) -> None:
        self.calm(f"exit of {name}", lambda: self.engine.state_of(name) == "exited")
        found = self.calm(f"inspect {name}", lambda: self.engine.inspect(name)["State"])
        if found["ExitCode"] != code:
            raise Torn(f"exit code {found['ExitCode']} ({found['Error']}), not {code}")

    def remove(self, name: str, code: int) -> None:
        def removed() -> bool:
            self.engine.api("DELETE", f"/containers/{name}?force=1&v=1", timeout=60)
            return not self.exists(name)

        self.calm(f"remove {name}", removed)
        self.containers.append((name, code))

    def logs(self, name: str) -> list[int]:
        return numbers(self.calm(f"logs {name}", lambda: self.engine.docker("logs", name)).stdout)


def check(found: list[int], expected: list[int], what: str) -> None:
    """Torn, with the first difference."""
    if found == expected:
        return
    at = next((n for n, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), -1)
    around = found[max(0, at - 2) : at + 3] if at >= 0 else found[-3:]
    raise Torn(f"{what}: {len(found)} lines of {len(expected)}, differ at {at}: {around}")


class Foreground(Client):
    """A container that prints fast or slowly, followed by the docker CLI from its start."""

    kind = "follow"

    def one(self, name: str) -> None:
        fast = self.chance.random() < 0.5
        lines = self.chance.randint(20_000, 200_000) if fast else self.chance.randint(50, 300)
        code = self.chance.randint(0, 100)
        pause = "" if fast else "sleep 0.01;"
        script = f"seq 1 {lines}" if fast else (
            f"i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo $i; {pause} done"
        )  # fmt: skip
        self.create(name, f"{script}; exit {code}")
        self.begin(name)
        expected = list(range(1, lines + 1))
        self.follow(name, expected)
        self.exited(name, code)
        check(self.logs(name), expected, "logs")
        self.remove(name, code)

    def follow(self, name: str, expected: list[int]) -> None:
        """`logs -f`, which goes on through every kill once it has begun."""
        for _ in range(20):
            client = self.engine.popen("logs", "-f", name)
            out, err = client.communicate(timeout=PATIENCE)
            if out or not err:
                check(numbers(out), expected, f"logs -f ({err.strip()})")
                return
        raise Torn("logs -f never began")


class Attached(Client):
    """A raw socket that attaches before the start, and one that waits."""

    kind = "attach"

    def one(self, name: str) -> None:
        lines, code = self.chance.randint(50, 2000), self.chance.randint(0, 100)
        self.create(name, f"seq 1 {lines}; sleep 0.3; seq {lines + 1} {lines + 50}; exit {code}")
        attached = self.calm("attach", lambda: self.hijack(name))
        waiting = self.calm("wait", lambda: self.wait_on(name))
        self.begin(name)
        out = b""
        with attached:
            while data := attached.recv(1 << 16):
                out += data
        with waiting:
            rest = b""
            while data := waiting.recv(1 << 16):
                rest += data
        check(numbers(demultiplexed(out)), list(range(1, lines + 51)), "attach")
        if f'"StatusCode":{code}'.encode() not in rest:
            raise Torn(f"wait said {rest!r}, not {code}")
        self.exited(name, code)
        self.remove(name, code)

    def hijack(self, name: str) -> socket.socket:
        path = f"/containers/{name}/attach?stream=1&stdout=1&stderr=1"
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        return self.open(head, b"101")

    def wait_on(self, name: str) -> socket.socket:
        path = f"/v1.43/containers/{name}/wait?condition=next-exit"
        return self.open(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"200")

    def open(self, head: str, status: bytes) -> socket.socket:
        """Send a request and read the head of its answer; OSError if that is another one."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        try:
            sock.connect(self.engine.socket)
            sock.sendall(head.encode())
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                if not (byte := sock.recv(1)):
                    raise ConnectionError(f"ended after {answer!r}")
                answer += byte
            if answer.split(b" ", 2)[1] != status:
                raise ConnectionError(answer.decode())
        except BaseException:
            sock.close()
            raise
        return sock


def demultiplexed(data: bytes) -> str:
    """The text of a stream of Docker's frames."""
    parts, at = [], 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "big")
        parts.append(data[at + 8 : at + 8 + size])
        at += 8 + size
    return b"".join(parts).decode()


class Typing(Client):
    """`docker exec -i` of cat: what is typed comes back, once and in order."""

    kind = "exec"

    def one(self, name: str) -> None:
        self.create(name, "trap 'exit 4' TERM; while :; do sleep 0.05; done")
        self.begin(name)
        for _ in range(20):
            client = self.engine.popen("exec", "-i", name, "cat", stdin=subprocess.PIPE)
            assert client.stdin is not None and client.stdout is not None
            with client, contextlib.suppress(BrokenPipeError):
                client.stdin.write("1\n")
                client.stdin.flush()
                if client.stdout.readline() == "1\n":
                    self.type(client)
                    break
        else:
            raise Torn("exec never began")

        def stopped() -> bool:
            self.engine.api("POST", f"/containers/{name}/stop?t=20", timeout=60)
            return self.engine.state_of(name) == "exited"

        self.calm("stop", stopped)
        self.exited(name, 4)
        self.remove(name, 4)

    def type(self, client: subprocess.Popen[str]) -> None:
        assert client.stdin is not None and client.stdout is not None
        last = self.chance.randint(20, 150)
        for n in range(2, last + 1):
            client.stdin.write(f"{n}\n")
            client.stdin.flush()
            if (line := client.stdout.readline()) != f"{n}\n":
                raise Torn(f"typed {n}, {line!r} came back")
        client.stdin.close()
        rest = client.stdout.read()
        if rest or client.wait(PATIENCE) != 0:
            raise Torn(f"after the end: {rest!r}, exit code {client.returncode}")


class Watching(Client):
    """One raw `GET /events` from the beginning to the end of the torture."""

    kind = "events"

    def __init__(self, engine: Engine, number: int, seed: int) -> None:
        super().__init__(engine, number, seed)
        self.seen: list[dict[str, Any]] = []
        self.began = threading.Event()

    def run(self) -> None:
        connection = UnixHTTP(self.engine.socket, PATIENCE)
        connection.request("GET", '/events?since=0&filters={"type":["container"]}')
        response = connection.getresponse()
        self.began.set()
        try:
            for line in response:
                self.seen.append(json.loads(line))
                if self.seen[-1]["Actor"]["Attributes"].get("name") == "the-last":
                    return
        except Exception as exc:
            self.wrong.append(f"events ended: {exc!r}")
        finally:
            connection.close()
        self.wrong.append("events ended by themselves")

    def actions(self) -> dict[str, list[str]]:
        """By name: what happened to each container, in order; execs, attach and kill left out."""
        found: dict[str, list[str]] = {}
        for event in self.seen:
            name = event["Actor"]["Attributes"].get("name", "")
            if event["Action"] in ("create", "start", "die", "destroy"):
                found.setdefault(name, []).append(event["Action"])
        return found

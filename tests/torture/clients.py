"""What every client has: containers that it makes, watches and takes away, and their reckoning."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import Any

from tests.engine.harness import Engine, until

from .asking import PATIENCE, Asker, Broken, Torn, demultiplexed, rest

IMAGE = "mooring-torture"
LABEL = "mooring.torture"
ON_ITS_WAY = 40.0
"""Seconds within which a request whose answer was lost is carried out, if ever."""
_EXCUSES = re.compile(
    r"EOF|connection reset|broken pipe|cannot connect|connection refused|transport connection"
    r"|server closed|the bus|starting|stopping|does not answer|took too long",
    re.IGNORECASE,
)
"""What a docker command says when the engine was killed under a request that did not stream."""


@dataclass
class Past:
    """A container that came and went, and what must have been told of it."""

    name: str
    id: str
    events: str
    """A regular expression: create, start, die, stop …, each followed by a space."""
    codes: list[int]
    """The exit code of each `die`, if all are known."""


@dataclass
class Context:
    """What all clients share."""

    engine: Engine
    seed: int
    network: str
    """The name of a network with names and addresses of its own."""
    prefix: str
    """Addresses of that network, but for their last number."""
    probe: str
    """A container on it that asks for names."""


class Client(threading.Thread):
    """One client. `one` does one thing from its beginning to its end, under a name of its own."""

    kind = ""

    def __init__(self, context: Context, number: int) -> None:
        super().__init__(name=f"torture-{self.kind}-{number}", daemon=True)
        self.context, self.engine, self.number = context, context.engine, number
        self.chance = random.Random(f"{context.seed} {self.name}")
        self.asker = Asker(context.engine)
        self.counts = self.asker.counts
        self.ended = threading.Event()
        self.wrong: list[str] = []
        self.past: list[Past] = []
        self.unclear: set[str] = set()
        """Containers whose start was asked for again."""
        self.execs: list[tuple[str, str, int]] = []
        """Container, id and exit code of each exec whose end was seen."""

    def run(self) -> None:
        at = 0
        while not self.ended.is_set():
            at += 1
            name = f"{self.name}-{at}"
            try:
                self.one(name)
                self.counts[self.kind] += 1
            except Exception as exc:
                if name in self.unclear:
                    self.counts["unclear"] += 1
                    self.clean(name)
                    continue
                when = time.strftime("%H:%M:%S")
                words = f"{when} {name}: {type(exc).__name__}: {exc}"
                self.wrong.append(f"{words}\n{self.record(name)}")
                self.clean(name)

    def one(self, name: str) -> None:
        """One thing, from its beginning to its end."""
        raise NotImplementedError

    def record(self, name: str) -> str:
        """All there is to say about a container that something is wrong with."""
        lines = []
        try:
            until("the API answers", self.engine.answers)
            found = self.engine.inspect(name)
            ids = (name, found["Id"][:12])
            lines = [f"state: {found['State']}"]
            said = self.engine.logs().splitlines()
            lines += [line for line in said if any(part in line for part in ids)][-40:]
            lines.append(f"events: {self.engine.actions(found['Id'])}")
        except Exception as exc:
            lines.append(f"no more is known: {exc!r}"[:200])
        return "\n".join(f"    {line}" for line in lines)

    def clean(self, name: str) -> None:
        """What went wrong with one container is not to stop the next."""
        with contextlib.suppress(Torn):
            for path in (f"/containers/{name}", f"/containers/{name}-b"):
                self.asker.ask("DELETE", f"{path}?force=1&v=1", [204, 404], again=[409])
            self.asker.ask("DELETE", f"/networks/{name}-net", [204, 404])

    # --- one container, from its creation to its removal ---

    def create(self, name: str, script: str, **fields: Any) -> str:
        """Create it; its id."""
        body = {"Image": IMAGE, "Cmd": ["sh", "-c", script], "Labels": {LABEL: name}, **fields}
        path = f"/containers/create?name={name}"
        answer, _ = self.asker.ask("POST", path, [201], body, again=[409])
        self.counts["containers"] += 1
        return str(answer.json["Id"] if answer.status == 201 else self.inspect(name)["Id"])

    def begin(self, name: str) -> None:
        """Start it, once.

        Of a start whose answer was lost nobody knows whether it is still on its way, and a short
        run may be over before it is asked again: so again only where it was not carried out for
        a while. What becomes of such a container proves nothing if it has run twice.
        """
        before = self.inspect(name)["State"]
        path = f"/containers/{name}/start"
        try:
            self.asker.once("POST", path, [204])
        except Broken:
            while not self.begun(name, before):
                self.unclear.add(name)
                try:
                    self.asker.once("POST", path, [204, 304])
                except Broken:
                    continue
        self.counts["runs"] += 1

    def begun(self, name: str, before: Any) -> bool:
        """Whether it has begun since; a start that is on its way is given time."""

        def seen() -> bool:
            state = self.inspect(name)["State"]
            return bool(state["StartedAt"] != before["StartedAt"])

        try:
            return self.asker.calm(f"{name} begins", seen, ON_ITS_WAY)
        except Torn:
            return False

    def inspect(self, name: str) -> Any:
        """Its inspect."""
        return self.asker.get(f"/containers/{name}/json")

    def exited(self, name: str, code: int) -> None:
        """Wait for its end; Torn if that has another code."""

        def over() -> Any:
            state = self.inspect(name)["State"]
            return state if state["Status"] == "exited" else None

        state = self.asker.calm(f"exit of {name}", over)
        if state["ExitCode"] != code:
            raise Torn(f"exit code {state['ExitCode']} ({state['Error']}), not {code}")

    def stop(self, name: str) -> None:
        """Stop it, in its own time."""
        self.asker.ask("POST", f"/containers/{name}/stop?t=60", [204], again=[304])

    def remove(self, name: str, id_: str, events: str, codes: list[int]) -> None:
        """Remove it, and remember it."""
        path = f"/containers/{name}?force=1&v=1"
        self.asker.ask("DELETE", path, [204], again=[404, 409])
        self.gone(name, id_, events, codes)

    def gone(self, name: str, id_: str, events: str, codes: list[int]) -> None:
        """Wait until it is not there any more, and remember it."""
        path = f"/containers/{name}/json"
        self.asker.calm(
            f"{name} is removed", lambda: self.asker.once("GET", path, [200, 404]).status == 404
        )
        if name not in self.unclear:
            self.past.append(Past(name, id_, events, codes))

    def log(self, name: str) -> tuple[bytes, bytes]:
        """All that it has printed, asked for until it comes whole."""

        def whole() -> tuple[bytes]:
            path = f"/containers/{name}/logs?stdout=1&stderr=1"
            return (self.asker.once("GET", path, [200]).body,)

        (data,) = self.asker.calm(f"logs of {name}", whole)
        self.counts["bytes"] += len(data)
        return demultiplexed(data)

    # --- the docker command line ---

    def docker(self, *arguments: str) -> str:
        """A command that may be given again if the engine was killed under it; its stdout."""

        def given() -> tuple[str]:
            done = self.engine.docker(*arguments, check=False, timeout=PATIENCE)
            self.excused(done.returncode, done.stderr)
            if done.returncode:
                raise Broken(done.stderr)
            return (done.stdout,)

        return self.asker.calm(f"docker {' '.join(arguments)}", given)[0]

    def excused(self, code: int, words: str) -> None:
        """Torn if a command failed with other words than a kill is an excuse for."""
        if code and words and not _EXCUSES.search(words):
            raise Torn(f"exit status {code}: {words.strip()}")

    def finished(self, client: subprocess.Popen[bytes]) -> tuple[bytes, bytes, int]:
        """What a command printed, on stderr too, and its exit status."""
        try:
            out, err = client.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            client.kill()
            out, err = client.communicate()
            raise Torn(f"docker hangs after {len(out)} bytes ({err!r})") from None
        self.counts["bytes"] += len(out)
        return out, err, client.returncode

    def popen(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """A docker command that goes on."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(["docker", *arguments], env=self.engine.env, **pipes)

    # --- execs over a raw socket ---

    def exec(self, name: str, command: list[str], code: int, **fields: Any) -> bytes:
        """The stdout of an exec that needs no input and may be given again."""

        def given() -> tuple[bytes]:
            id_, sock = self.open_exec(name, command, **fields)
            out, _ = demultiplexed(rest(sock))
            self.exec_over(name, id_, code)
            return (out,)

        return self.asker.calm(f"exec in {name}", given)[0]

    def open_exec(self, name: str, command: list[str], **fields: Any) -> tuple[str, socket.socket]:
        """Begin an exec: its id and the socket of its streams."""
        body = {"Cmd": command, "AttachStdout": True, "AttachStderr": True, **fields}
        id_ = str(self.asker.once("POST", f"/containers/{name}/exec", [201], body).json["Id"])
        start = {"Tty": fields.get("Tty", False)}
        return id_, self.asker.open("POST", f"/exec/{id_}/start", 101, start)

    def exec_over(self, name: str, id_: str, code: int) -> None:
        """An exec whose stream has ended has its exit code."""
        found = self.asker.get(f"/exec/{id_}/json")
        if found["Running"] or found["ExitCode"] != code:
            raise Torn(f"exec {id_[:12]}: {found['Running']=}, {found['ExitCode']=}, not {code}")
        self.counts["execs"] += 1
        self.execs.append((name, id_, code))


def counted(last: int, first: int = 1) -> bytes:
    """The lines of `seq`."""
    return b"".join(b"%d\n" % n for n in range(first, last + 1))

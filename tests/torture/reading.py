"""Clients that read: docker logs, docker run, attach, wait and stats."""

from __future__ import annotations

import json
import subprocess

from .asking import Torn, demultiplexed, rest, same
from .clients import IMAGE, LABEL, Client, counted


class Follow(Client):
    """A container that prints fast or slowly, followed from its start by `logs -f`."""

    kind = "follow"

    def one(self, name: str) -> None:
        code = self.chance.randint(0, 100)
        if self.chance.random() < 0.5:
            lines = self.chance.randint(20_000, 300_000)
            script = f"seq 1 {lines}; seq 1 100 >&2; exit {code}"
            expected = counted(lines), counted(100)
        else:
            lines = self.chance.randint(50, 300)
            script = (
                f"i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo $i; echo $i >&2; "
                f"sleep 0.01; done; exit {code}"
            )
            expected = counted(lines), counted(lines)
        id_ = self.create(name, script)
        self.begin(name)
        follow = self.by_cli if self.chance.random() < 0.5 else self.by_socket
        for stream, wanted, what in zip(follow(name), expected, ("stdout", "stderr"), strict=True):
            same(stream, wanted, f"{follow.__name__}: logs -f, {what}")
        self.exited(name, code)
        for stream, wanted in zip(self.log(name), expected, strict=True):
            same(stream, wanted, "logs")
        self.remove(name, id_, "create start die destroy ", [code])

    def by_cli(self, name: str) -> tuple[bytes, bytes]:
        """`docker logs -f`, which goes on through every kill once it has begun."""
        for _ in range(50):
            out, err, code = self.finished(self.popen("logs", "-f", name))
            if code == 0:
                return out, err
            if out:
                raise Torn(f"docker logs -f broke off after {len(out)} bytes: {err!r}")
            self.excused(code, err.decode())
        raise Torn("logs -f never began")

    def by_socket(self, name: str) -> tuple[bytes, bytes]:
        """The same over a raw socket, with timestamps, which never go back."""
        path = f"/containers/{name}/logs?stdout=1&stderr=1&follow=1&timestamps=1"
        sock = self.asker.calm(path, lambda: self.asker.open("GET", path, 200))
        data = dechunked(rest(sock))
        self.counts["bytes"] += len(data)
        streams = []
        for stream in demultiplexed(data):
            stamped = [line.split(b" ", 1) for line in stream.splitlines(keepends=True)]
            times = [time for time, _ in stamped]
            if times != sorted(times):
                raise Torn("timestamps go back")
            streams.append(b"".join(line for _, line in stamped))
        return streams[0], streams[1]


def dechunked(data: bytes) -> bytes:
    """The body of a chunked answer; Torn if it is not whole."""
    parts, at = [], 0
    while True:
        line, _, _ = data[at : at + 20].partition(b"\r\n")
        size = int(line or b"-1", 16)
        if size < 0 or len(data) < at + len(line) + size + 4:
            raise Torn(f"an answer that is not whole: chunk {line!r} at {at} of {len(data)}")
        at += len(line) + 2
        parts.append(data[at : at + size])
        at += size + 2
        if size == 0:
            return b"".join(parts)


class Foreground(Client):
    """`docker run`, with or without a terminal, with or without --rm."""

    kind = "run"

    def one(self, name: str) -> None:
        lines, code = self.chance.randint(50, 300), self.chance.randint(0, 100)
        tty, removed = self.chance.random() < 0.5, self.chance.random() < 0.5
        flags = ["-t"] * tty + ["--rm"] * removed
        script = (
            f"i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo $i; "
            f"sleep 0.01; done; seq {lines + 1} {lines + 5000}; exit {code}"
        )
        label = f"{LABEL}={name}"
        command = ["run", "--name", name, "--label", label, *flags, IMAGE, "sh", "-c", script]
        out, err, status = self.finished(self.popen(*command))
        expected = counted(lines + 5000)
        if tty:
            expected = expected.replace(b"\n", b"\r\n")
        self.counts["containers"] += 1
        if err:
            # A request that did not stream was broken off, and docker gives up.
            self.counts["given up"] += 1
            self.excused(1, err.decode())
            if not expected.startswith(out):
                same(out, expected, "docker run, given up")
        else:
            self.counts["runs"] += 1
            same(out, expected, f"docker run {flags}")
            if status != code:
                raise Torn(f"docker run ended with {status}, not {code}")
        self.clear(name, given_up=bool(err), removed=removed, code=code)

    def clear(self, name: str, *, given_up: bool, removed: bool, code: int) -> None:
        """It is gone by itself, or goes now."""
        path = f"/containers/{name}/json"
        answer, _ = self.asker.ask("GET", path, [200, 404])
        if removed and not given_up:
            self.asker.calm(f"{name} is removed", lambda: self.missing(name))
        elif answer.status == 200:
            id_ = answer.json["Id"]
            whole = "create start die destroy "
            if given_up:
                whole = "create (start )?(die )?destroy "
            else:
                self.exited(name, code)
            self.remove(name, id_, whole, [] if given_up else [code])

    def missing(self, name: str) -> bool:
        """Whether it is not there any more."""
        path = f"/containers/{name}/json"
        return self.asker.once("GET", path, [200, 404]).status == 404


class Attached(Client):
    """A raw socket that attaches before the start, one that waits, and `docker wait`."""

    kind = "attach"

    def one(self, name: str) -> None:
        lines, code = self.chance.randint(50, 50_000), self.chance.randint(0, 100)
        script = f"seq 1 {lines}; sleep 0.5; seq {lines + 1} {lines + 50}; exit {code}"
        id_ = self.create(name, script)
        path = f"/containers/{name}/attach?stream=1&stdout=1&stderr=1"
        attached = self.asker.calm("attach", lambda: self.asker.open("POST", path, 101))
        path = f"/containers/{name}/wait?condition=next-exit"
        waiting = self.asker.calm("wait", lambda: self.asker.open("POST", path, 200))
        with attached, waiting:
            self.begin(name)
            waiter = self.popen("wait", name)
            out, err = demultiplexed(rest(attached))
            said = rest(waiting)
        self.counts["bytes"] += len(out)
        same(out, counted(lines + 50), "attach")
        same(err, b"", "attach, stderr")
        if json.loads(dechunked(said) if b"\r\n" in said.strip() else said)["StatusCode"] != code:
            raise Torn(f"wait said {said!r}, not {code}")
        self.waited(name, waiter, code)
        self.exited(name, code)
        self.remove(name, id_, "create start die destroy ", [code])

    def waited(self, name: str, waiter: subprocess.Popen[bytes], code: int) -> None:
        """`docker wait` prints the code; broken off before it began, it is given again."""
        out, err, status = self.finished(waiter)
        if status:
            self.excused(status, err.decode())
            out = self.docker("wait", name).encode()
        same(out, b"%d\n" % code, "docker wait")


class Stats(Client):
    """`GET stats`, a line a second while the container runs."""

    kind = "stats"

    def one(self, name: str) -> None:
        id_ = self.create(name, "trap 'exit 6' TERM; while :; do sleep 0.1; done")
        self.begin(name)
        path = f"/containers/{name}/stats?stream=1"
        sock = self.asker.calm("stats", lambda: self.asker.open("GET", path, 200))
        wanted, data = self.chance.randint(2, 6), b""
        lines: list[bytes] = []
        with sock:
            while len(lines) < wanted:
                if not (more := sock.recv(1 << 16)):
                    raise Torn(f"stats ended after {len(lines)} lines: {data[-100:]!r}")
                data += more
                lines = [line for line in data.split(b"\n") if line.strip()[-1:] == b"}"]
        found = [json.loads(line) for line in lines]
        times = [one["read"] for one in found]
        if times != sorted(set(times)) or any(one["id"] != id_ for one in found):
            raise Torn(f"stats: {times}")
        self.stop(name)
        self.exited(name, 6)
        self.remove(name, id_, "create start die (stop )?destroy ", [6])
